"""How tasks join into one call: what a handler declares, and what that makes of its signature."""

from __future__ import annotations

import collections.abc
import inspect
import typing
from collections.abc import Callable, Hashable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec
from msgspec.structs import force_setattr

from mainspring.config import seconds
from mainspring.errors import InvalidInput, TaskError, invalid, shown
from mainspring.processors.base import Item, failure, text_of
from mainspring.processors.context import Context, as_cost
from mainspring.processors.functions import check_asked
from mainspring.tasks import CustomOutput, Done, Outcome, Work
from mainspring.tasks.codec import encode
from mainspring.tasks.order import in_order

if TYPE_CHECKING:
    from mainspring.processors.custom import Handler

MAX_BATCH = 10_000
_LISTS = (list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Tasks of one handler that wait at the same time run in one call, each with an outcome of its own.

    The call begins as soon as a slot is free, with whatever waits then; with `max_wait` it may wait for more. Tasks
    with a priority above NORMAL never wait. Costs are in any unit, as tokens or bytes.

    `cost` and `shape` get what the handler gets of one task: for `docs: list[Doc]` a `Doc`. They are called on the
    event loop, so they must be quick. A task for which one of them raises, or gives no cost or shape, fails alone.
    """

    max_size: int = 64  # tasks in a call
    max_cost: float | None = None  # sum of their costs
    cost: Callable[[Any], float] | None = None  # of one item
    max_wait: float | str = 0.0  # seconds that the first task of a batch waits for others
    shape: Callable[[Any], Any] | None = None  # only items with equal shapes join
    oversize: Literal["alone", "refuse"] = "alone"  # what becomes of an item that costs more than `max_cost`

    def __post_init__(self) -> None:
        size = self.max_size
        if isinstance(size, bool) or not isinstance(size, Integral) or not 1 <= size <= MAX_BATCH:
            raise invalid("batch.max_size", size, f"is no count from 1 to {MAX_BATCH}", "use about 64")
        force_setattr(self, "max_size", int(size))
        if (self.max_cost is None) != (self.cost is None):
            missing = "cost" if self.cost is None else "max_cost"
            raise invalid(f"batch.{missing}", None, "is missing", "give max_cost and cost together, or neither")
        if self.max_cost is not None:
            most = as_cost(self.max_cost)
            if not most:
                raise invalid("batch.max_cost", self.max_cost, "is no positive number", "use what one call can take")
            force_setattr(self, "max_cost", most)
        for name in ("cost", "shape"):
            if (asks := getattr(self, name)) is not None:
                check_asked(asks, f"batch.{name}", 1, "pass a plain function that takes an item, such as len")
        if self.oversize not in ("alone", "refuse"):
            raise invalid("batch.oversize", self.oversize, "is unknown", "use alone or refuse")
        if self.oversize == "refuse" and self.max_cost is None:
            raise invalid("batch.oversize", self.oversize, "needs max_cost", "give max_cost and cost, or leave it out")
        seconds(self.max_wait, "batch.max_wait")

    @property
    def wait_s(self) -> float:
        return seconds(self.max_wait, "batch.max_wait")

    def cost_of(self, item: Any, name: str) -> float:
        """Return what an item costs a call of the handler of this name; 0 where costs are not counted.

        Raises: InvalidInput: the function can't tell, or the item is to be refused for what it costs.
        """
        if self.cost is None or self.max_cost is None:
            return 0.0
        given = asked(self.cost, "batch.cost", item, name)
        cost = as_cost(given)
        if cost is None:
            why = f"is no cost, and what the function of {name} returned for {shown(item)}"
            raise invalid("batch.cost", given, why, "let it return a number from 0")
        if self.oversize == "refuse" and cost > self.max_cost:
            why = f"the item costs {cost:g}, above max_cost = {self.max_cost:g} of {name}; split it"
            raise InvalidInput(why, field="batch", value=cost)
        return cost

    def shape_of(self, item: Any, name: str) -> bytes:
        """Return what only items that join have in common, in a form that compares safely. Raises InvalidInput."""
        if self.shape is None:
            return b""
        shape = asked(self.shape, "batch.shape", item, name)
        try:
            return encode(shape)[0]
        except InvalidInput as exc:
            why = f"is no shape, and what the function of {name} returned for {shown(item)}"
            remedy = "let it return a number, a text, or a tuple or list of these"
            raise invalid("batch.shape", shape, why, remedy) from exc


def asked(function: Callable[[Any], Any], field: str, item: Any, name: str) -> Any:
    """Return what a user's function says of an item or of a call's arguments. Raises InvalidInput where that raises."""
    try:
        return function(item)
    except BaseException as exc:  # a panic in a tokenizer's native code is no Exception, nor is SystemExit
        why = f"{field} of {name} raised {type(exc).__name__} for {shown(item)}: {text_of(exc)}"
        raise InvalidInput(f"{why}; let it answer for every item", field=field, value=item) from exc


class Batching(Protocol):
    """A processor whose tasks run together."""

    batch: Batch

    def join(self, work: Work) -> tuple[Hashable, float]:
        """Return what works must have in common to run in one call, and what this one costs.

        Called on the event loop. Raises InvalidInput, also for what the user's functions of an item raise.
        """


def items_parameter(batch: Any, name: str, signature: inspect.Signature, hints: dict[str, Any]) -> tuple[str, Any]:
    """Return the parameter that gets the items of a call, which is the first one, and the type of one item.

    Raises: InvalidInput: it takes no list, or what a call for several tasks can't bring.
    """
    if not isinstance(batch, Batch):
        raise invalid("batch", batch, "is no batch policy", "use Batch(max_size=64)")
    shown = f"{name}{signature}"
    for parameter in signature.parameters:
        if Context in (hint := _bare(hints.get(parameter)), *typing.get_args(hint)) and not are_contexts(hint):
            raise invalid("batch", shown, "a call is for several tasks", f"annotate {parameter} as list[Context]")
    first = next(iter(signature.parameters.values()), None)
    if first is None or are_contexts(hints.get(first.name)):
        raise invalid("batch", shown, "takes no items", "let its first parameter be a list")
    if first.default is not first.empty:
        raise invalid("batch", shown, f"{first.name} has a default", "each task brings an item: leave it out")
    hint = _bare(hints.get(first.name, Any))
    if hint in (Any, *_LISTS):
        return first.name, Any
    if typing.get_origin(hint) in _LISTS:
        return first.name, typing.get_args(hint)[0]
    raise invalid(
        "batch", f"{name}({first.name}: {hint})", "gets its items as a list", f"annotate it as list[...]: {first.name}"
    )


def are_contexts(hint: Any) -> bool:
    """Whether a parameter of this type gets the contexts of a call."""
    hint = _bare(hint)
    return typing.get_origin(hint) in _LISTS and typing.get_args(hint) == (Context,)


def _bare(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint


class Call:
    """One call of a handler for a batch, whose items have all other arguments in common."""

    def __init__(self, handler: Handler, batch: Sequence[Item], traceback_chars: int) -> None:
        self._name = handler.name
        self._traceback_chars = traceback_chars
        self._outcomes: list[Outcome | None] = [None] * len(batch)
        self._contexts: list[Context] = []  # of those that can be read
        self.arguments: dict[str, Any] = {}  # none where no item can be read
        items = []
        for index, item in enumerate(batch):
            try:
                arguments = item.input.value  # type: ignore[union-attr]
                arguments = handler.typed(arguments) if handler.convert_input else dict(arguments)
                items.append(arguments.pop(handler.items))
            except TaskError as exc:
                self._outcomes[index] = failure(exc, traceback_chars)
            else:
                self._contexts.append(item.context)
                self.arguments = {handler.items: items, **arguments}
        if self.arguments and handler.contexts_parameter is not None:
            for context in self._contexts:
                context.begin_again()
            self.arguments[handler.contexts_parameter] = [*self._contexts]

    def outcomes(self, values: Any) -> Sequence[Outcome]:
        """Return an outcome for each item: its value, or the exception that the handler gave back in its place."""
        found = in_order(values)
        wanted = len(self._contexts)
        if found is None or len(found) != wanted:
            what = f"a {type(values).__name__}" if found is None else f"{len(found)} results for {wanted} items"
            why = f"{self._name} gave back {what}"
            wrong = failure(InvalidInput(f"{why}; return one for each item, in their order", field="output"))
            return [outcome or wrong for outcome in self._outcomes]
        results = zip(found, self._contexts, strict=True)
        return [outcome or self._outcome(*next(results)) for outcome in self._outcomes]

    def _outcome(self, value: Any, context: Context) -> Outcome:
        if isinstance(value, BaseException):
            return failure(value, self._traceback_chars)
        return Done(CustomOutput(value), context.effects)
