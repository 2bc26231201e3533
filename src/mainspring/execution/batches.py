"""One call for many items, and halves of them where it raises, so that what can't be done fails alone."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import msgspec

from mainspring.errors import RetryAfter, TaskCancelled
from mainspring.execution.base import BatchReport, Channel, Report, Work
from mainspring.execution.encoding import failed, report
from mainspring.execution.items import item_of
from mainspring.processors.base import Item, failure, text_of
from mainspring.processors.context import Child
from mainspring.tasks import ItemDone, Outcome, Usage

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
        self._channels: list[Channel] = []  # of those
        self._told: set[int] = set()  # which of those know their end
        self._given_s = 0.0  # of the CPU time, to those
        self._reports: list[Report | None] = []
        for work, channel in zip(works, channels, strict=True):
            try:
                self.items.append(item_of(work, channel, submit))
            except Exception as exc:  # noqa: BLE001 - a stored payload that does not decode is that attempt's failure
                self._reports.append(failed(failure(exc), Usage()))
            else:
                self._channels.append(channel)
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

    def tell(
        self, start: int, outcomes: Sequence[Outcome], duration: float, cpu_time: float | None,
        peak_bytes: int | None = None, *, other_code: bool = False,
    ) -> None:  # fmt: skip
        """Tell items from this one on how they ended, while others go on. The figures are those of the batch so far."""
        share = self._share(cpu_time)
        for n, outcome in enumerate(outcomes, start):
            made = report(outcome, self._usage(self.items[n], duration, share, peak_bytes))
            self._channels[n].send(ItemDone(msgspec.structs.replace(made, other_code=other_code)))
            self._told.add(n)
        self._given_s += len(outcomes) * (share or 0.0)

    def report(
        self, joint: Joint[Outcome], duration: float, cpu_time: float | None, peak_bytes: int | None = None
    ) -> BatchReport:
        """Return the reports of those that were not told: they lasted as long as the batch and saw its peak of memory,
        and each has its share of the CPU time."""
        share = self._share(cpu_time)

        def of(n: int, outcome: Outcome) -> Report | None:
            if n in self._told:
                return None
            made = report(outcome, self._usage(self.items[n], duration, share, peak_bytes))
            return msgspec.structs.replace(made, for_all=True) if outcome is joint.rest else made

        ended = (of(n, outcome) for n, outcome in enumerate(joint.outcomes))
        return BatchReport([known or next(ended) for known in self._reports], joint.calls, joint.fits)

    def _share(self, cpu_time: float | None) -> float | None:
        """Return what each of those that go on has of the CPU time, but for what those had that ended before."""
        if cpu_time is None:
            return None
        return max(0.0, cpu_time - self._given_s) / max(1, len(self.items) - len(self._told))

    def _usage(self, item: Item, duration: float, cpu_s: float | None, peak_bytes: int | None) -> Usage:
        context = item.context
        return Usage(duration, cpu_s, peak_bytes, context.network_bytes, max(1, len(self.items)), context.cost)


class Joint(NamedTuple, Generic[R]):
    """What became of a batch."""

    outcomes: list[R]
    calls: int
    fits: int | None  # the most items that went through together where memory ran out for more; see `_fits`
    rest: R | None = None  # what was true for all that had no outcome by then; None: nothing was


def in_halves(
    items: Sequence[Item],
    call: Callable[[Sequence[Item]], Sequence[Outcome]],
    rest: Callable[[], Outcome | None],
    done: Callable[[int, Sequence[Outcome]], None],
) -> Joint[Outcome]:
    """Bring all items through `call`; see `halving`. Never raises what a call raises."""
    steps = halving(items, failed_of, rest, done)
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
    items: Sequence[T],
    fail: Callable[[BaseException, int], R],
    rest: Callable[[], R | None],
    done: Callable[[int, Sequence[R]], None],
) -> Generator[Sequence[T], Answer[R], Joint[R]]:
    """Yield what goes into each call and take what came of it: outcomes, or what was raised.

    A call that raises is made again with each half, down to single items. That is bounded: a few bad items are found,
    but where most are bad the rest fails with what was raised last. Where memory ran out halving goes on until it fits.
    `fail` makes an outcome of what was raised, and of how many items were in that call.

    A `RetryAfter` is true for all that have no outcome yet: none of them is called again. Nor are they once `rest`
    says what they end with, as nobody wants them any more. While others go on `done` hears what has an outcome, and
    where among the items that begins.
    """
    if not items:
        return Joint([], 0, None)
    outcomes: list[Any] = [None] * len(items)
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
                spare -= 0 if is_memory else 2
                middle = (start + end) // 2
                left += [(middle, end), (start, middle)]
        if isinstance(answer, RetryAfter):
            last = outcomes[start]
        elif left:
            last = rest()
            if last is None and outcomes[start] is not None:
                done(start, outcomes[start:end])
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
