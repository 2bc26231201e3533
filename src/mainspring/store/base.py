"""The contract of a store: where tasks live, and the only place that knows the truth.

A store serves one process. Submitting and looking are calls; work is a stream: a worker says how many claims each of
its lanes can take (`Lane.room`), the store hands them over through `WorkerPort.claimed`, and takes outcomes back by
`finish`. Everything that is given in between two commits goes into one transaction; whatever is reported was committed
before.

A claim (task, attempt, owner) is the only key: a write for an attempt that is not held any more changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from mainspring.errors import TaskError, TaskNotFound
from mainspring.store.counting import StoreCounts
from mainspring.store.lane import Lane
from mainspring.store.ready import Asker
from mainspring.store.standing import Standing
from mainspring.tasks import (
    CostRate,
    Effect,
    GroupLimit,
    Ledger,
    LedgerKey,
    OnDependencyFailure,
    Rate,
    Resources,
    TaskId,
    TaskInfo,
    TaskResult,
    TaskStatus,
    Usage,
    Work,
)
from mainspring.tasks.needs import Need

CANCEL_ASKED: Final = 1
"""Flag: somebody asked the running attempt to stop."""
SUSPECT: Final = 2
"""Flag: it ran when its process died; it runs alone next."""
HAS_REFS: Final = 4
"""Flag: its input refers to results of its parents."""
STANDS_FOR: Final = 8
"""Flag: its output refers to results of other tasks."""
BLOB_INPUT: Final = 16
"""Flag: the input column holds the digest of a blob."""
BLOB_OUTPUT: Final = 32
"""Flag: the output column holds the digest of a blob."""

WANTS_KEPT: Final = 64
"""Flag: the result of equal work will do, and its own is kept for such."""
LEADS: Final = 128
"""Flag: it is the one of equal work that runs."""
SHARED: Final = 256
"""Flag: its end is that of equal work; it did not run for it."""
GROUPED: Final = 512
"""Flag: it belongs to a group; set by the store, for the index that limits of groups are counted over."""
RESERVES: Final = 4096
"""Flag: its spec says what it needs while it runs."""
SHORT: Final = 8192
"""Flag: an attempt of it was short of memory; the next one reserves more."""
COSTS: Final = 16384
"""Flag: its spec says what it is to cost its group."""
URGENT: Final = 32768
"""Flag: somebody urgent waits for it, so it waits for no others to join it."""

POLICY_CODE: Final[dict[OnDependencyFailure, int]] = {"require": 0, "allow_failure": 1, "skip": 2}
OUTCOMES: Final = ("completed", "failed", "timeout", "cancelled", "retry", "released", "crashed")
"""How an attempt ended, by code."""
COMPLETED, FAILED, TIMEOUT, CANCELLED, RETRY, RELEASED, CRASHED = range(7)
MAX_CRASHES: Final = 3
MAX_RELEASES: Final = 10


class Spec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The fields of a task that most tasks leave at their defaults: one column, absent when all are."""

    model_id: str | None = None
    metadata: dict[str, str] = {}
    params: dict[str, Any] = {}
    resources: Resources | None = None
    on_dependency_failure: OnDependencyFailure = "require"
    idempotency_key: str | None = None
    keep_ms: int | None = None  # how old the result of equal work may be, and for how long its own is kept
    trace: dict[str, str] | None = None  # of the span that submitted it: `traceparent` and perhaps `tracestate`
    cost: float | None = None  # what it is to cost its group
    before: dict[str, str] | None = None  # as `trace`, of the span of the attempt before, where it comes again


class WorkName(NamedTuple):
    """What equal work has in common."""

    key: bytes
    version: str  # of the code, for people; the key tells more of it


class NewTask(msgspec.Struct, gc=False):
    """A task as it enters the store."""

    id: bytes
    class_key: tuple[str, str, str]  # namespace, type, group ('' for none)
    input: bytes  # or the digest of a blob, when flagged so
    priority: int = 1
    max_retries: int = 3
    timeout_ms: int | None = None
    deadline_ms: int | None = None
    not_before_ms: int | None = None
    flags: int = 0
    spec: bytes | None = None
    key: str | None = None  # idempotency key
    after: Sequence[bytes] = ()  # ids of parents
    policy: int = 0  # what a parent's failure means, by POLICY_CODE
    work: bytes | None = None  # the key of its work, where the result of equal work will do and that is known by now
    keep_ms: int = 0  # see Spec
    is_guess: bool = False  # what it is to cost: no reason to refuse it


