"""Other processes that work: what they have told of their machines, as long as they speak."""

from __future__ import annotations

import asyncio

import msgspec

from mainspring.resources.monitor import ResourceUsage
from mainspring.store.base import HostUsage, Store

READ_MS = 500
"""How old what others have told may be here before it is read again."""
REPEAT_MS = 10_000
"""Whoever works repeats what has not changed this often, so that the others know that it is there."""
SILENT_MS = 3 * REPEAT_MS
"""What has not been repeated for so long, as seen from here, counts no more."""


class Told(ResourceUsage, frozen=True, kw_only=True):
    """What a process that works tells the others of its machine, and of itself."""

    resources: dict[str, dict[str, float]] | None = None  # `reserved` and `capacity` by kind; older ones don't tell
    queue_size: int | None = None  # how many tasks it lets be unfinished; None: any number, or it does not tell


_decoder = msgspec.json.Decoder(Told)


class Neighbours:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._told: list[HostUsage] = []
        self._read_ms: int | None = None
        self._reading = asyncio.Lock()  # who comes meanwhile gets the same
        self._first_seen: dict[str, tuple[int, int]] = {}  # by worker: of when its news are, and since when known here

    async def heard(self) -> list[tuple[str, Told]]:
        """Return host and figures of each that speaks, the newest last. Raises StoreUnavailable."""
        await self._read()
        others = [one for one in self._told if one.worker != self._store.worker_id and self._is_heard(one)]
        return [(one.host, _decoder.decode(one.figures)) for one in sorted(others, key=lambda one: one.at_ms)]

    def fresh_in_s(self) -> float:
        """Return after how many seconds it will be read again."""
        return 0.0 if self._read_ms is None else max(0, self._read_ms + READ_MS - self._store.now_ms()) / 1000

    async def _read(self) -> None:
        async with self._reading:
            now_ms = self._store.now_ms()
            if self._read_ms is None or now_ms - self._read_ms >= READ_MS:
                await self._read_at(now_ms)

    async def _read_at(self, now_ms: int) -> None:
        self._told = await self._store.usages()
        self._read_ms = now_ms
        before, self._first_seen = self._first_seen, {}
        for one in self._told:
            at_ms, since_ms = before.get(one.worker, (None, now_ms))
            self._first_seen[one.worker] = (one.at_ms, since_ms if at_ms == one.at_ms else now_ms)

    def _is_heard(self, one: HostUsage) -> bool:
        """Whether it speaks, judged by the clock here: that of another machine may be wrong."""
        return self._store.now_ms() - self._first_seen[one.worker][1] < SILENT_MS


def place_of(host: str, usage: ResourceUsage) -> tuple[str, float, int]:
    """Return a name for where a process works: those with the same host and the same limits share what these are of."""
    return host, usage.cpu_limit, usage.memory_limit_bytes
