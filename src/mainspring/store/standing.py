"""Where a task stands: what a store knows of why it is not running."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, NamedTuple

from mainspring.tasks import ErrorInfo, GroupLimit, Reason, TaskStatus


class Shortage(NamedTuple):
    """What keeps a worker from running a task."""

    worker: str
    how: Literal["waits", "never", "withheld", "closed", "alone", "first"]
    """It waits there; it can't run there; tasks of its type that go first wait there, and so many are not passed by;
    nothing at all starts there; nothing starts beside one that must run alone; it is that one itself."""
    why: str  # completes "it ..."; of withheld how many wait, of closed and alone a sentence


class Silent(NamedTuple):
    """A worker that lives as far as is known, and has not been heard of."""

    worker: str
    seconds: float


class Pause(NamedTuple):
    """What may not start now; '' stands for any."""

    namespace: str
    type: str
    group: str
    since: datetime
    who: str  # asked for it; '' where that was not noted


class Turns(NamedTuple):
    """The share that a ready task belongs to, where others wait in its lane too: they take turns."""

    namespace: str
    group: str  # both empty: that of all that have none of their own
    weight: float
    own: int  # tasks of it that go first
    shares: int  # others that have something ready
    others: int  # tasks of those that go first, by their turns


class Soon(NamedTuple):
    """A limit that has no room for a ready task once those have begun that go first."""

    group: str
    namespace: str | None  # None: of the group's tasks in all namespaces
    places: int  # so many may begin now
    ahead: int  # of those that it counts so many go first


class Line(NamedTuple):
    """What goes before a ready task: ready tasks of all kinds that the same lanes of the same workers run.

    Where shares take turns it is what goes first at most: whose turn it is just now only each process's lane knows.
    """

    lane: str
    ahead: int
    ahead_is_more: bool
    per_s: float | None  # attempts that ended there lately; None where there were too few to tell
    turns: Turns | None = None
    soon: Soon | None = None  # what keeps it then
    has_slot: bool = False  # nothing goes first, and a slot is free for it
    has_own_slot: bool = False  # tasks of its type alone go first: they have a slot of their own there


class Other(NamedTuple):
    """A task that another one waits for."""

    id: bytes
    state: str  # its status, and the reason where it waits itself; `never`: it can run on no living worker
    of: str = ""  # its type, or the group whose limits keep it, where what keeps it was looked for
    root: Other | None = None  # what it waits for in the end, where it waits for others


class Standing(NamedTuple):
    """Where a task stands in the queue, for `explain`."""

    status: TaskStatus
    reason: Reason | None  # also those that are found only when asked: paused, limit, no_worker
    type: str
    attempt: int
    worker: str | None
    due: datetime | None
    error: ErrorInfo | None
    retry_count: int
    max_retries: int
    cancel_asked: bool
    parents: list[Other]  # those that have not ended
    parents_all: int  # how many it has, ended or not
    ahead: int  # ready tasks of its class that go first
    ahead_is_more: bool
    pauses: tuple[Pause, ...]  # all that keep it
    workers: int  # that serve tasks, where none serves its type
    stopping: tuple[str, ...] = ()  # workers that serve its type and take nothing more, where no other one does
    limits: tuple[GroupLimit, ...] = ()  # all that keep it, for reason `limit`
    ahead_in_group: int = 0  # tasks of all kinds that wait for the same limits and go first, where that was asked for
    ahead_in_group_is_more: bool = False
    leader: Other | None = None  # of equal work, where that is waited for
    line: Line | None = None  # where it is ready, and that was asked for
    has_slot: bool = False  # its worker has no more claims in its lane than slots
    may_gather: bool = False  # it may wait there for others to join it, as far as is known
    shortages: tuple[Shortage, ...] = ()  # where it lacks resources, or must not start beside another one
    silent: tuple[Silent, ...] = ()  # all workers that take it when its turn comes, where none of them is heard of
