"""What the machines draw: tasks, endings and acts, with numbers where ids and times will stand.

What is drawn often is what moves tasks on; a failing example is printed as these, without what is as usual.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from hypothesis import strategies as st
from tests.conformance.kit import AGEING_MS, OTHER, WORK
from tests.model.process import LANES, UNSERVED
from tests.model.rations import Bucket

from mainspring.store.base import COMPLETED, CRASHED, FAILED, OUTCOMES, RELEASED, RETRY

NUMBERS = st.integers(0, 20)
"""Picks one of what there is at that moment."""
WORKERS = st.integers(0, 1)
STEPS = st.sampled_from([125, 1_000, 30_000, 60_000, 90_000, 250_000])  # milliseconds: eighths of a second are exact
OFFSETS = st.sampled_from([-1, 0, 1, 125, 1_000, AGEING_MS - 1, AGEING_MS, AGEING_MS + 1, 3 * AGEING_MS, 6 * AGEING_MS])
VERSIONS = st.sampled_from(["1", "1", "2"])
LIMITS = st.tuples(st.sampled_from(["", "", "tenant"]), st.just("g"), st.sampled_from([None, 1, 1, 2]))
RATIONS = st.tuples(
    st.sampled_from(["", "", "tenant"]),
    st.just("g"),
    st.sampled_from([None, None, None, 2]),
    st.sampled_from([None, Bucket(1, 1_000), Bucket(2, 60_000), Bucket(3, 30_000), Bucket(1, 250_000)]),
    st.sampled_from([None, Bucket(4, 4_096), Bucket(8, 65_536), Bucket(16, 16_384)]),  # halves of halves are exact
)
COSTS = st.sampled_from([1.0, 1.0, 0.0, 2.0, 3.5, 8.0, 12.0])
SHARES = st.tuples(
    st.sampled_from([("", "g"), ("", "g"), ("tenant", ""), ("tenant", "g")]), st.sampled_from([None, 1, 1, 2, 4])
)
PURGES = st.tuples(st.sampled_from(["", "tenant"]), st.sampled_from(["", WORK, OTHER]), st.sampled_from(["", "", "2"]))
PAUSES = st.tuples(st.sampled_from(["", "tenant"]), st.sampled_from(["", WORK, OTHER]), st.sampled_from(["", "g"]))


@dataclass(frozen=True)
class Draft:
    """A task, with numbers where ids and times will stand."""

    type: str = WORK
    namespace: str = "default"
    group: str = ""
    payload: tuple[str, int | None] = ("a", None)
    priority: int = 1
    max_retries: int = 3
    deadline: int | None = None
    not_before: int | None = None
    key: str | None = None
    parents: tuple[int, ...] = ()
    policy: int = 0
    twin: int | None = None  # takes the id of that one
    is_stray: bool = False  # one of its parents is nowhere
    keep: int | None = None  # how old the result of equal work may be
    is_named: bool = True  # whoever submits it has its code
    cost: float = 1.0

    def __repr__(self) -> str:
        return shown(self)


@dataclass(frozen=True)
class Ending:
    """How an attempt ends, and what it leaves."""

    outcome: int = COMPLETED
    delay: int = 0
    again: bool = False
    is_counted: bool = True
    children: tuple[Draft, ...] = ()
    refs: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    cost: float | None = None

    def __repr__(self) -> str:
        return shown(self)


def shown(made: Any) -> str:
    """The call that makes it, without what it has by default."""
    given = {field.name: getattr(made, field.name) for field in fields(made)}
    plain = {field.name: field.default for field in fields(made)}
    return f"{type(made).__name__}({', '.join(f'{k}={v!r}' for k, v in given.items() if v != plain[k])})"


def tuples(items: st.SearchStrategy[Any], most: int, least: int = 0) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(items, min_size=least, max_size=most).map(tuple)


def rarely(items: st.SearchStrategy[Any], times: int = 5) -> st.SearchStrategy[Any]:
    return st.sampled_from([False] * (times - 1) + [True]).flatmap(lambda is_given: items if is_given else st.none())


def acts(weights: dict[int, list[tuple[Any, ...]]]) -> st.SearchStrategy[tuple[Any, ...]]:
    """Draw an act, its name and values, by weight."""
    drawn = {name: st.tuples(st.just(name), *values) for some in weights.values() for name, *values in some}
    names = [name for weight, some in weights.items() for name, *_ in some * weight]
    return st.sampled_from(names).flatmap(drawn.__getitem__)


DRAFTS = st.builds(
    Draft,
    type=st.sampled_from([WORK] * 6 + [OTHER] * 2 + [UNSERVED]),
    namespace=st.sampled_from(["default", "tenant"]),
    group=st.sampled_from(["", "g"]),
    payload=st.sampled_from([("a", None)] * 6 + [("b", None), ("a", 1)]),
    priority=st.sampled_from([1, 0, 2, 3]),
    max_retries=st.sampled_from([3, 1, 0]),
    deadline=rarely(OFFSETS),
    not_before=rarely(OFFSETS),
    key=st.sampled_from([None, None, None, "k", "l"]),
    parents=st.just(()) | tuples(NUMBERS, 3),
    policy=st.integers(0, 2),
    twin=rarely(NUMBERS, 10),
    is_stray=st.sampled_from([False] * 19 + [True]),
    keep=st.sampled_from([None, None, 60_000, 1_000, 1_000, 0]),
    is_named=st.sampled_from([True, True, False]),
    cost=COSTS,
)
TASKS = tuples(DRAFTS, 4, least=1)
ENDINGS = st.builds(
    Ending,
    outcome=st.sampled_from([COMPLETED, COMPLETED, COMPLETED, *range(len(OUTCOMES))]),
    delay=OFFSETS.map(lambda ms: max(0, ms)),
    again=st.booleans(),
    is_counted=st.booleans(),
    children=st.just(()) | TASKS,
    refs=st.just(()) | tuples(NUMBERS, 2),
    notes=st.just(()) | tuples(st.sampled_from(["keep", "keep", "keep", "refuse", "break"]), 2),
    cost=st.none() | COSTS,
)
ASKED = acts(
    {
        6: [("finish", NUMBERS, ENDINGS)],
        3: [("submit", TASKS), ("start", NUMBERS, st.booleans(), st.booleans())],
        1: [
            ("finish_stale", NUMBERS, st.sampled_from([COMPLETED, COMPLETED, FAILED, RETRY, RELEASED, CRASHED])),
            ("start_stale", NUMBERS),
            ("withdraw", NUMBERS),
            ("withdraw_stale", NUMBERS),
            ("cancel", NUMBERS),
            ("retry", NUMBERS),
            ("resume", NUMBERS),
        ],
    }
)
"""What can be asked of a process together with other things, in one commit."""
LANE = st.sampled_from([*LANES, "async"])
ACTS = acts(
    {
        30: [("ask", WORKERS, ASKED)],
        10: [("together", WORKERS, tuples(ASKED, 5, least=2))],
        7: [("take", WORKERS, LANE, st.integers(1, 4)), ("advance", STEPS)],
        3: [("wait_for_work", WORKERS, st.tuples(*[st.integers(0, 3)] * len(LANES))), ("prune", WORKERS)],
        2: [
            ("open", VERSIONS),
            ("kill", WORKERS),
            ("crash_again_and_again", NUMBERS),
            ("look", WORKERS, NUMBERS),
            ("limit_again", WORKERS, st.booleans()),
        ],
        1: [
            ("hand_back_again_and_again", NUMBERS, st.sampled_from([11, 2]), st.sampled_from([True, True, False])),
            ("pause", WORKERS, PAUSES),
            ("limit", WORKERS, LIMITS, RATIONS, SHARES),
            ("purge", WORKERS, PURGES),
            ("jump", st.sampled_from([-86_400, -3, 3, 86_400])),
            ("close", WORKERS),
            ("rescue", WORKERS),
        ],
    }
)
"""What can happen."""