class HandlerRecord(NamedTuple):
    """A handler as submitters without its code know it."""

    type: str
    version: str
    lane: str
    options: str  # JSON
    schema: str  # JSON Schema of the arguments
    source: str  # hash of the source, to tell a change under the same version


class Kept(NamedTuple):
    """What the result cache holds of one kind of work."""

    namespace: str
    type: str
    version: str
    entries: int
    bytes: int
    oldest_ms: int  # when the oldest one was computed


class Queued(NamedTuple):
    """Ready tasks by priority: how many, and since when the oldest is ready."""

    by_priority: dict[int, tuple[int, int]]
    is_whole: bool  # else there are more than were looked at


class Accepted(msgspec.Struct, frozen=True, gc=False):
    id: bytes
    existed: bool  # the same id or idempotency key with the same payload was there already


class Line:
    """The parts of one call, submitted one behind the other: none may enter before those in front of it."""

    __slots__ = ("is_broken",)

    def __init__(self) -> None:
        self.is_broken = False  # something of it was left out


class Behind(Exception):
    """A part of a line was not stored, as something in front of it was left out."""


class Pledged(NamedTuple):
    """A task that is there from the moment a user's transaction commits."""

    id: bytes
    origin: str | None  # that transaction; None where the task was in the store already


class ParentResult(NamedTuple):
    """What a parent left, for the claim of its child."""

    status: int
    output: bytes | None
    flags: int


class Claimed(Work, gc=False):
    """The right to finish one attempt, with all that is needed to run it."""

    seq: int = 0
    owner: int = 0
    class_key: tuple[str, str, str] = ("", "", "")
    rank: int = 0
    flags: int = 0
    priority: int = 1
    max_retries: int = 0
    crashes: int = 0
    releases: int = 0
    ready_ms: int = 0
    timeout_ms: int | None = None
    spec: bytes | None = None
    parents: dict[bytes, ParentResult] | None = None  # for an input that refers to them
    work: WorkName | None = None  # by the code and the model that are here
    is_last: bool = False  # no more of its group may be held than were when it was claimed

    @property
    def tried(self) -> int:
        """How many attempts before it failed or crashed: what was handed back is charged to nobody."""
        return self.retry_count + self.crashes

    def labels(self) -> dict[str, Any]:
        labels = super().labels()
        if self.class_key[2]:
            labels["group"] = self.class_key[2]
        return labels


class Finish(msgspec.Struct, gc=False):
    """How an attempt ended, on its way into the store."""

    claim: Claimed
    outcome: int  # a code of OUTCOMES
    ended_ms: int
    started_ms: int | None = None
    output: bytes | None = None
    lane: str | None = None
    usage: Usage = Usage()
    error: bytes | None = None  # MessagePack of an ErrorInfo
    delay_ms: int = 0  # of a retry
    refs: tuple[bytes, ...] = ()  # tasks that the output stands for
    effects: tuple[Effect, ...] = ()
    children: tuple[NewTask, ...] = ()
    blobs: tuple[str, ...] = ()  # digests that the output lives in
    flags: int = 0  # added to the task's
    output_bytes: int = 0  # where the output is a blob: of that
    spec: bytes | None = None  # the task's from now on, where it comes again
    is_counted: bool = True  # a release counts towards the limit of those
    is_repeated: bool = False  # its first commit failed, with its fate unknown

    @property
    def is_plain(self) -> bool:
        """Whether it completes, and nothing that comes with the result has to be looked at."""
        if self.outcome != COMPLETED or self.refs or self.effects:
            return False
        return not self.children or all(child.key is None for child in self.children)


class HostUsage(NamedTuple):
    """What a process that works has told of its machine."""

    worker: str
    host: str
    at_ms: int
    figures: str  # JSON of a ResourceUsage


class Ended(msgspec.Struct, frozen=True, gc=False):
    """A task that reached a final status in a transaction of this process."""

    id: bytes
    status: int
    output: bytes | None
    flags: int
    error: bytes | None


