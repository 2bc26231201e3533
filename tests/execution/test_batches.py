"""One call for many, what is done where it raises, and what each attempt is told of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tests.execution.lane import reports_of

from mainspring.errors import RetryAfter, TaskCancelled
from mainspring.execution.batches import Gathered, Joint, halving, is_out_of_memory
from mainspring.tasks import Custom, CustomOutput, Done, TaskId, Work
from mainspring.tasks.codec import decode_output, encode_input

Call = Callable[[Sequence[int]], Sequence[str]]


def through(n: int, call: Call, most: int = 1_000) -> tuple[Joint[str], list[int]]:
    """Bring n items through; returns what came of it, and the size of each call. After the most nobody wants them."""
    joint, sizes, _ = heard(n, call, most)
    return joint, sizes


def heard(n: int, call: Call, most: int = 1_000) -> tuple[Joint[str], list[int], list[tuple[int, list[str]]]]:
    """The same, and what was told while others went on."""
    sizes: list[int] = []
    told: list[tuple[int, list[str]]] = []
    steps = halving(
        range(n),
        lambda exc, together: f"{type(exc).__name__} in {together}",
        lambda: "unwanted" if len(sizes) >= most else None,
        lambda start, outcomes: told.append((start, list(outcomes))),
    )
    try:
        some = next(steps)
        while True:
            sizes.append(len(some))
            try:
                answer: Any = call(some)
            except BaseException as exc:  # noqa: BLE001 - that is what is brought through
                answer = exc
            some = steps.send(answer)
    except StopIteration as stop:
        return stop.value, sizes, told


def names(items: Sequence[int]) -> list[str]:
    return [str(item) for item in items]


def without(*bad: int, error: type[BaseException] = ValueError) -> Call:
    def call(items: Sequence[int]) -> list[str]:
        if set(bad) & set(items):
            raise error("no")
        return names(items)

    return call


def test_what_goes_well_takes_one_call() -> None:
    joint, sizes = through(100, names)
    assert (joint, sizes) == (Joint(names(range(100)), 1, None), [100])


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 100])
def test_one_bad_item_fails_alone(n: int) -> None:
    """Wherever it stands, with two calls for each halving."""
    for bad in range(n):
        joint, sizes = through(n, without(bad))
        assert joint.outcomes == ["ValueError in 1" if item == bad else str(item) for item in range(n)]
        assert len(sizes) <= 1 + 2 * (n - 1).bit_length()


def test_nothing_in_a_batch_takes_no_call() -> None:
    assert through(0, names) == (Joint([], 0, None), [])


def test_searching_is_bounded() -> None:
    """A few bad items are found; where all are bad the calls stay few, and the rest fails with its call's error."""
    joint, _ = through(256, without(3, 100, 200))
    assert [n for n, outcome in enumerate(joint.outcomes) if outcome == "ValueError in 1"] == [3, 100, 200]
    joint, sizes = through(256, without(*range(256)))
    assert len(sizes) <= 1 + 6 * 8
    assert all(outcome.startswith("ValueError in ") for outcome in joint.outcomes)


@pytest.mark.parametrize("error", [RetryAfter, TaskCancelled])
def test_what_is_true_for_all_is_not_searched_for(error: type[BaseException]) -> None:
    """Who is asked to come later, or is not wanted any more, must not ask again for each half."""

    def call(items: Sequence[int]) -> list[str]:
        raise error(1.0)

    joint, sizes = through(64, call)
    assert (set(joint.outcomes), sizes) == ({f"{error.__name__} in 64"}, [64])


def test_a_pause_that_part_of_a_call_asks_for() -> None:
    """Those behind it are not called any more, as they would ask again; what was done before is done."""

    def call(items: Sequence[int]) -> list[str]:
        if len(items) > 2:
            raise ValueError("too many")
        if 2 in items:
            raise RetryAfter(1.0)
        return names(items)

    joint, sizes = through(8, call)
    pause = "RetryAfter in 2"
    assert (joint, sizes) == (Joint(["0", "1", *[pause] * 6], 4, None, pause), [8, 4, 2, 2])


def test_what_nobody_wants_any_more() -> None:
    """It ends as it is told, also where the last call raised; what was done before is done."""
    call = without(3)
    for most, done in ((1, list[str]()), (2, []), (3, ["0", "1"]), (4, ["0", "1"]), (5, ["0", "1", "2"])):
        joint, sizes = through(8, call, most)
        assert (joint.outcomes, joint.rest) == ([*done, *["unwanted"] * (8 - len(done))], "unwanted")
        assert sizes == [8, 4, 2, 2, 1][:most]
    assert through(8, call, 7)[0] == through(8, call)[0]


def test_what_is_done_is_told_while_others_go_on() -> None:
    """Also what failed alone; not what the last call came to, after which nobody goes on."""
    joint, sizes, told = heard(8, without(1))
    assert sizes == [8, 4, 2, 1, 1, 2, 4]
    assert told == [(0, ["0"]), (1, ["ValueError in 1"]), (2, ["2", "3"])]
    assert joint.outcomes == ["0", "ValueError in 1", *names(range(2, 8))]


def test_what_nobody_wants_any_more_is_not_told() -> None:
    """Nor what a call came to that was asked to stop: all others end with that."""
    joint, _, told = heard(8, without(1), 4)
    assert joint.outcomes == ["0", *["unwanted"] * 7]
    assert told == []


def test_memory_that_ran_out_before_a_pause() -> None:
    """Where nothing went through yet, calls become as small as the one that would have been next."""

    def call(items: Sequence[int]) -> list[str]:
        if len(items) > 16:
            raise MemoryError
        raise RetryAfter(1.0)

    assert through(64, call)[0].fits == 16
    assert through(64, without(*range(64), error=MemoryError), most=2)[0].fits == 16


