"""One process as the test plays it: a worker with its code, and tasks as it gives them to a store."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple, cast

import msgspec
from tests.conformance.kit import OTHER, WORK, Port, new
from tests.model.words import Task, Work

from mainspring.results.cache import ResultCache
from mainspring.store.base import COSTS, HAS_REFS, WANTS_KEPT, Claimed, NewTask, Spec
from mainspring.tasks import Text
from mainspring.tasks.codec import encode

LANES = {"async": (WORK,), "thread": (OTHER,)}
UNSERVED = "custom:elsewhere"


class Worker(Port):
    """One process: a store, and the test as its worker, whose handlers are of one version."""

    def __init__(self, store: Any, version: str) -> None:
        super().__init__(store, 0, **LANES)
        self.name: str = store.worker_id
        self.version = version
        self.joining: set[bytes] = set()  # claims that are being compared with equal work
        self.begun: dict[bytes, int] = {}  # when the handlers of held claims began
        self.marked: dict[bytes, int] = {}  # in which slot one is marked
        self.must_miss = 0  # outcomes that must have been lost
        self.fresh: list[Claimed] = []  # handed over and not compared yet
        self.note()

    def wants(self, id: bytes) -> bool:
        return False  # ends in other processes are told there

    def claimed(self, claims: list[Claimed]) -> None:
        super().claimed(claims)
        self.fresh += sorted(claims, key=lambda claim: (claim.rank, claim.seq))

    def note(self) -> None:
        """All that was told so far has been compared."""
        self.taken = {name: lane.taken for name, lane in self.lanes.items()}

    def room_given(self) -> dict[str, int]:
        """What the lanes have room for, but for what was handed over since."""
        return {name: lane.limit + lane.released - self.taken[name] for name, lane in self.lanes.items()}

    def took(self, claim: Claimed) -> dict[tuple[str, str], int]:
        """Until when what a claim took of rates is not filled up, by limit, as its process remembers."""
        limits, number = cast(Any, self.store)._memory.limits, (claim.seq, claim.attempt)
        limited = [limit for limit in limits.of(claim.class_key) if limit.rate is not None]
        return {(limit.namespace, limit.group): limits._took[limit.id][number][1] for limit in limited}

    def lane_of(self, claim: Claimed) -> str:
        return next(name for name, types in LANES.items() if claim.class_key[1] in types)

    def running(self) -> frozenset[tuple[bytes, int]]:
        """What whoever judges a crash of this process finds: (task, attempt)."""
        return frozenset((id, self.held[id].attempt) for id in self.marked if id in self.held)

    def work_of(self, task: Task) -> Work:
        """What a task does, in the specification's words."""
        return (*task.kind[:2], task.payload, self.version)

    def let_go(self, claim: Claimed) -> None:
        self.held.pop(claim.id, None)
        self.begun.pop(claim.id, None)
        if (slot := self.marked.pop(claim.id, None)) is not None:
            self.store.mark(slot, 0, 0)


class Code(NamedTuple):
    """What a cache asks of those who run handlers."""

    types: dict[str, Any]
    handlers: dict[str, Any]


class Source(NamedTuple):
    version: str
    source_hash: str = "one"

    def check_kept(self) -> None:
        """It is told apart by its version."""


@cache
def names_of(version: str) -> ResultCache:
    """The cache of a process whose handlers are of that version: it tells which work is equal."""
    handlers = dict.fromkeys((WORK, OTHER), Source(version))
    return ResultCache(cast(Any, Code(handlers, handlers)), cast(Any, None))


def key_of(work: Work) -> bytes:
    namespace, kind, (text, n), version = work
    name = names_of(version).name(kind, namespace, None, _params(n), encode(Text(text))[0])
    assert name is not None
    return name.key


def _params(n: int | None) -> dict[str, int]:
    return {} if n is None else {"n": n}


def new_task(task: Task) -> NewTask:
    """The task as the store gets it. Its metadata is its own: two tasks may do the same work for different reasons."""
    namespace, type, group = task.kind
    text, n = task.payload
    metadata = {"number": task.id.hex()} if task.id[-1] % 2 else {}
    cost = None if task.cost == 1 else task.cost
    spec = Spec(params=_params(n), metadata=metadata, keep_ms=task.keep or None, cost=cost)
    return new(
        text, type=type, namespace=namespace, group=group, id=task.id, priority=task.priority,
        max_retries=task.max_retries, deadline_ms=task.deadline, not_before_ms=task.not_before, key=task.key,
        after=task.parents, policy=task.policy, keep_ms=task.keep,
        work=None if task.work is None else key_of(task.work),
        flags=(HAS_REFS if task.parents else 0) | (WANTS_KEPT if task.keep else 0) | (0 if cost is None else COSTS),
        spec=None if spec == Spec() else msgspec.msgpack.encode(spec),
    )  # fmt: skip