class WorkerPort(Protocol):
    """What the store tells a worker, on the worker's loop."""

    lanes: Mapping[str, Lane]

    def claimed(self, claims: list[Claimed]) -> None:
        """These attempts are yours now."""

    def lost(self, finishes: list[Finish]) -> None:
        """These outcomes were not taken: the attempts were not yours any more."""

    def asked_to_stop(self, ids: list[bytes]) -> None:
        """Somebody asked for these tasks to be cancelled."""

    def hastened(self, tasks: list[tuple[bytes, int]]) -> None:
        """Somebody urgent waits for these, (id, rank), which somebody has claimed."""

    def revoked(self, held: frozenset[tuple[int, int]]) -> None:
        """Others took claims back while this process was silent; (seq, attempt) of what you still hold."""

    def paused(self, is_paused: Callable[[tuple[str, str, str]], bool]) -> None:
        """What may start has changed; tells for a class (namespace, type, group) whether it may not."""

    def asked_to_share(self, is_wanted: Callable[[Claimed], bool], spare: Need) -> None:
        """Another process has nothing to do and can run these: release half of such claims that have not begun. Of
        what waits for resources that is half of what would fit into what is free there."""


class CrashEvidence(NamedTuple):
    """What is known of a process that died."""

    worker: str
    pid: int
    started: frozenset[tuple[int, int]]  # (seq, attempt) of handlers that ran when it died


class Listener(Protocol):
    """Whoever waits for results in this process."""

    def ended(self, tasks: list[Ended]) -> None: ...
    def pruned(self, tasks: list[tuple[bytes, TaskNotFound]]) -> None: ...  # ended unheard: who waits gets the error

    def wants(self, id: bytes) -> bool:
        """Whether a task that another process ended is of interest here."""

    def awaited(self, most: int) -> list[bytes]:
        """Some of the tasks that somebody awaits now, for the safety look; others the next time."""

    def give_up(self, error: TaskError) -> None:
        """The store can't say any more how tasks end: whoever waits now gets the error."""


