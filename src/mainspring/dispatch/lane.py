"""A lane's desk: claims wait here in the one order, and slots take them as they fall free."""

from __future__ import annotations

import asyncio
from bisect import insort
from collections import deque
from collections.abc import Awaitable, Callable, Container
from itertools import islice
from typing import Any, cast

from mainspring.config import TaskManagerConfig, seconds
from mainspring.dispatch.asking import Asking
from mainspring.dispatch.desk import Desk, Stage, place
from mainspring.dispatch.gathering import Gathering
from mainspring.environment import Environment
from mainspring.execution.base import AheadRunner, Runner
from mainspring.processors.base import Lane as LaneName
from mainspring.store.base import Claimed, Store
from mainspring.store.lane import Lane
from mainspring.tasks.needs import NOTHING, Need, Passes

_RATE_WINDOW_S = 0.05
_SLICE_S = 0.005
_REVOKED_S = 0.01
_STEP_BACK_S = 0.05
"""How long nothing is claimed ahead after claims were given away: whoever asked for them is on its way."""


class Ports:
    """What a lane asks others for: all that its slots could begin."""

    def __init__(self, desk: LaneDesk) -> None:
        self._desk = desk

    @property
    def taken(self) -> int:
        return sum(port.taken for port in self._desk.ports)

    @property
    def ready(self) -> list[Lane]:
        return [port for port in self._desk.ports if port.ready]

    @property
    def types(self) -> frozenset[str]:
        return frozenset().union(*(port.types - port.withheld.keys() for port in self._desk.ports if port.room() > 0))

    @property
    def passes(self) -> Passes:
        told = [port.passes for port in self._desk.ports if port.passes.types]
        types = {kind: need for passes in told for kind, need in passes.types.items()}
        return Passes(told[0].has, types) if told else NOTHING

    @property
    def spare(self) -> Need:
        return self._desk.spare()


