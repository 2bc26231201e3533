"""What the specification of a store speaks of: tasks and what befalls them, claims, outcomes, the rules of a place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

REQUIRE, ALLOW_FAILURE, SKIP = range(3)
Kind = tuple[str, str, str]
"""Namespace, type, group."""


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
    # ----
    seq: int = 0  # order of submission
    rank: int = 0
    status: str = "pending"
    reason: str | None = None  # ready, parents, delayed, retry, claimed; while pending
    due: int | None = None  # when delayed or retry ends
    attempt: int = 0
    holder: str | None = None  # the process that has the claim
    is_asked: bool = False  # to stop
    is_suspect: bool = False
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

    @property
    def is_over(self) -> bool:
        return self.status not in ("pending", "running")

    @property
    def is_broken(self) -> bool:
        return self.is_over and self.status != "completed"


class Claim(NamedTuple):
    """The right to finish one attempt."""

    id: bytes
    attempt: int
    holder: str


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


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How a place for tasks is set up; times in milliseconds."""

    ageing: int  # a step of priority is worth this much waiting
    queue_size: int | None  # unfinished tasks allowed
    keep_completed: int
    keep_failed: int
    keep_tombstones: int
    max_completed: int
