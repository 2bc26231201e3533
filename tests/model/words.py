"""What the specification of a store speaks of: tasks and what befalls them, claims, outcomes, the rules of a place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

REQUIRE, ALLOW_FAILURE, SKIP = range(3)
Kind = tuple[str, str, str]
"""Namespace, type, group."""
Work = tuple[str, str, Any, str]
"""What equal work has in common: namespace, type, payload, version of the code."""


@dataclass(eq=False)
class Task:
    """All there is to know about a task. What is below the line is what befalls it."""

    id: bytes
    kind: Kind
    payload: Any = None  # what makes two tasks the same work
    priority: int = 1
    max_retries: int = 3
    deadline: int | None = None
    not_before: int | None = None
    key: str | None = None
    parents: tuple[bytes, ...] = ()
    policy: int = REQUIRE
    keep: int = 0  # how old the result of equal work may be, and for how long its own is kept; 0: it wants none
    work: Work | None = None  # where whoever submits has the code
    cost: float = 1.0  # what it is to cost its group
    # ----
    seq: int = 0  # order of submission
    rank: int = 0
    status: str = "pending"
    reason: str | None = None  # ready, parents, delayed, retry, claimed, same_work; while pending
    due: int | None = None  # when delayed or retry ends
    attempt: int = 0
    holder: str | None = None  # the process that has the claim
    is_asked: bool = False  # to stop
    is_suspect: bool = False
    took: dict[tuple[str, str], Took] = field(default_factory=dict)  # of rates, by limit
    reserved: frozenset[tuple[str, str]] = frozenset()  # by which limits its cost is, for the attempt that is held
    retries: int = 0
    crashes: int = 0
    releases: int = 0
    submitted: int = 0
    ended: int | None = None
    output: Any = None
    stands_for: tuple[bytes, ...] = ()
    error: str | None = None
    is_spoiled: bool = False  # ended because a parent did not complete
    attempts: tuple[tuple[int, str], ...] = ()  # those on record: number and outcome
    is_leader: bool = False  # it was told that it runs for all equal work
    is_shared: bool = False  # its end is that of equal work

    @property
    def is_over(self) -> bool:
        return self.status not in ("pending", "running")

    @property
    def was_late(self) -> bool:
        """A parent's end has ended it, and its own deadline had passed as well."""
        return self.is_spoiled and None not in (self.deadline, self.ended) and self.deadline <= self.ended  # type: ignore[operator]

    @property
    def is_broken(self) -> bool:
        return self.is_over and self.status != "completed"


class Took(NamedTuple):
    """What a claim took of a rate."""

    rate: tuple[int, int]
    full_us: int  # when the bucket was to be full with it: until then it is not filled up


class Claim(NamedTuple):
    """The right to finish one attempt."""

    id: bytes
    attempt: int
    holder: str


class Flight(NamedTuple):
    """How a task stands to equal work."""

    work: Work
    leads: bool  # else it waits for the one that does
    keep: int


class Kept(NamedTuple):
    """A result that will do for equal work."""

    output: Any
    made: int
    expires: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an attempt ended, as its worker says."""

    how: str  # one of store.base.OUTCOMES
    ended: int
    started: bool = False
    error: str | None = None
    delay: int = 0
    is_counted: bool = True
    output: Any = None
    children: tuple[Task, ...] = ()
    stands_for: tuple[bytes, ...] = ()
    effects: tuple[str, ...] = ()
    refusal: str | None = None  # the error that one of the effects ends with
    work: Work | None = None  # what was done, by the code that did it
    cost: float | None = None  # what it has cost, where it says so


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How a place for tasks is set up; times in milliseconds."""

    ageing: int  # a step of priority is worth this much waiting
    queue_size: int | None  # unfinished tasks allowed
    keep_completed: int
    keep_failed: int
    keep_tombstones: int
    max_completed: int
    share: int = 1_000  # tasks that get the result of equal work in one commit with it
