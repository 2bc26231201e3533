"""A lane's desk: claims wait here in the one order, and slots take them as they fall free."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from mainspring.config import TaskManagerConfig, seconds
from mainspring.dispatch.attempt import Attempt
from mainspring.environment import Environment
from mainspring.execution.base import Runner
from mainspring.store.base import SUSPECT, Claimed, Lane, Store

_RATE_WINDOW_S = 0.05
_SLICE_S = 0.005


class LaneDesk:
    """Slots are asyncio tasks that live as long as the lane: none is made for a claim."""

    def __init__(
        self,
        name: str,
        slots: int,
        runner: Callable[[], Runner],
        store: Store,
        config: TaskManagerConfig,
        env: Environment,
        serve: Callable[[LaneDesk, Claimed, int, asyncio.Task[Any]], Awaitable[bool]],
        broken: Callable[[LaneDesk, Claimed, Exception], None],
        first_mark: int,
    ) -> None:
        self.port = Lane(name, 0)
        self.store = store
        self.env = env
        self.mark = store.mark if name in ("async", "thread") else None  # a crash in here is this process's crash
        self.slots = slots
        self.runner = runner
        self.running: dict[bytes, Attempt] = {}
        self._config = config
        self._prefetch_s = seconds(config.prefetch_s, "prefetch_s")
        self._serve = serve
        self._broken = broken
        self._queue: list[tuple[int, int, Claimed]] = []
        self._gone: set[int] = set()  # seqs of queued claims that were withdrawn
        self._idle: deque[asyncio.Future[None]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._next_mark = first_mark
        self._open = False
        self._taking = True
        self._ended = 0  # in this window
        self._window_at = 0.0
        self._at_rest = 0.0  # seconds of this window in which nothing ran
        self._rests_since: float | None = None
        self._now = 0.0  # as of the last end

    def open(self) -> None:
        self._open = True
        self._window_at = self._now = self._rests_since = self.env.monotonic()
        self.port.limit = self.slots + min(self.slots, 8)
        for _ in range(self.slots):
            self.add_slot()

    @property
    def is_open(self) -> bool:
        return self._open

    def add_slot(self) -> None:
        task = asyncio.get_running_loop().create_task(self._slot(self._next_mark), name=f"{self.port.name}-slot")
        self._next_mark += 1
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def put(self, claims: list[Claimed]) -> None:
        queue, idle = self._queue, self._idle
        for claim in claims:
            heapq.heappush(queue, (claim.rank, claim.seq, claim))
        if self._rests_since is not None:
            self._at_rest += self.env.monotonic() - self._rests_since
            self._rests_since = None
        for _ in range(min(len(claims), len(idle))):
            waiting = idle.popleft()
            if not waiting.done():
                waiting.set_result(None)

    def withdraw(self, seq: int) -> Claimed | None:
        """Take a claim out that has not been given to a slot."""
        for _, _, claim in self._queue:
            if claim.seq == seq and seq not in self._gone:
                self._gone.add(seq)
                return claim
        return None

    def find(self, id: bytes) -> Claimed | None:
        return next((claim for _, _, claim in self._queue if claim.id == id and claim.seq not in self._gone), None)

    def take(self, is_wanted: Callable[[Claimed], bool]) -> list[Claimed]:
        """Take claims that have not been given to a slot out of the queue."""
        kept: list[tuple[int, int, Claimed]] = []
        taken: list[tuple[int, int, Claimed]] = []
        for item in self._queue:
            if item[2].seq in self._gone:
                continue
            (taken if is_wanted(item[2]) else kept).append(item)
        self._gone.clear()
        heapq.heapify(kept)
        self._queue[:] = kept
        return [claim for _, _, claim in taken]

    def take_surplus(self) -> list[Claimed]:
        """Take out what will not start soon after all: the tasks at hand are slower than those before them."""
        self._pace(self.env.monotonic())
        surplus = self.queued - 2 * max(self.slots, self.port.limit - self.slots)
        if surplus <= 0:
            return []
        last = heapq.nlargest(surplus, self._queue)
        seqs = {seq for _, seq, _ in last}
        return self.take(lambda claim: claim.seq in seqs)

    @property
    def queued(self) -> int:
        return len(self._queue) - len(self._gone)

    async def _slot(self, mark: int) -> None:
        queue, idle = self._queue, self._idle
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        slice_at = self._now
        while self._open:
            if not queue:
                waiting = loop.create_future()
                idle.append(waiting)
                if not self.running and self._rests_since is None:
                    self._rests_since = self.env.monotonic()
                await waiting
                slice_at = self._now
                continue
            if self._now - slice_at > _SLICE_S:  # handlers that never wait must not keep the loop to themselves
                await asyncio.sleep(0)
                slice_at = self._now
                continue
            claim = heapq.heappop(queue)[2]
            if self._gone and claim.seq in self._gone:
                self._gone.discard(claim.seq)
                continue
            try:
                is_good = await self._serve(self, claim, mark, task)
            except Exception as exc:  # noqa: BLE001 - the boundary: a bug may cost a task, never its slot
                self._broken(self, claim, exc)
                continue
            if not is_good:
                return

    def lose_slot(self, task: asyncio.Task[None] | None) -> None:
        """Go on without a slot whose handler does not come back: another takes its place."""
        if task is not None:
            self._tasks.discard(task)
        self.add_slot()

    def freed(self, n: int = 1) -> None:
        """Claims that are over make room; the limit follows the rate: only what starts soon is claimed ahead."""
        self.port.released += n
        self._ended += n
        now = self._now = self.env.monotonic()
        self._pace(now)

    def _pace(self, now: float) -> None:
        """Set the limit by the rate of the time in which something ran."""
        passed = now - self._window_at
        if passed >= _RATE_WINDOW_S and self._taking:
            busy = max(passed - self._at_rest, 1e-6)
            ahead = int(self._ended / busy * self._prefetch_s)
            self.port.limit = self.slots + max(1, min(ahead, self._config.prefetch_max))
            self._ended = 0
            self._at_rest = 0.0
            self._window_at = now

    def shut(self) -> None:
        """Take no more claims; those that are here go on."""
        self._taking = False
        self.port.limit = -1_000_000_000

    async def close(self) -> None:
        self.shut()
        self._open = False
        for waiting in self._idle:
            if not waiting.done():
                waiting.set_result(None)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def is_suspect(claim: Claimed) -> bool:
    """Whether it ran when its process died, so that it must run alone."""
    return bool(claim.flags & SUSPECT)