class LaneDesk(Desk):
    """Slots are asyncio tasks that live as long as the lane: none is made for a claim.

    They also take the calls that the gatherings of this lane have ready, in the one order. A gathering may have a slot
    of its own beside them, for while all others are busy. With `ahead` there are that many more for each of the lane's
    slots, for a runner that takes quick claims before it can run them.
    """

    def __init__(
        self,
        name: LaneName,
        slots: int,
        runner: Callable[[], Runner],
        store: Store,
        config: TaskManagerConfig,
        env: Environment,
        serve: Callable[[LaneDesk, Claimed, int, asyncio.Task[Any]], Awaitable[bool] | None],
        broken: Callable[[Desk, Claimed, Exception], None],
        loop_ends: Callable[[], bool],
        first_mark: int,
        spare: Callable[[], Need],
        ahead: int = 0,
    ) -> None:
        super().__init__(name, name, runner, store, env)
        self.slots = slots
        self.ahead = ahead
        self.spare = spare
        self.gatherings: list[Gathering] = []
        self._config = config
        self._prefetch_s = seconds(config.prefetch_s, "prefetch_s")
        self._serve = serve
        self._broken = broken
        self._loop_ends = loop_ends
        self._queue: deque[Claimed] = deque()  # in the one order
        self._idle: deque[asyncio.Future[None]] = deque()
        self._tasks: dict[asyncio.Task[None], Gathering | None] = {}  # slots, and whose own they are
        self._next_mark = first_mark
        self._open = False
        self._ended = 0  # in this window
        self._window_at = 0.0
        self._at_rest = 0.0  # seconds of this window in which nothing ran
        self._rests_since: float | None = None
        self._now = 0.0  # as of the last end
        self._steps_back: asyncio.TimerHandle | None = None
        self.asking = Asking(Ports(self), store, self.has_idle, self._can_take)

    def open(self) -> None:
        self._open = True
        self._window_at = self._now = self._rests_since = self.env.monotonic()
        self.port.limit = self.slots
        for _ in range(self.slots * (1 + self.ahead)):
            self.add_slot()

    @property
    def is_open(self) -> bool:
        return self._open

    @property
    def is_ending(self) -> bool:
        """Whether a cancellation that reaches a slot is meant for it, rather than left behind by its handler."""
        return not self._open or self._loop_ends()

    def gather(self, gathering: Gathering) -> None:
        """Take its calls too."""
        self.gatherings.append(gathering)
        if gathering.has_own_slot:
            self.add_slot(gathering)

    def add_slot(self, own: Gathering | None = None) -> None:
        """Make a slot; with `own` it takes the calls of this gathering alone."""
        if own is None:
            mark = self._next_mark
            self._next_mark += 1
        else:
            (mark,) = own.marks.take(1)
        task = asyncio.get_running_loop().create_task(self._slot(mark, own), name=f"{self.lane}-slot")
        self._tasks[task] = own
        task.add_done_callback(lambda task: self._tasks.pop(task, None))

    def stage(self, id: bytes) -> Stage | None:
        if any(claim.id == id for claim in self._queue):
            return "begins" if self.has_idle() else "queued"
        return super().stage(id)

    def put(self, claims: list[Claimed]) -> None:
        queue = self._queue
        for claim in claims:
            if queue and place(claim) < place(queue[-1]):
                insort(queue, claim, key=place)
            else:
                queue.append(claim)
        if self._rests_since is not None:
            self._at_rest += self.env.monotonic() - self._rests_since
            self._rests_since = None
        self.wake_one()

    @property
    def idle(self) -> int:
        """Slots that wait for work."""
        return len(self._idle)

    def wake_one(self) -> None:
        """Wake a slot. One is enough: whoever has to wait for its handler wakes the next one first."""
        if not _woke(self._idle):
            for gathering in self.gatherings:
                if gathering.own_idle and gathering.queued:
                    _woke(gathering.own_idle)

    def gave_back(self, claim: Claimed) -> None:
        """The tasks at hand are slower than those before them: claim none ahead until their rate is known."""
        super().gave_back(claim)
        if self._taking and self._steps_back is None:
            self.port.limit = self.slots
            self._ended = 0

    def _is_queued(self, claim: Claimed) -> bool:
        return any(one is claim for one in self._queue)

    def _take_queued(self, is_wanted: Callable[[Claimed], bool]) -> list[Claimed]:
        taken = [claim for claim in self._queue if is_wanted(claim)]
        if taken:
            kept = [claim for claim in self._queue if not is_wanted(claim)]
            self._queue.clear()
            self._queue.extend(kept)
        return taken

    def take_surplus(self, called: Container[bytes]) -> list[Claimed]:
        """See `Desk.take_surplus`: the tasks at hand are slower than those before them."""
        passed = self.env.monotonic() - self._window_at
        if passed >= _RATE_WINDOW_S:
            self._pace(passed)
        startable = max(0, self.slots - len(self.running)) + 2 * max(0, self.port.limit - self.slots)
        surplus = {claim.id for claim in islice(self._queue, startable, None) if claim.id not in called}
        return self._take_queued(lambda claim: claim.id in surplus)

    # Between processes

    def share(self, is_wanted: Callable[[Claimed], bool]) -> list[Claimed]:
        """See `Desk.share`.

        What its runner has taken ahead is taken back first; of that, what is given away is released as it comes back.
        """
        if self.has_idle():  # what is here begins at once
            return []
        ahead = self._taken_ahead()
        waiting = sorted((claim for claim in (*ahead, *self._queue) if is_wanted(claim)), key=place)
        given = waiting[len(waiting) // 2 :]
        if not given:
            return []
        self.given += len(given)
        self._step_back()
        if ahead:
            cast(AheadRunner, self.runner()).give_back(given)
        chosen = {id(claim) for claim in given}
        return self._take_queued(lambda claim: id(claim) in chosen)

    def recall(self) -> None:
        """Have handed back what its runner has taken ahead and not begun."""
        if ahead := self._taken_ahead():
            cast(AheadRunner, self.runner()).give_back(ahead)

    def _taken_ahead(self) -> list[Claimed]:
        """Return what its runner has no place to run in yet."""
        if not (self.ahead and self.running):
            return []
        return [work for work in cast(AheadRunner, self.runner()).ahead() if isinstance(work, Claimed)]

    def _step_back(self) -> None:
        """Take no claim but for a slot that falls free and finds nothing here."""
        if self._steps_back is not None:
            self._steps_back.cancel()
        self.port.limit = min(self.slots, len(self.running) + len(self._waiting))  # other slots are in calls
        self._steps_back = asyncio.get_running_loop().call_later(_STEP_BACK_S, self._come_forward)

    def _come_forward(self) -> None:
        self._steps_back = None
        if self._taking:
            self.port.limit = max(self.port.limit, self.slots)
            self.store.demand()

    def has_idle(self) -> bool:
        """Whether a slot has nothing to do; those for what runs ahead don't count."""
        return len(self._idle) > self.slots * self.ahead

    def _can_take(self) -> bool:
        return self._taking and not self._queue and any(port.room() > 0 for port in self.ports)

    @property
    def ports(self) -> list[Lane]:
        """Its own, and those of what gathers for its slots."""
        return [self.port, *(gathering.port for gathering in self.gatherings)]

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def is_supplied(self) -> bool:
        """See `Desk.is_supplied`: more than half of what its runner takes ahead."""
        return self.ahead > 0 and len(self._queue) + len(self.running) > self.slots * (1 + self.ahead // 2)

    async def _slot(self, mark: int, own: Gathering | None) -> None:  # noqa: C901 - claims of a busy lane go through here
        queue, gatherings, serve = self._queue, self.gatherings, self._serve
        if own is not None:
            queue, gatherings = deque(), [own]
        task = asyncio.current_task()
        assert task is not None
        slice_at = self._now
        while self._open:
            gathering = self._first_call(queue, gatherings) if gatherings else None
            if gathering is None and not queue:
                await self._unhurt(task, self._rest(own))
                slice_at = self._now
                continue
            if self._now - slice_at > _SLICE_S or task.cancelling():
                # Handlers that never wait must not keep the loop to themselves, and one may have cancelled the asyncio
                # task that it ran in: that reaches us here, and not the next handler.
                await self.absorb(task)
                slice_at = self._now
                continue
            if self.store.is_revoked():
                await self._unhurt(task, asyncio.sleep(_REVOKED_S))
                continue
            if gathering is not None:
                if not await self._serve_call(gathering, mark, task):
                    return
                continue
            claim = queue.popleft()
            try:
                going = serve(self, claim, mark, task)
                if going is None:
                    continue
                if queue or gatherings:
                    self.wake_one()
                if not await going:
                    return
            except Exception as exc:  # noqa: BLE001 - the boundary: a bug may cost a task, never its slot
                self._broken(self, claim, exc)

    async def _serve_call(self, gathering: Gathering, mark: int, task: asyncio.Task[Any]) -> bool:
        """Take the next call of a gathering, from claims to outcomes; returns whether the slot is still good."""
        call = gathering.form()
        self.wake_one()
        try:
            return await gathering.serve(gathering, call, mark, task)
        except Exception as exc:  # noqa: BLE001 - the boundary: a bug may cost tasks, never their slot
            for claim in call.claims:
                self._broken(gathering, claim, exc)
            return True
        finally:
            self._now = self.env.monotonic()

    def _first_call(self, queue: deque[Claimed], gatherings: list[Gathering]) -> Gathering | None:
        """Return the gathering that has a call to begin which goes before all else, if one has."""
        best = place(queue[0]) if queue else None
        found = None
        for gathering in gatherings:
            first = gathering.first()
            if first is not None and (best is None or first < best):
                best, found = first, gathering
        return found

    def _rest(self, own: Gathering | None) -> asyncio.Future[None]:
        """Return what is done when there is a claim."""
        if self.is_ending:  # and what was to end this slot has ended the handler in it, whose outcome came first
            raise asyncio.CancelledError
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if own is not None:
            own.own_idle.append(waiting)
            own.pace()
            self.store.demand()
            return waiting
        self._idle.append(waiting)
        self.asking.rests()
        if self.gatherings:
            for gathering in self.gatherings:
                gathering.pace()
            self.store.demand()
        if not self.running and self._rests_since is None:
            self._rests_since = self.env.monotonic()
        return waiting

    async def _unhurt(self, task: asyncio.Task[Any], waiting: Awaitable[None]) -> None:
        """Wait; a cancellation that is not ours ends no slot."""
        try:
            await waiting
        except asyncio.CancelledError:
            if task not in self._tasks:
                raise
        if task.cancelling() and self.is_ending:
            raise asyncio.CancelledError
        while task.cancelling():  # also where the handler has swallowed it already
            task.uncancel()

    async def absorb(self, task: asyncio.Task[Any]) -> None:
        """Take a cancellation that a handler left behind, so that it hits nothing of ours."""
        await self._unhurt(task, asyncio.sleep(0))

    def lose_slot(self, task: asyncio.Task[None] | None) -> None:
        """Go on without a slot whose handler does not come back: another takes its place."""
        self.add_slot(None if task is None else self._tasks.pop(task, None))

    def freed(self) -> None:
        """A claim that is over makes room; the limit follows the rate: only what starts soon is claimed ahead."""
        self.port.released += 1
        self._ended += 1
        now = self._now = self.env.monotonic()
        passed = now - self._window_at
        if passed >= _RATE_WINDOW_S or (self._ended >= self.slots == self.port.limit):
            self._pace(passed)

    def _pace(self, passed: float) -> None:
        """Set the limit by the rate of the time in which something ran; it grows by no more than has ended in it."""
        if self._taking and self._steps_back is None:
            busy = max(passed - self._at_rest, 1e-6)
            ahead = int(self._ended / busy * self._prefetch_s)
            self.port.limit = self.slots + min(ahead, self._ended, self._config.prefetch_max)
            self._ended = 0
            self._at_rest = 0.0
            self._window_at += passed

    def shut(self) -> None:
        """Take no more claims; those that are here go on."""
        self._taking = False
        self.port.limit = -1_000_000_000

    def reopen(self) -> None:
        self._taking = True
        self._ended = 0
        self.port.limit = self.slots

    async def close(self) -> None:
        self.shut()
        self._open = False
        self.asking.close()
        if self._steps_back is not None:
            self._steps_back.cancel()
        for waiting in self._idle:
            if not waiting.done():
                waiting.set_result(None)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _woke(idle: deque[asyncio.Future[None]]) -> bool:
    """Wake one of these slots; returns whether there was one."""
    while idle:
        waiting = idle.popleft()
        if not waiting.done():
            waiting.set_result(None)
            return True
    return False