class Store(Protocol):
    """All methods belong to one event loop."""

    worker_id: str
    counts: StoreCounts

    async def open(self) -> None:
        """Open or create, migrate, register this process, and rescue what dead ones held."""

    async def close(self) -> None: ...

    def now_ms(self) -> int:
        """The store's clock: wall clock at open plus monotonic time, never below what is stored."""

    async def submit(self, tasks: Sequence[NewTask], line: Line | None = None) -> list[Accepted]:
        """Store all of them or none; durable on return. In a line: the first ones, as many as there is room for.

        Raises: TaskNotFound, Conflict, QueueFull, InvalidInput, StoreUnavailable, SubmitIndeterminate; Behind.
        """

    def when_ended(self, tell: Callable[[int], None]) -> None:
        """Call a function with how many tasks have just ended, here or elsewhere; with 0 where some may have."""

    def borrow(self, connection: Any) -> Any:
        """Take a user's connection for `submit_within`. Raises InvalidInput: it can't commit with this store."""

    async def submit_within(self, tasks: Sequence[NewTask], borrowed: Any) -> list[Pledged]:
        """Store the tasks in the transaction of a user's connection: they are there if and only if that commits.

        Raises: what `submit` does, as far as it can be told before that; and what the connection's driver raises.
        """

    async def has_come(self, id: bytes, origin: str) -> bool:
        """Return whether a task that was submitted within a user's transaction is there; false while that is open.

        Raises: TaskNotFound: it was rolled back.
        """

    async def register(
        self, types: Sequence[str], handlers: Sequence[HandlerRecord], slots: Mapping[str, int] | None = None
    ) -> None:
        """Tell other processes what this one serves, and how many attempts its lanes run at once."""

    def tell_usage(self, news: Callable[[], str | None]) -> None:
        """Have others told how full this machine is, as long as this process works: `news` is asked at each turn of the
        upkeep, and returns what there is to tell; see HostUsage."""

    async def usages(self) -> list[HostUsage]:
        """Return what the processes that work have told last."""

    def hold_queue(self, size: int | None, whose: str) -> None:
        """Take no more unfinished tasks than so many from now on; a refusal says whose limit that is."""

    async def registered_types(self) -> list[str]:
        """Return all types that any worker has served."""

    async def declared(self, kind: str) -> tuple[str, str] | None:
        """Return options and JSON Schema of a handler's arguments, as its newest worker registered them."""

    def serve(self, port: WorkerPort) -> None:
        """Begin to hand over claims."""

    def stop_serving(self) -> None:
        """Hand over no more."""

    def demand(self) -> None:
        """A lane has more room: look for ready tasks."""

    def ask(self, lane: Asker) -> bool:
        """A lane has had nothing to do for a while: where the store has nothing ready for it, and other processes hold
        claims of its types that may not have begun, ask those to release half of them (`WorkerPort.asked_to_share`).

        A hint, which may be lost, and which costs a look. Returns whether there are other processes at all.
        """

    def finish(self, finish: Finish, *, is_pressing: bool = True) -> None:
        """Record an outcome soon; the result is told by `ended` listeners or by `WorkerPort.lost`.

        One that does not press waits some milliseconds for others, or for whatever else is written first.
        """

    def started(self, claim: Claimed, started_ms: int) -> None:
        """Record that a handler runs, with the next commit."""

    def ms_at(self, monotonic: float) -> int:
        """The store's clock at a moment of the monotonic one."""

    def mark(self, slot: int, seq: int, attempt: int) -> None:
        """Note what runs in a slot (0, 0: nothing), for whoever has to judge after a crash of this process."""

    def is_revoked(self) -> bool:
        """Whether others took claims of this process back and `WorkerPort.revoked` has not told yet which: start none.

        Asking makes it tell soon.
        """

    def progress(self, claim: Claimed, done: float, total: float) -> None: ...

    def look_anew(self) -> None:
        """Some of what a lane withheld or passed over may be claimed again: look through all that is ready."""

    def offer(self, state: bytes) -> None:
        """Keep for `standing`, soon, what this worker says of tasks that lack resources: JSON of an `Offer` (see
        `sql/shortages.py`), or empty for nothing."""

    async def withdraw(self, claim: Claimed) -> bool:
        """Cancel a claim that has not started and never will; false when it was not held any more."""

    async def join(self, claim: Claimed, keep_ms: int) -> str:
        """Compare a claim that has not begun with equal work, by `claim.work`.

        Answer `leads`: it is the one that runs. `over`: it is held no more, as the result of equal work is its own, it
        waits for equal work, or somebody wants it cancelled. `lost`: it was not held.
        """

    async def kept(self) -> list[Kept]:
        """Return what the result cache holds, by namespace, type and version."""

    async def purge(self, *, namespace: str = "", type: str = "", version: str = "") -> int:
        """Forget kept results ('' is any); returns how many. Tasks that have ended keep theirs."""

    async def cancel(self, id: bytes) -> str:
        """Answer `cancelled`, `requested`, `held` (a worker must be asked) or `already(STATUS)`."""

    async def retry(self, id: bytes) -> bytes:
        """Make a new task of an ended one; returns its id."""

    async def pause(self, *, namespace: str = "", type: str = "", group: str = "") -> None: ...

    async def resume(self, *, namespace: str = "", type: str = "", group: str = "") -> int: ...

    async def limit(
        self, group: str, *, namespace: str = "", concurrency: int | None = None, rate: Rate | None = None,
        cost_rate: CostRate | None = None,
    ) -> None:  # fmt: skip
        """Set what a group may do, in a namespace or ('') in all of them together; None takes a limit off.

        What is held already stays so.
        """

    async def share(self, *, group: str = "", namespace: str = "", weight: float | None = None) -> None:
        """Give a group or, without one, a namespace a share of the lanes; None takes it away."""

    async def limits(self) -> list[GroupLimit]:
        """Return the limits that are set, with what they count now, by group."""

    def listen(self, listener: Listener) -> None:
        """Tell this one of ended tasks, wherever they ended."""

    async def info(self, id: bytes) -> TaskInfo: ...

    async def standing(self, id: bytes, *, in_line: bool = False) -> Standing:
        """Raises TaskNotFound. `in_line` also tells what goes before a ready task, of whatever kind."""

    async def stats(self) -> dict[str, Any]:
        """Return counts of tasks by status, by reason, and by type and status."""

    async def ledger(self, by: Collection[LedgerKey], since_ms: int | None) -> Ledger:
        """Return what the attempts that ended since then have cost, by these keys."""

    async def queued(self, most: int = 10_000) -> Queued:
        """Return what is ready; where that is more than so many tasks, of each class those that go first."""

    async def result(self, id: bytes) -> TaskResult | None: ...

    async def ended(self, ids: Sequence[bytes]) -> list[Ended]:
        """Return those that have ended."""

    async def require(self, ids: Sequence[bytes]) -> None:
        """Raises TaskNotFound for the first one that the store does not know."""

    async def list_tasks(
        self,
        *,
        status: TaskStatus | None = None,
        type: str | None = None,
        namespace: str | None = None,
        limit: int = 50,
        before: TaskId | None = None,
    ) -> list[TaskInfo]:
        """Return the newest first; the next page begins before the last id of this one."""
