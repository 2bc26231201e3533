"""The one table of what may become what. SQL enforces it, tests compare the two, and the docs page is made from it."""

from __future__ import annotations

from typing import Final, NamedTuple

from mainspring.tasks.identity import Reason, TaskStatus

STATUS_CODE: Final = {status: code for code, status in enumerate(TaskStatus)}
"""As stored: pending 0, running 1, completed 2, failed 3, cancelled 4, timeout 5."""
STATUS_OF: Final = tuple(TaskStatus)

STORED_REASONS: Final[tuple[Reason, ...]] = ("ready", "parents", "delayed", "retry", "claimed", "same_work")
"""As stored: ready 0, parents 1, delayed 2, retry 3, claimed 4, same_work 5. The other reasons are found when asked."""
REASON_CODE: Final = {reason: code for code, reason in enumerate(STORED_REASONS)}

READY, PARENTS, DELAYED, RETRY, CLAIMED, SAME_WORK = range(6)
PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, TIMEOUT = range(6)


class State(NamedTuple):
    status: TaskStatus
    reason: Reason | None = None

    def __str__(self) -> str:
        return self.status.name if self.reason is None else f"{self.status.name} ({self.reason})"


class Transition(NamedTuple):
    verb: str
    before: State | None  # None: not yet stored
    after: State
    why: str


_ready, _parents, _delayed, _retry, _claimed, _same_work = (
    State(TaskStatus.PENDING, reason) for reason in STORED_REASONS
)
_running = State(TaskStatus.RUNNING)
_completed, _failed, _cancelled, _timeout = (
    State(status) for status in (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED, TaskStatus.TIMEOUT)
)
_waiting = (_ready, _parents, _delayed, _retry, _same_work)
_held = (_claimed, _running)

TRANSITIONS: Final[tuple[Transition, ...]] = (
    Transition("submit", None, _ready, "nothing to wait for"),
    Transition("submit", None, _claimed, "the submitting process has a free slot and nothing better waits"),
    Transition("submit", None, _parents, "a parent has not ended"),
    Transition("submit", None, _delayed, "not_before lies ahead"),
    Transition("submit", None, _same_work, "equal work is under way"),
    Transition("submit", None, _completed, "the result of equal work is kept"),
    Transition("submit", None, _failed, "a required parent had failed already"),
    Transition("submit", None, _cancelled, "a parent with policy skip had failed already"),
    Transition("submit", None, _timeout, "the deadline passed while it was being stored"),
    Transition("ready", _parents, _ready, "the last parent ended"),
    Transition("ready", _parents, _delayed, "the last parent ended before not_before"),
    Transition("ready", _delayed, _ready, "not_before came"),
    Transition("ready", _retry, _ready, "the backoff is over"),
    Transition("claim", _ready, _claimed, "a worker took it"),
    Transition("follow", _claimed, _same_work, "equal work is under way"),
    Transition("lead", _same_work, _ready, "the equal work that it waited for came to nothing"),
    Transition("share", _same_work, _completed, "the equal work that it waited for is done"),
    Transition("share", _same_work, _failed, "the equal work that it waited for failed"),
    Transition("share", _same_work, _timeout, "the equal work that it waited for ran out of time"),
    Transition("start", _claimed, _running, "its handler began"),
    *(Transition("finish", state, _completed, "the handler returned") for state in _held),
    *(Transition("finish", state, _failed, "no retry left, or not worth one") for state in _held),
    *(Transition("finish", state, _timeout, "the last try ran out of time") for state in _held),
    *(Transition("finish", state, _cancelled, "cancel was asked for") for state in _held),
    *(Transition("retry", state, _retry, "failed, will be tried again") for state in _held),
    *(Transition("release", state, _ready, "handed back unfinished: drain, steal") for state in _held),
    *(Transition("rescue", state, _ready, "its worker died, or was silent for too long") for state in _held),
    *(Transition("rescue", state, _failed, "crashed its worker too often") for state in _held),
    *(Transition("cancel", state, _cancelled, "before it started") for state in (*_waiting, _claimed)),
    *(Transition("expire", state, _timeout, "deadline passed before start") for state in (*_waiting, _claimed)),
    Transition("fail", _parents, _failed, "a required parent did not complete"),
    Transition("skip", _parents, _cancelled, "a parent with policy skip did not complete"),
)

ALLOWED: Final = frozenset((item.before, item.after) for item in TRANSITIONS)


def as_markdown() -> str:
    """Return the docs page's table."""
    rows = [f"| {t.verb} | {t.before or 'new'} | {t.after} | {t.why} |" for t in TRANSITIONS]
    return "\n".join(["| verb | before | after | when |", "| --- | --- | --- | --- |", *rows])
