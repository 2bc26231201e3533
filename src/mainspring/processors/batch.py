"""How tasks join into one call: what a handler declares, and what that makes of its signature."""

from __future__ import annotations

import collections.abc
import typing
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from mainspring.config import seconds
from mainspring.errors import InvalidInput, TaskError, invalid
from mainspring.processors.base import Item, failure
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
    """

    max_size: int = 64  # tasks in a call
    max_cost: float | None = None  # sum of their costs
    cost: Callable[[Any], float] | None = None  # of one item; called on the event loop, so it must be quick
    max_wait: float | str = 0.0  # seconds that the first task of a batch waits for others
    shape: Callable[[Any], Any] | None = None  # only items with equal shapes join. Quick, too
    oversize: Literal["alone", "refuse"] = "alone"  # what becomes of an item that costs more than `max_cost`

    def __post_init__(self) -> None:
        if type(self.max_size) is not int or not 1 <= self.max_size <= MAX_BATCH:
            raise invalid("batch.max_size", self.max_size, f"is no count from 1 to {MAX_BATCH}", "use about 64")
        if (self.max_cost is None) != (self.cost is None):
            missing = "cost" if self.cost is None else "max_cost"
            raise invalid(f"batch.{missing}", None, "is missing", "give max_cost and cost together, or neither")
        if self.max_cost is not None and not self.max_cost > 0:
            raise invalid("batch.max_cost", self.max_cost, "is not positive", "use what one call can take")
        for name in ("cost", "shape"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise invalid(f"batch.{name}", value, "is no function", "pass one that takes an item, such as len")
        if self.oversize not in ("alone", "refuse"):
            raise invalid("batch.oversize", self.oversize, "is unknown", "use alone or refuse")
        if self.oversize == "refuse" and self.max_cost is None:
            raise invalid("batch.oversize", self.oversize, "needs max_cost", "give max_cost and cost, or leave it out")
        seconds(self.max_wait, "batch.max_wait")

    @property
    def wait_s(self) -> float:
        return seconds(self.max_wait, "batch.max_wait")

    def cost_of(self, item: Any) -> float:
        """Return what an item costs; 0 where costs are not counted. Raises InvalidInput."""
        if self.cost is None:
            return 0.0
        cost = self.cost(item)
        if not isinstance(cost, (int, float)) or not cost >= 0:
            raise invalid("batch.cost", cost, "is no cost", "let the function return a number from 0")
        return float(cost)

    def shape_of(self, item: Any) -> bytes:
        """Return what only items that join have in common, in a form that compares safely. Raises InvalidInput."""
        if self.shape is None:
            return b""
        shape = self.shape(item)
        try:
            return encode(shape)[0]
        except InvalidInput as exc:
            why, remedy = "is no shape", "let the function return a number, a text, or a tuple or list of these"
            raise invalid("batch.shape", shape, why, remedy) from exc

    def check_item(self, item: Any) -> None:
        """Raises InvalidInput: the item is to be refused for what it costs."""
        if self.oversize == "refuse" and self.max_cost is not None and (cost := self.cost_of(item)) > self.max_cost:
            raise InvalidInput(f"the item costs {cost:g}, above max_cost = {self.max_cost:g}; split it", field="batch")


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