def test_memory_that_runs_out_halves_until_it_fits() -> None:
    """However often that has to be; the largest call that went through is told."""

    def call(items: Sequence[int]) -> list[str]:
        if len(items) > 3:
            raise MemoryError
        return names(items)

    joint, _ = through(64, call)
    assert (joint.outcomes, joint.fits) == (names(range(64)), 2)
    joint, _ = through(64, without(*range(64), error=MemoryError))
    assert (set(joint.outcomes), joint.fits) == ({"MemoryError in 1"}, 0)


class OutOfMemoryError(Exception):
    """As torch has one of its own."""


class ArrayMemoryError(MemoryError):
    """As numpy has one of its own."""


def test_an_item_that_is_too_much_alone_says_nothing_about_others() -> None:
    """Memory runs out for each call that it is in; how many of the others fit is known from the calls without it."""
    joint, _ = through(16, without(5, error=MemoryError))
    assert joint.outcomes == ["MemoryError in 1" if item == 5 else str(item) for item in range(16)]
    assert joint.fits is None
    joint, _ = through(1, without(0, error=MemoryError))
    assert (joint.outcomes, joint.fits) == (["MemoryError in 1"], None)

    def call(items: Sequence[int]) -> Sequence[str]:
        if len(items) > 4:
            raise MemoryError
        return without(5, error=MemoryError)(items)

    joint, _ = through(16, call)
    assert joint.fits == 4


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (ArrayMemoryError("Unable to allocate 8 TiB"), True),
        (OutOfMemoryError(), True),
        (RuntimeError("bad allocation"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("Failed to allocate memory for requested buffer of size 5"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("no"), False),
    ],
)
def test_errors_that_mean_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


class Deaf:
    """A channel that nobody listens to."""

    def send(self, signal: Any) -> None:
        pass


def gathered(*inputs: bytes) -> Gathered:
    works = [Work(id=TaskId().bytes, attempt=1, task_type="custom:none", input=data) for data in inputs]
    return Gathered(works, [Deaf()] * len(works), None)


def test_what_can_not_be_read_fails_by_itself() -> None:
    """Each attempt has its own report, in order; those in the call share its CPU time, and saw all of the rest."""
    good = encode_input(Custom({"items": 1}))[0]
    batch = gathered(good, b"\xc1", good)
    assert len(batch.items) == 2
    first, bad, last = reports_of(
        batch.report(Joint([Done(CustomOutput("a")), Done(CustomOutput("b"))], 3, 1), 2.0, 0.5, 9)
    )
    assert first.output is not None
    assert last.output is not None
    assert [decode_output(first.output).value, decode_output(last.output).value] == ["a", "b"]
    for report in (first, last):
        usage = report.usage
        assert (usage.duration, usage.cpu_time, usage.memory_bytes, usage.batch_size) == (2.0, 0.25, 9, 2)
    assert bad.error is not None
    assert (bad.output, bad.usage.batch_size, bad.usage.cpu_time) == (None, 1, None)


def test_one_that_is_alone_in_its_call() -> None:
    """All of the call is its own."""
    batch = gathered(encode_input(Custom({"items": 1}))[0], b"")
    usage = reports_of(batch.report(Joint([Done(CustomOutput("a"))], 1, None), 2.0, 0.5))[0].usage
    assert (usage.cpu_time, usage.batch_size) == (0.5, 1)


class Listener(Deaf):
    def __init__(self) -> None:
        self.ends: list[Any] = []

    def send(self, signal: Any) -> None:
        self.ends.append(signal.report)


def test_those_who_are_done_have_their_share_of_what_was_used_by_then() -> None:
    """All shares come to what the batch has used; the ends of those who were told are not told twice."""
    good = encode_input(Custom({"items": 1}))[0]
    works = [Work(id=TaskId().bytes, attempt=1, task_type="custom:none", input=good) for _ in range(4)]
    channels = [Listener() for _ in works]
    batch = Gathered(works, channels, None)
    outcomes = [Done(CustomOutput(n)) for n in range(4)]
    batch.tell(1, outcomes[1:3], 1.0, 0.4, 9)
    ((second,), (third,)) = [channel.ends for channel in channels[1:3]]
    assert decode_output(second.output).value == 1
    for report in (second, third):
        usage = report.usage
        assert (usage.duration, usage.cpu_time, usage.memory_bytes, usage.batch_size) == (1.0, 0.1, 9, 4)
    first, *told, last = batch.report(Joint([*outcomes], 3, None), 2.0, 1.0, 20).reports
    assert told == [None, None]
    assert first is not None
    assert last is not None
    assert first.usage == last.usage
    assert first.usage.cpu_time == pytest.approx(0.4)
    assert (channels[0].ends, len(channels[1].ends)) == ([], 1)


def test_where_nothing_can_be_read() -> None:
    """There is no call, and all fail."""
    batch = gathered(b"\xc1", b"")
    ended = batch.report(Joint([], 0, None), 2.0, 0.5)
    assert ([report.error is None for report in reports_of(ended)], ended.calls) == ([False, False], 0)


def test_a_call_that_is_cancelled_tells_all_its_items() -> None:
    """Whoever works on one of them hears of it."""
    good = encode_input(Custom({"items": 1}))[0]
    batch = gathered(good, good)
    assert not batch.is_cancelled
    batch.cancel()
    assert batch.is_cancelled
    assert all(item.context.cancelled for item in batch.items)
