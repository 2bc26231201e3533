"""What every store that keeps tasks in tables does: calls go to its writer, news of commits to whoever wants them."""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from mainspring.blobs.base import BlobStore
from mainspring.config import StoreConfig
from mainspring.environment import Environment
from mainspring.errors import InternalError, InvalidInput, StoreUnavailable, TaskError, invalid
from mainspring.store.base import (
    Accepted,
    Claimed,
    Finish,
    HandlerRecord,
    HostUsage,
    Kept,
    Line,
    Listener,
    NewTask,
    Pledged,
    WorkerPort,
)
from mainspring.store.bell import ENDED, GONE, HASTE, HELLO, LOOK, SHARE, STOP, WELCOME, Bell, split_ids
from mainspring.store.clock import StoreClock
from mainspring.store.liveness import Life
from mainspring.store.pace import Pace
from mainspring.store.ready import Asker
from mainspring.store.sql import commands, leaving, limited, reads, sharing, upkeep
from mainspring.store.sql.looking import Looking
from mainspring.store.sql.operations import Command, Group, Started
from mainspring.store.sql.outage import OutageLog
from mainspring.store.sql.queueing import Submission
from mainspring.store.sql.reads import View
from mainspring.store.sql.shortages import Offer, offer_of
from mainspring.store.sql.transaction import Applier, ClassKey, Memory, Transaction
from mainspring.store.sql.writer import Writer
from mainspring.tasks import CostRate, GroupLimit, Rate, TaskId
from mainspring.tasks.texts import check_text

logger = logging.getLogger("mainspring.store")
T = TypeVar("T")
_LOOK_IDS = 2_000
RETRY_S, MOST_RETRY_S = 0.1, 3.2
"""How long after a failed write the next try comes by itself: each time twice as long, up to the second."""


_LAID_S = 0.003
"""How long an end that does not press waits for others to be written with."""


