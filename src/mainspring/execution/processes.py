"""The process lane: each attempt runs in a child process that can be killed without harm to anything else.

One child more than there are slots is kept warm, so that a killed one is replaced at once. A child that dies costs its
own attempt; the report says how it died. Quick attempts are sent ahead, so that no child need be woken for each: it
runs them one after the other, and what it has not begun with can be taken back.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import msgspec

from mainspring.children.child import Exit, Spawner
from mainspring.config import MIB, ExecutorConfig
from mainspring.environment import SYSTEM, Environment
from mainspring.errors import InternalError, InvalidInput, UnsupportedTaskType
from mainspring.execution.base import BatchReport, Channel, Report, Work
from mainspring.execution.child_frames import (
    Finished,
    FinishedBatch,
    Key,
    Loading,
    Note,
    Prepare,
    Ready,
    Stop,
    Store,
    Stored,
    decode_to_parent,
)
from mainspring.execution.directory import Entry, entry_of
from mainspring.execution.lines import ASKED, Attempt, Call, Desk, End, death, end_of, refused, unstarted
from mainspring.execution.places import Place, place_of
from mainspring.execution.shortage import Kills
from mainspring.processors.base import failure
from mainspring.processors.custom import Handler
from mainspring.tasks import ErrorInfo, Started, Task, TaskId, codec
from mainspring.tracing import Trace, Tracing

_PROGRAM = """import sys
sys.path[:] = sys.argv[1:-2]
from mainspring.children.guard import stand
stand(*sys.argv[-2:])
from mainspring.execution.child_main import main
main()"""
_END_GRACE_S = 1.0  # for the clean-up of an idle child that is not needed any more
_LONG_S = 0.02
"""Behind an attempt that takes longer nothing waits that was sent ahead."""
_LARGE_BYTES = 128 * MIB
"""A child that rests with less than this is not worth ending for its memory."""


class ProcessRunner:
    """Runs handlers in child processes: `slots` at a time, one attempt in each child, and up to `child_prefetch` ahead.

    Children are started when there is work, and are replaced after `child_recycle_tasks` attempts or when they have
    grown beyond `child_recycle_bytes`. Calls above `slots` wait for a child.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler],  # of the engine
        *,
        slots: int,
        config: ExecutorConfig | None = None,
        store_now: Callable[[Task], Awaitable[TaskId]] | None = None,
        environment: Environment = SYSTEM,
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing = tracing
        self.store_now = store_now
        self._slots = slots
        self._config = config or ExecutorConfig()
        self._environment = environment
        self._places: dict[str, Place] = {}
        self._entries: list[Entry] = []  # of all handlers of the engine, as children are told of them
        self._proven: dict[Place, None] = {}  # imported without harm before
        self._attempts: dict[Key, Attempt] = {}  # by name
        self._calls: dict[Key, Call] = {}  # of which halves may go on; the same
        self._waiting: deque[Attempt] = deque()
        self._assigning = False  # within this turn
        self._desks: set[Desk] = set()
        self._idle: list[Desk] = []
        self._background: set[asyncio.Task[Any]] = set()
        self._look: asyncio.TimerHandle | None = None  # for attempts that take long, while something waits behind one
        self._wanted = 0  # children, the spare one included
        self._spawner = Spawner()
        self._kills = Kills(env=environment)
        self._closing = False
        for handler in handlers.values():
            self.add(handler)

    def add(self, handler: Handler) -> None:
        """Have children submit calls of this handler, and serve it where this is its lane. Raises: InvalidInput."""
        if handler.lane == "process":
            self.serve(handler)
        if (entry := entry_of(handler)) is not None:
            self._entries.append(entry)

    def serve(self, handler: Handler) -> None:
        """Run this handler from now on, whatever its own lane is. Raises: InvalidInput: a child could not import it."""
        self._places[handler.task_type] = place_of(handler)

    async def run(self, work: Work, channel: Channel) -> Report:
        """Run one attempt in a child. Never raises for what a handler does, nor for what becomes of the child.

        A call that is cancelled kills its attempt.
        """
        return await self._through((work,), (channel,))  # type: ignore[return-value]  # that of a single work

    async def run_soon(self, work: Work, channel: Channel, until_s: float | None = None) -> Report | None:
        """Run one attempt, or return None: its child was busy for longer than foreseen, or died, before it began.

        In its child it does not begin after `until_s`; see `AheadRunner`.
        """
        return await self._through((work,), (channel,), soon=True, until_s=until_s)  # type: ignore[return-value]

    async def run_batch(self, works: Sequence[Work], channels: Sequence[Channel]) -> BatchReport:
        """Run attempts in one call in a child. Where that dies, halves go on in others: the guilty one dies alone.

        None begins any more once the call was asked to stop, or asks for a pause.
        """
        call = Call((works[0].id, works[0].attempt))
        self._calls[call.key] = call
        try:
            return await call.run(works, channels, self._through)
        finally:
            del self._calls[call.key]

    async def _through(
        self, works: Sequence[Work], channels: Sequence[Channel], *, soon: bool = False, until_s: float | None = None,
        call: Call | None = None,
    ) -> End:  # fmt: skip
        place = self._places.get(works[0].task_type)
        if place is None:
            return refused(UnsupportedTaskType(f"no handler for {works[0].task_type} in the process lane"))
        if self._closing:
            return unstarted("the process lane is closed")
        attempt = Attempt(works, channels, place, asyncio.get_running_loop().create_future(), soon, until_s, call=call)
        self._attempts[attempt.name] = attempt
        self._waiting.append(attempt)
        self._assign()
        try:
            return await attempt.ended
        finally:
            if attempt.ended.cancelled():
                self._stop(attempt.name, hard=True)

    def ahead(self) -> list[Work]:
        """Return what waits behind another in a child, and what no child is free for."""
        sent = [attempt for desk in self._desks for attempt in islice(desk.attempts, 1, None) if attempt.soon]
        return [attempt.works[0] for attempt in (*sent, *self._surplus())]

    def give_back(self, works: Sequence[Work]) -> None:
        """Give back those of these that no child has begun with; what else is in their lines waits for any child."""
        wanted = {id(work) for work in works}
        for desk in self._desks:
            if any(id(attempt.works[0]) in wanted for attempt in desk.attempts):
                self._take_back(desk)
        for attempt in [attempt for attempt in self._waiting if id(attempt.works[0]) in wanted]:
            self._waiting.remove(attempt)
            self._settle(attempt, None)
        self._assign()

    def stop(self, work: Work, *, hard: bool) -> bool:
        """Set the handler's `ctx.cancelled`; `hard` kills its child and all that it started."""
        return self._stop((work.id, work.attempt), hard=hard)

    def _stop(self, name: Key, *, hard: bool) -> bool:
        if (call := self._calls.get(name)) is not None:
            call.stop()
        attempt = self._attempts.get(name)
        if attempt is None:
            return True
        desk = attempt.desk
        if desk is None:
            self._waiting.remove(attempt)
            self._settle(attempt, unstarted(ASKED))
            return True
        attempt.asked = True
        self._take_back(desk)
        self._assign()
        if name not in self._attempts:
            return True
        if hard and desk.child is not None:
            attempt.killed = True
            desk.child.kill()
            return True
        desk.send(Stop(*attempt.key))
        return False

    def children(self) -> dict[int, Key | None]:
        """Return which attempt each child runs, by its pid; None: it rests."""
        return {
            desk.child.pid: desk.attempts[0].name if desk.attempts else None
            for desk in self._desks
            if desk.child is not None
        }

    def relieve(self) -> None:
        """End the children that rest and hold much memory: others come when they are needed."""
        for desk in [desk for desk in self._idle if desk.resident_bytes > _LARGE_BYTES]:
            self._retire(desk)

    async def close(self) -> None:
        """End all children. Attempts that still run are killed."""
        self._closing = True
        if self._look is not None:
            self._look.cancel()
        for name in list(self._attempts):
            self._stop(name, hard=True)
        for desk in list(self._desks):
            self._retire(desk)
        while self._background:
            await asyncio.wait(self._background)
        self._spawner.close()

    def _assign(self) -> None:
        """In this turn of the loop, give waiting attempts to children, and see to it that there are enough of them."""
        if not self._assigning:
            self._assigning = True
            asyncio.get_running_loop().call_soon(self._assign_all)

    def _assign_all(self) -> None:
        self._assigning = False
        given = set()
        lines = [desk for desk in self._desks if self._takes_more(desk)]
        while self._waiting and (desk := self._next_desk(self._waiting[0], lines)) is not None:
            given.add(desk)
            if not self._give(self._waiting.popleft(), desk) or desk not in lines or not self._takes_more(desk):
                lines = [desk for desk in self._desks if self._takes_more(desk)]
        for desk in given:
            desk.tickets.give()
        self._look_again()
        demand = min(self._slots, self._busy() + len(self._waiting))
        self._wanted = max(self._wanted, demand + 1)  # and never fewer again: what was needed once is soon needed again
        while len(self._desks) < self._wanted and not self._closing:
            try:
                desk = Desk(self._kills.so_far())
            except OSError as exc:  # no descriptor is left
                self._start_failed(f"could not be started: {exc}")
                return
            self._desks.add(desk)
            self._in_background(self._spawn(desk))

    def _busy(self) -> int:
        return sum(bool(desk.attempts) for desk in self._desks)

    def _next_desk(self, attempt: Attempt, lines: list[Desk]) -> Desk | None:
        """Return the child for it: an idle one, else the one that comes to it first, where it may be sent ahead."""
        if self._idle and self._busy() < self._slots:
            return self._idle.pop()
        return min(lines, key=lambda desk: len(desk.attempts), default=None) if attempt.soon else None

    def _takes_more(self, desk: Desk) -> bool:
        return (
            0 < len(desk.attempts) <= self._config.child_prefetch
            and desk.attempts[0].soon
            and not self._takes_long(desk.attempts[0])
            and not desk.leaves
            and desk.tasks < self._config.child_recycle_tasks
            and desk.child is not None
            and desk.child.usable
        )

    def _give(self, attempt: Attempt, desk: Desk) -> bool:
        """Send it to its child; returns whether that could be: else it is over."""
        attempt.ticket = desk.tickets.issue()  # before its frame: what comes without one was taken back
        attempt.oom_kills = desk.oom_kills = self._kills.so_far()
        attempt.desk = desk
        desk.attempts.append(attempt)
        desk.tasks += 1
        desk.tell(self._entries)
        try:
            desk.send(attempt.frame)
        except InvalidInput as exc:
            desk.attempts.pop()
            self._settle(attempt, refused(exc))
            self._rest(desk)
            return False
        return True

    def _rest(self, desk: Desk) -> None:
        """Where it has nothing to do, have it take the next attempt, or its share of what others have ahead."""
        if desk.attempts or desk.child is None or not desk.child.usable:
            return
        self._idle.append(desk)
        self._share()

    # Attempts are sent ahead, and taken back

    def _share(self) -> None:
        """Take back what waits in the longest line, so that all get of it again."""
        longest = max(self._desks, key=lambda desk: len(desk.attempts), default=None)
        if longest is not None and len(longest.attempts) > 1 and not self._waiting and self._busy() < self._slots:
            self._take_back(longest)

    def _take_back(self, desk: Desk) -> None:
        """Have attempts that its child has not begun with wait for any child."""
        self._waiting.extendleft(reversed(self._unbegun(desk)))

    def _give_back(self, desk: Desk) -> None:
        """Give back the attempts that its child has not begun with: it won't soon."""
        for attempt in self._unbegun(desk):
            self._settle(attempt, None)

    def _unbegun(self, desk: Desk) -> list[Attempt]:
        """Return attempts that its child does not begin with any more; those that were asked to stop are over."""
        tickets = set(desk.tickets.take_back())
        taken = [attempt for attempt in desk.attempts if attempt.ticket in tickets]
        desk.attempts = deque(attempt for attempt in desk.attempts if attempt.ticket not in tickets)
        if taken and not desk.attempts and desk.child is not None and desk.child.usable:
            self._idle.append(desk)
        for attempt in taken:
            attempt.desk = None
            if attempt.asked:
                self._settle(attempt, unstarted(ASKED))
        return [attempt for attempt in taken if not attempt.asked]

    def _takes_long(self, attempt: Attempt) -> bool:
        if attempt.started_s is None:
            return attempt.loading
        return self._environment.monotonic() - attempt.started_s >= _LONG_S

    def _look_for_long(self) -> None:
        self._look = None
        held_up = [desk for desk in self._desks if desk.attempts and self._takes_long(desk.attempts[0])]
        for desk in held_up:
            self._give_back(desk)
        if len(held_up) >= self._slots:
            for attempt in self._surplus():
                self._waiting.remove(attempt)
                self._settle(attempt, None)
        self._look_again()

    def _surplus(self) -> list[Attempt]:
        """Return attempts that wait for a child beyond the slots: others than whoever sends ahead may hold children."""
        soon = [attempt for attempt in self._waiting if attempt.soon]
        held = sum(bool(desk.attempts) and desk.attempts[0].soon for desk in self._desks)
        return soon[max(0, self._slots - held) :]

    def _look_again(self) -> None:
        """See to it that nothing waits for long behind an attempt that is not quick."""
        if self._look is None and (any(len(desk.attempts) > 1 for desk in self._desks) or self._surplus()):
            self._look = asyncio.get_running_loop().call_later(_LONG_S, self._look_for_long)

    def _settle(self, attempt: Attempt, report: End) -> None:
        if attempt.patience is not None:
            attempt.patience.cancel()
        del self._attempts[attempt.name]  # before anybody can ask to stop it: its child may have other work by then
        if not attempt.ended.done():
            attempt.ended.set_result(report)

    def _in_background(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # Children come ...

    async def _spawn(self, desk: Desk) -> None:
        try:
            desk.child = await self._spawner.spawn(
                (sys.executable, "-P", "-c", _PROGRAM, *map(str, sys.path)),
                on_frame=partial(self._hear, desk),
                on_exit=partial(self._ended, desk),
                keep_output=self._config.child_stderr_bytes,
                descriptors=(desk.tickets.descriptor,),
                guarded=True,
            )
        except OSError as exc:
            desk.tickets.close()
            self._desks.discard(desk)
            self._start_failed(f"could not be started: {exc}")
            return
        if self._closing:
            await desk.child.end(_END_GRACE_S)
            return
        desk.patience = asyncio.get_running_loop().call_later(self._config.child_start_timeout_s, desk.child.kill)
        desk.set_up(self._config.traceback_chars, is_traced=self._tracing is not None)

    def _ready(self, desk: Desk, frame: Ready) -> None:
        desk.ready = True
        desk.cpu_s = frame.cpu_s
        if desk.patience is not None:
            desk.patience.cancel()
        if self._proven:
            desk.send(Prepare(tuple(self._proven)))
        self._idle.insert(0, desk)  # those that have worked before are taken first
        self._share()
        self._assign()

    def _start_failed(self, how: str, output: str = "") -> None:
        """Where no child is left, the waiting attempts fail of it: nothing is tried for ever."""
        while self._waiting and not self._desks:
            error = ErrorInfo(type="ProcessingFailed", message=f"a child process {how}", traceback=output or None)
            self._settle(self._waiting.popleft(), Report(error=error))

    # ... talk ...

    def _hear(self, desk: Desk, data: bytes) -> None:
        try:
            frame = decode_to_parent(data)
        except msgspec.DecodeError:  # a handler wrote into our pipe: nothing that comes from there can be trusted
            if desk.child is not None:
                desk.child.kill()
            return
        attempt = desk.attempts[0] if desk.attempts else None
        if isinstance(frame, Ready):
            self._ready(desk, frame)
        elif attempt is None or (index := attempt.index_of((frame.id, frame.attempt))) is None:
            return  # a thread that outlived its handler
        elif isinstance(frame, FinishedBatch) or (isinstance(frame, Finished) and len(attempt.works) == 1):
            self._finished(desk, attempt, frame)
        elif isinstance(frame, Note) and isinstance(frame.signal, Started):
            self._started(attempt)
        elif isinstance(frame, Note | Finished):
            attempt.hear(index, frame)
        elif isinstance(frame, Loading):
            attempt.loading = True
            limit_s = self._config.child_start_timeout_s
            attempt.patience = asyncio.get_running_loop().call_later(limit_s, self._lose_patience, attempt)
        else:
            self._in_background(self._store(desk, frame, attempt.works[0].trace))

    def _started(self, attempt: Attempt) -> None:
        attempt.begin(self._environment.monotonic())
        self._proven[attempt.place] = None

    def _lose_patience(self, attempt: Attempt) -> None:
        """Its handler's module does not come to the end of its import."""
        if attempt.desk is not None and attempt.desk.child is not None:
            attempt.too_slow = True
            attempt.desk.child.kill()

    def _finished(self, desk: Desk, attempt: Attempt, frame: Finished | FinishedBatch) -> None:
        end = end_of(frame)
        self._settle(attempt, self._kills.behind(end, attempt.oom_kills) if isinstance(end, Report) else end)
        desk.cpu_s = frame.cpu_s
        desk.resident_bytes = frame.resident_bytes or desk.resident_bytes
        desk.attempts.popleft()
        if isinstance(frame, Finished) and frame.begins is not None:
            self._started(desk.attempts[0])
        too_large = (frame.resident_bytes or 0) > self._config.child_recycle_bytes
        if too_large and not desk.leaves:
            desk.leaves = True
            self._take_back(desk)
        if not desk.attempts and (desk.leaves or desk.tasks >= self._config.child_recycle_tasks):
            self._retire(desk)
        else:
            self._rest(desk)
        self._assign()

    async def _store(self, desk: Desk, frame: Store, trace: Trace | None) -> None:
        if self._tracing is not None and trace is not None:
            self._tracing.enter(trace)  # in this asyncio task, which is made for this alone
        try:
            if self.store_now is None:
                raise InternalError("nobody stores tasks here")
            id = await self.store_now(codec.convert(codec.decode(frame.task), Task, "task"))
        except Exception as exc:  # noqa: BLE001 - the handler that waits for it gets it
            desk.send(Stored(frame.number, None, failure(exc).error))
        else:
            desk.send(Stored(frame.number, id.bytes))

    # ... and go

    def _retire(self, desk: Desk) -> None:
        self._desks.discard(desk)
        if desk in self._idle:
            self._idle.remove(desk)
        if desk.child is not None:
            self._in_background(desk.child.end(_END_GRACE_S))

    def _ended(self, desk: Desk, exit: Exit) -> None:
        """A child has ended, by itself or by us."""
        self._desks.discard(desk)
        if desk in self._idle:
            self._idle.remove(desk)
        if desk.patience is not None:
            desk.patience.cancel()
        desk.tickets.close()
        shortage = None if desk.is_killed else self._kills.after(exit.signal, desk.oom_kills_before)
        if desk.attempts:
            attempt, limit_s = desk.attempts.popleft(), self._config.child_start_timeout_s
            self._settle(attempt, death(desk, attempt, exit, limit_s, self._environment, shortage))
            while desk.attempts:
                self._settle(desk.attempts.popleft(), None)
            self._assign()
        elif not desk.ready and not self._closing:
            self._start_failed(f"{exit} before it was ready", exit.output)
