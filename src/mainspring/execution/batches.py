"""One call for many items, and halves of them where it raises, so that what can't be done fails alone."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import msgspec

from mainspring.errors import RetryAfter, TaskCancelled
from mainspring.execution.base import BatchReport, Channel, Report, Work
from mainspring.execution.encoding import failed, report
from mainspring.execution.items import item_of
from mainspring.processors.base import Item, failure, text_of
from mainspring.processors.context import Child
from mainspring.tasks import Outcome, Usage

_SEARCHES = 3
"""How many single bad items are looked for in one batch: each costs two calls for each halving."""
_MEMORY_NAMES = frozenset({"OutOfMemoryError", "MemoryError"})
_MEMORY_TEXTS = ("out of memory", "failed to allocate", "bad allocation", "cannot allocate memory")

T = TypeVar("T")
R = TypeVar("R")
Answer: TypeAlias = Sequence[R] | BaseException


class Gathered:
    """The works of a batch as items; those that can't be read fail by themselves."""

    def __init__(self, works: Sequence[Work], channels: Sequence[Channel], submit: Callable[..., Child] | None) -> None:
        self.items: list[Item] = []
        self._reports: list[Report | None] = []
        for work, channel in zip(works, channels, strict=True):
            try:
                self.items.append(item_of(work, channel, submit))
            except Exception as exc:  # noqa: BLE001 - a stored payload that does not decode is that attempt's failure
                self._reports.append(failed(failure(exc), Usage()))
            else:
                self._reports.append(None)

    def cancel(self) -> None:
        for item in self.items:
            item.context.cancel()

    @property
    def is_cancelled(self) -> bool:
        return any(item.context.cancelled for item in self.items)

    def rest(self) -> Outcome | None:
        """See `halving`: once it was asked to stop nothing of it begins any more."""
        return failure(TaskCancelled("stopped while it ran")) if self.is_cancelled else None

    def report(
        self, joint: Joint[Outcome], duration: float, cpu_time: float | None, peak_bytes: int | None = None
    ) -> BatchReport:
        """Return each attempt's report: all lasted as long as the batch and saw its peak of memory, and each has its
        share of the CPU time."""
        together = max(1, len(self.items))
        share = None if cpu_time is None else cpu_time / together

        def of(item: Item, outcome: Outcome) -> Report:
            context = item.context
            usage = Usage(duration, share, peak_bytes, context.network_bytes, together, context.cost)
            made = report(outcome, usage)
            return msgspec.structs.replace(made, for_all=True) if outcome is joint.rest else made

        ended = (of(item, outcome) for item, outcome in zip(self.items, joint.outcomes, strict=True))
        return BatchReport([known or next(ended) for known in self._reports], joint.calls, joint.fits)


class Joint(NamedTuple, Generic[R]):
    """What became of a batch."""

    outcomes: list[R]
    calls: int
    fits: int | None  # the most items that went through together where memory ran out for more; see `_fits`
    rest: R | None = None  # what was true for all that had no outcome by then; None: nothing was


def in_halves(
    items: Sequence[Item], call: Callable[[Sequence[Item]], Sequence[Outcome]], rest: Callable[[], Outcome | None]
) -> Joint[Outcome]:
    """Bring all items through `call`; see `halving`. Never raises what a call raises."""
    steps = halving(items, failed_of, rest)
    try:
        some = next(steps)
        while True:
            try:
                answer: Answer[Outcome] = call(some)
            except BaseException as exc:  # noqa: BLE001 - whatever a handler raises is its items' outcome, not our end
                answer = exc
            some = steps.send(answer)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


def failed_of(exc: BaseException, _: int) -> Outcome:
    return failure(exc)


def halving(
    items: Sequence[T], fail: Callable[[BaseException, int], R], rest: Callable[[], R | None]
) -> Generator[Sequence[T], Answer[R], Joint[R]]:
    """Yield what goes into each call and take what came of it: outcomes, or what was raised.

    A call that raises is made again with each half, down to single items. That is bounded: a few bad items are found,
    but where most are bad the rest fails with what was raised last. Where memory ran out halving goes on until it fits.
    `fail` makes an outcome of what was raised, and of how many items were in that call.

    A `RetryAfter` is true for all that have no outcome yet: none of them is called again. Nor are they once `rest`
    says what they end with, as nobody wants them any more.
    """
    if not items:
        return Joint([], 0, None)
    outcomes: list[R | None] = [None] * len(items)
    spare = 2 * _SEARCHES * max(1, (len(items) - 1).bit_length())
    calls, largest, short = 0, 0, list[tuple[int, int]]()
    left = [(0, len(items))]
    last: R | None = None
    while left and last is None:
        start, end = left.pop()
        answer = yield items[start:end]
        calls += 1
        if not isinstance(answer, BaseException):
            outcomes[start:end] = answer
            largest = max(largest, end - start)
        else:
            is_memory = is_out_of_memory(answer)
            if is_memory:
                short.append((start, end))
            if end - start == 1 or isinstance(answer, (RetryAfter, TaskCancelled)) or not (is_memory or spare >= 2):
                outcomes[start:end] = [fail(answer, end - start)] * (end - start)
            else:
                if not is_memory:
                    spare -= 2
                middle = (start + end) // 2
                left += [(middle, end), (start, middle)]
        if isinstance(answer, RetryAfter):
            last = outcomes[start]
        elif left:
            last = rest()
    for start, end in left:
        outcomes[start:end] = [last] * (end - start)
    fits = _fits(short, largest, is_whole=not left)
    return Joint([outcome for outcome in outcomes if outcome is not None], calls, fits, last)


def _fits(short: Sequence[tuple[int, int]], largest: int, *, is_whole: bool) -> int | None:
    """Return how many items fit, from the calls for which memory ran out; None: that says nothing about those to come.

    An item for which it ran out also alone explains why the calls did that it was in, unless none went well.
    Where none went well because no more were made, that is what the next one would have had.
    """
    alone = [start for start, end in short if end - start == 1]
    together = [(start, end) for start, end in short if end - start > 1]
    if together and not largest and not is_whole:
        return min(end - start for start, end in together) // 2
    explained = largest and all(any(start <= one < end for one in alone) for start, end in together)
    return None if explained or not together else largest


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether smaller work may succeed: numerical libraries have errors of their own for it."""
    if isinstance(exc, MemoryError) or type(exc).__name__ in _MEMORY_NAMES:
        return True
    return isinstance(exc, Exception) and any(text in text_of(exc).lower() for text in _MEMORY_TEXTS)
