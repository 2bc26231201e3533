"""How tasks join into one call: what a handler declares, and what that makes of its signature."""

from __future__ import annotations

import collections.abc
import typing
from collections.abc import Callable, Hashable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec
from msgspec.structs import force_setattr

from mainspring.config import seconds
from mainspring.errors import InvalidInput, TaskError, invalid, shown
from mainspring.processors.annotations import is_async
from mainspring.processors.base import Item, failure, text_of
from mainspring.processors.context import as_cost
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
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise invalid(f"batch.{name}", value, "is no function", "pass one that takes an item, such as len")
            if value is not None and is_async(value):
                raise invalid(f"batch.{name}", value, "is async, and nobody awaits it", "use def")
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
        given = _asked(self.cost, "batch.cost", item, name)
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
        shape = _asked(self.shape, "batch.shape", item, name)
        try:
            return encode(shape)[0]
        except InvalidInput as exc:
            why = f"is no shape, and what the function of {name} returned for {shown(item)}"
            remedy = "let it return a number, a text, or a tuple or list of these"
            raise invalid("batch.shape", shape, why, remedy) from exc


def _asked(function: Callable[[Any], Any], field: str, item: Any, name: str) -> Any:
    """Return what a user's function says of an item. Raises InvalidInput where it raises anything."""
    try:
        return function(item)
    except Exception as exc:
        why = f"{field} of {name} raised {type(exc).__name__} for {shown(item)}: {text_of(exc)}"
        raise InvalidInput(f"{why}; let it answer for every item", field=field, value=item) from exc


class Batching(Protocol):
    """A processor whose tasks run together."""

    batch: Batch

    def join(self, work: Work) -> tuple[Hashable, float]:
        """Return what works must have in common to run in one call, and what this one costs.

        Called on the event loop. Raises what the user's functions of an item raise, InvalidInput.
        """


def items_parameter(name: str, parameters: Sequence[str], hints: dict[str, Any]) -> tuple[str, Any]:
    """Return the parameter that gets the items of a call, which is the first one, and the type of one item.

    Raises: InvalidInput: it takes no list.
    """
    if not parameters:
        raise invalid("batch", name, "takes no items", "let its first parameter be a list")
    first = parameters[0]
    hint = hints.get(first, Any)
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    if hint in (Any, *_LISTS):
        return first, Any
    if typing.get_origin(hint) in _LISTS:
        (item,) = typing.get_args(hint)
        return first, item
    raise invalid("batch", f"{name}({first}: {hint})", "gets its items as a list", f"annotate it as list[...]: {first}")


class Call:
    """One call of a handler for a batch, whose items have all other arguments in common."""

    def __init__(self, handler: Handler, batch: Sequence[Item], traceback_chars: int) -> None:
        self._name = handler.name
        self._traceback_chars = traceback_chars
        self._outcomes: list[Outcome | None] = [None] * len(batch)
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
                self.arguments = {handler.items: items, **arguments}
        self._wanted = len(items)

    def outcomes(self, values: Any) -> Sequence[Outcome]:
        """Return an outcome for each item: its value, or the exception that the handler gave back in its place."""
        found = in_order(values)
        if found is None or len(found) != self._wanted:
            what = f"a {type(values).__name__}" if found is None else f"{len(found)} results for {self._wanted} items"
            why = f"{self._name} gave back {what}"
            wrong = failure(InvalidInput(f"{why}; return one for each item, in their order", field="output"))
            return [outcome or wrong for outcome in self._outcomes]
        results = iter(found)
        return [outcome or self._outcome(next(results)) for outcome in self._outcomes]

    def _outcome(self, value: Any) -> Outcome:
        return failure(value, self._traceback_chars) if isinstance(value, BaseException) else Done(CustomOutput(value))