class SqlStore(Looking):
    """See `store.base.Store` for the contract. A store brings the connections, and how processes see one another."""

    blobs: BlobStore
    identity: str  # tells a store from all others; known when it is open
    _writer: Writer
    _bell: Bell
    _life: Life | None = None
    _loop: asyncio.AbstractEventLoop

    def __init__(
        self,
        config: StoreConfig,
        env: Environment,
        *,
        queue_size: int | None,
        look_s: float,
        grace_s: float,
        appliers: Mapping[type, Applier] | None,
    ) -> None:
        self.config = config
        self.env = env
        self.grace_s = grace_s
        self.worker_id = env.random_bytes(6).hex()
        self.outage = OutageLog(env)
        self._memory = Memory(config)
        self.fresh_ms = self._memory.fresh_ms  # retention leaves alone what ended within this time
        self._memory.queue_size = queue_size
        self.counts = self._memory.counts
        self._pace = Pace(env.monotonic(), look_s)
        self._memory.seconds_for = lambda ends: self._pace.seconds_for(ends, env.monotonic())
        self._tell_ends: Callable[[int], None] = lambda ends: None
        self._memory.appliers = dict(appliers or {})
        self._revoked = 0  # how often others took claims back, as far as the worker has been told
        self._recounting: asyncio.Future[None] | None = None
        self._port: WorkerPort | None = None
        self._closed = True
        self._was_open = False
        self._told_pauses: frozenset[tuple[str, str, str]] = frozenset()
        self._listener: Listener | None = None
        self._progress: dict[int, tuple[Claimed, float, float]] = {}
        self._usage_news: Callable[[], str | None] | None = None
        self.offered = b""  # what the worker says of tasks that it does not start,
        self.tell_soon: Callable[[], None] = lambda: None  # and who is told when it says something else
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms: int | None = None
        self._laid: asyncio.TimerHandle | None = None
        self.clock = StoreClock(env)

    def _opens(self) -> None:
        """Begin to take calls on the loop that runs."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = self.env.thread_ident()
        self._closed, self._was_open = False, True
        self._laid = None  # it was another loop's

    # What a store brings

    @abstractmethod
    async def open(self) -> None: ...

    @abstractmethod
    async def close(self) -> None: ...

    @abstractmethod
    def view_soon(self, run: Callable[[View], T], then: Callable[[T], None]) -> None:
        """The same, without waiting; the answer goes to `then`, on the loop."""

    # Time

    def now_ms(self) -> int:
        return self.clock.now_ms()

    def ms_at(self, monotonic: float) -> int:
        return self.clock.ms_at(monotonic)

    def view_from_thread(self, run: Callable[[Any], T]) -> T:
        """Like `view`, blocking, for threads other than the loop's."""
        return self.env.on_loop(self._loop, self.view(run))

    # Calls

    def _refuse_closed(self) -> None:
        if self._closed and not self._was_open:
            why = "the store is not open yet; use `async with engine:`, or `await engine.start()` or `manager.start()`"
            raise InvalidInput(why, field="start")
        if self._closed:
            raise StoreUnavailable("the store is closed; open it again with a new engine")

    async def submit(self, tasks: Sequence[NewTask], line: Line | None = None) -> list[Accepted]:
        self._refuse_closed()
        submission = Submission(tasks, self._loop.create_future(), line)
        self._writer.put(submission)
        return await submission.future

    def when_ended(self, tell: Callable[[int], None]) -> None:
        self._tell_ends = tell

    def _ends(self, n: int) -> None:
        self._pace.add(n, self.env.monotonic())
        self._tell_ends(n)

    def borrow(self, connection: Any) -> Any:
        raise invalid(
            "connection",
            f"{type(connection).__module__}.{type(connection).__qualname__}",
            "can't commit together with a store in a file",
            'open the engine on the Postgres database that it leads to, Engine("postgresql://..."), or submit '
            "after the commit, without it",
        )

    async def submit_within(self, tasks: Sequence[NewTask], borrowed: Any) -> list[Pledged]:
        raise InternalError(f"tasks for a connection that was never taken ({borrowed}); please report this")

    async def has_come(self, id: bytes, origin: str) -> bool:
        raise InternalError(f"task {TaskId(id)} can't come from a transaction ({origin}); please report this")

    async def write(self, run: Callable[[Transaction], T], *, is_light: bool = False) -> T:
        """Run a function in the next transaction; for the rooms that own tables beside the tasks'."""
        self._refuse_closed()
        return await self._write_soon(run, is_light=is_light)

    async def _write_soon(self, run: Callable[[Transaction], T], *, is_light: bool = False) -> T:
        command = Command(run, self._loop.create_future(), is_light=is_light)
        self._writer.put(command)
        return await command.future  # type: ignore[no-any-return]

    async def _leave(self) -> None:
        """Take no more calls, hand back what is held, and be gone in a commit of its own, which has nothing to tell:
        whoever dies before it tells of a commit is missed only while it is not gone."""
        if self._closed:
            return
        self._closed = True
        self._ends(0)  # whoever waits for room waits for nothing
        self._writer.leave()
        try:
            await self._write_soon(lambda tx: leaving.hand_back(tx, tx.memory.owner))
            await self._write_soon(self._sign_off)
        except TaskError as exc:  # it counts as dead then: others take back what it held
            logger.warning("worker %s could not sign off: %s", self.worker_id, exc)

    def _sign_off(self, tx: Transaction) -> None:
        leaving.sign_off(tx, tx.memory.owner, has_served=self._port is not None)

    def write_from_thread(self, run: Callable[[Any], T]) -> T:
        """Like `write`, blocking, for threads other than the loop's. Raises InvalidInput on the loop's own."""
        self._refuse_closed()
        if self.env.thread_ident() == self._loop_thread:
            why = "this write would block the event loop for ever; await asyncio.to_thread(...), or the engine's method"
            raise InvalidInput(why, field="write")
        return self.env.on_loop(self._loop, self.write(lambda tx: run(tx.cursor)))

    async def cancel(self, id: bytes) -> str:
        return await self.write(lambda tx: commands.cancel(tx, id))

    async def withdraw(self, claim: Claimed) -> bool:
        return await self.write(lambda tx: commands.withdraw(tx, claim), is_light=True)

    async def join(self, claim: Claimed, keep_ms: int) -> str:
        return await self.write(lambda tx: commands.join(tx, claim, keep_ms))

    async def kept(self) -> list[Kept]:
        return await self.view(reads.kept)

    async def purge(self, *, namespace: str = "", type: str = "", version: str = "") -> int:
        for field, name in (("namespace", namespace), ("type", type), ("version", version)):
            check_text(field, name)
        await self.write(lambda tx: commands.audit(tx, "purge", namespace=namespace, type=type, version=version))
        total, n = 0, upkeep.STEP
        while n == upkeep.STEP:
            n = await self.write(lambda tx: commands.purge(tx, namespace, type, version))
            total += n
        return total

    async def retry(self, id: bytes) -> bytes:
        new_id = self.env.new_id()
        return await self.write(lambda tx: commands.retry(tx, id, new_id))

    async def pause(self, *, namespace: str = "", type: str = "", group: str = "") -> None:
        who = f"process {self.env.pid()} on {self.env.host()}"
        await self._change_pauses(lambda tx: commands.pause(tx, namespace, type, group, who))

    async def resume(self, *, namespace: str = "", type: str = "", group: str = "") -> int:
        return await self._change_pauses(lambda tx: commands.resume(tx, namespace, type, group))

    async def limit(
        self, group: str, *, namespace: str = "", concurrency: int | None = None, rate: Rate | None = None,
        cost_rate: CostRate | None = None,
    ) -> None:  # fmt: skip
        await self.write(lambda tx: commands.limit(tx, namespace, group, concurrency, rate, cost_rate))
        self._bell.ring(LOOK)

    async def share(self, *, group: str = "", namespace: str = "", weight: float | None = None) -> None:
        await self.write(lambda tx: commands.share(tx, namespace, group, weight))
        self._bell.ring(LOOK)

    async def limits(self) -> list[GroupLimit]:
        return await self.view(lambda view: limited.limits(view, self.now_ms()))

    async def _change_pauses(self, run: Callable[[Transaction], T]) -> T:
        self._refuse_closed()
        changing = self._loop.create_task(self.write(run), name="pauses")
        changing.add_done_callback(self._reload_pauses)
        return await asyncio.shield(changing)  # who asked may leave; the change is acted on all the same

    def _reload_pauses(self, _changed: asyncio.Task[Any]) -> None:
        self._writer.look_anew()
        self._bell.ring(LOOK)

    async def register(
        self, types: Sequence[str], handlers: Sequence[HandlerRecord], slots: Mapping[str, int] | None = None
    ) -> None:
        await self.write(lambda tx: commands.register(tx, types, handlers, slots or {}))

    def tell_usage(self, news: Callable[[], str | None]) -> None:
        self._usage_news = news

    def take_usage(self) -> str | None:
        """Return what there is to tell others of this machine."""
        return None if self._usage_news is None or not self._memory.lanes else self._usage_news()

    async def usages(self) -> list[HostUsage]:
        return await self.view(reads.usages)

    def hold_queue(self, size: int | None, whose: str) -> None:
        self._memory.queue_size, self._memory.whose_queue = size, whose

    async def registered_types(self) -> list[str]:
        return await self.view(reads.registered_types)

    async def declared(self, kind: str) -> tuple[str, str] | None:
        return await self.view(lambda view: reads.declared(view, kind))

    # The worker's side

    def serve(self, port: WorkerPort) -> None:
        self._port = port
        self._memory.lane_of_type = {kind: lane for lane in port.lanes.values() for kind in lane.types}
        self._memory.lanes = dict(port.lanes)
        self._writer.look_anew()

    def stop_serving(self) -> None:
        self._memory.lanes = {}
        self._memory.lane_of_type = {}

    def demand(self) -> None:
        self._writer.kick()

    def ask(self, lane: Asker) -> bool:
        if self._closed or not self._bell.has_peers:
            return False
        if lane.ready:
            self._writer.kick()
        elif lane.types:
            owner = self._memory.owner
            self.view_soon(lambda view: reads.claimed_elsewhere(view, owner), lambda held: self._ask_for(lane, held))
        return True

    def _ask_for(self, lane: Asker, held: list[tuple[int, int, ClassKey]]) -> None:
        message = sharing.request(self._memory, lane, held)
        if message is not None and not self._closed:
            self._bell.ring(SHARE, message)

    def finish(self, finish: Finish, *, is_pressing: bool = True) -> None:
        if is_pressing:
            self._writer.put(finish)
            return
        self._writer.lay(finish)
        if self._laid is None:
            self._laid = self._loop.call_later(_LAID_S, self._take_up)

    def _take_up(self) -> None:
        self._laid = None
        if self._writer.has_more:
            self._writer.kick()

    def started(self, claim: Claimed, started_ms: int) -> None:
        self._writer.put(Started(claim, started_ms))

    @property
    def mark(self) -> Callable[[int, int, int], None]:
        assert self._life is not None
        return self._life.mark

    def is_revoked(self) -> bool:
        assert self._life is not None
        return self._life.revoked != self._revoked and self._ask_what_is_held()

    def _ask_what_is_held(self) -> bool:
        """Have the worker told soon; returns that it has not been yet."""
        if self._recounting is None or self._recounting.done():
            self._recounting = self._loop.create_future()
            self._recounting.add_done_callback(asyncio.Future.exception)  # an outage: the next call tries again
            self._writer.put(Command(self._recount, self._recounting, is_light=True))
        return True

    def _recount(self, tx: Transaction) -> None:
        assert self._life is not None
        tx.held = (self._life.revoked, frozenset(tx.run("claims_of", tx.memory.owner).fetchall()))

    def progress(self, claim: Claimed, done: float, total: float) -> None:
        """Keep the newest value; the caretaker writes it with the next tick."""
        self._progress[claim.seq] = (claim, done, total)

    def take_progress(self) -> list[tuple[Claimed, float, float]]:
        taken, self._progress = list(self._progress.values()), {}
        return taken

    def look_anew(self) -> None:
        self._writer.look_anew()

    def offer(self, state: bytes) -> None:
        """Keep the newest; the caretaker writes it at once, where it has not just written one."""
        self.offered = state
        self.tell_soon()

    def told(self) -> tuple[str, Offer] | None:
        return self.worker_id, offer_of(self.offered)

    # News

    def listen(self, listener: Listener) -> None:
        self._listener = listener

    def _committed_soon(self, tx: Transaction, group: Group, next_event_ms: int | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._committed, tx, group, next_event_ms)
        except RuntimeError:
            if not self._loop.is_closed():  # else nobody is left to be told
                raise

    def _committed(self, tx: Transaction, group: Group, next_event_ms: int | None) -> None:
        if tx.ended:
            self._ends(len(tx.ended))
        for call in group.calls:
            if call.future.done():
                continue
            if call.error is not None:
                call.future.set_exception(call.error)
            else:
                call.future.set_result(call.result)
        if self._port is not None:
            self._tell_worker(self._port, tx)
        if tx.ended and self._listener is not None:
            self._listener.ended(tx.ended)
        if self._bell.has_peers:
            self._ring(tx)
        self._arm(next_event_ms)

    def _tell_worker(self, port: WorkerPort, tx: Transaction) -> None:
        if tx.held is not None:  # the claims of earlier commits have been handed over by now, those of this one follow
            self._revoked, held = tx.held
            port.revoked(held)
        if tx.claims:
            port.claimed(tx.claims)
        if tx.lost:
            port.lost(tx.lost)
        if tx.stop_asked:
            port.asked_to_stop(tx.stop_asked)
        if tx.hastened:
            port.hastened(tx.hastened)
        if self._memory.pauses is not self._told_pauses:
            self._told_pauses = self._memory.pauses
            if self._told_pauses:
                port.paused(self._memory.is_paused)

    def _ring(self, tx: Transaction) -> None:
        if tx.ready:
            self._bell.ring(LOOK)
        if tx.ended:
            self._bell.ring_ids(ENDED, (ended.id for ended in tx.ended))
        if tx.stop_asked:
            self._bell.ring_ids(STOP, tx.stop_asked)
        for message in sharing.hastenings(tx.hastened):
            self._bell.ring(HASTE, message)

    def _heard(self, kind: bytes, payload: bytes) -> None:
        if kind in (LOOK, HELLO):
            self._writer.kick()
        elif kind in (WELCOME, GONE):
            self.look()
        elif kind == STOP and self._port is not None:
            self._port.asked_to_stop(split_ids(payload))
        elif kind == HASTE and self._port is not None:
            self._port.hastened(sharing.hastened(payload))
        elif kind == SHARE and self._port is not None:
            if (asked := sharing.requested(self._memory, payload)) is not None:
                self._port.asked_to_share(*asked)
        elif kind == ENDED:
            ids = split_ids(payload)
            self._ends(len(ids))
            if self._listener is not None:
                wants = self._listener.wants
                self._tell_of([id for id in ids if wants(id)])

    def _tell_of(self, ids: list[bytes]) -> None:
        """Look up tasks that others ended, and tell the listener, also of those that were pruned before it heard."""
        listener = self._listener
        if not ids or listener is None:
            return
        self.view_soon(lambda view: reads.ended(view, ids), listener.ended)
        old = max(0, self.now_ms() - self._memory.fresh_ms).to_bytes(6, "big")  # younger ones are not pruned
        if elders := [id for id in ids if id < old]:
            self.view_soon(lambda view: upkeep.buried(view, elders), listener.pruned)

    def look(self) -> None:
        """The safety look beside the wake-ups: for claims, awaited tasks that others ended, cancels, and room."""
        self._writer.kick()
        self._ends(0)
        if self._listener is not None:
            self._tell_of(self._listener.awaited(_LOOK_IDS))
        if self._port is not None:
            owner = self._memory.owner
            self.view_soon(lambda view: reads.asked_to_stop(view, owner), self._port.asked_to_stop)

    def missed(self) -> None:
        """A process is gone, and with it what it may have had to tell of its last commits: have all look for it."""
        self._bell.ring(GONE)
        self.look()

    def _arm(self, next_event_ms: int | None) -> None:
        """Wake the writer when the next delay ends or deadline passes."""
        if next_event_ms == self._timer_ms:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_ms, self._timer = next_event_ms, None
        if next_event_ms is not None:
            delay = max(0.0, (next_event_ms - self.now_ms()) / 1000) + 0.001
            self._timer = self._loop.call_later(min(delay, 3600.0), self._due)

    def _due(self) -> None:
        self._timer = self._timer_ms = None
        self._writer.kick()

    def _retry_soon(self, before: int) -> None:
        delay = min(RETRY_S * 2 ** min(before, 16), MOST_RETRY_S)
        self._loop.call_soon_threadsafe(self._loop.call_later, delay, self._writer.kick)
