"""The hosts that work: each tells how full it is, and a task may enter as long as one of them has room."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec

from mainspring.config import QUEUE_SIZE, SchedulerConfig
from mainspring.dispatch.neighbours import READ_MS, REPEAT_MS, Neighbours, Told, place_of
from mainspring.errors import InsufficientResources, StoreUnavailable
from mainspring.resources.monitor import ResourceMonitor, ResourceUsage
from mainspring.store.base import Store
from mainspring.tasks.needs import amounts, shares

TELL_MS = 1_000
"""A process tells what has changed this often at most."""
_CPU_STEPS, _STEPS = 20, 100
"""How many steps of the whole there are; a change by less is not worth telling."""


class Place(NamedTuple):
    """A machine, or what a container gets of one: load that is not the engine's own, against limits."""

    host: str
    usage: ResourceUsage  # as seen last by one who works there, with the load of all of them as own


class _Full(NamedTuple):
    """What is above a limit."""

    why: str
    limit: str  # its name
    most: float


class Telling:
    """What this process tells the others of its machine. See `Store.tell_usage`.

    Args:
        resources: see `Reservations.stats`.
    """

    def __init__(
        self,
        store: Store,
        monitor: ResourceMonitor,
        resources: Callable[[], dict[str, dict[str, float]]],
        queue_size: int | None,
    ) -> None:
        self._store = store
        self._monitor = monitor
        self._resources = resources
        self._queue_size = queue_size
        self._told: object = None
        self._told_ms: int | None = None

    def news(self) -> str | None:
        now_ms = self._store.now_ms()
        age_ms = math.inf if self._told_ms is None else now_ms - self._told_ms
        if age_ms < TELL_MS:
            return None
        usage, resources = self._monitor.sample(), self._resources()
        told = _steps(usage), resources
        if told == self._told and age_ms < REPEAT_MS:
            return None
        self._told, self._told_ms = told, now_ms
        news = Told(**msgspec.structs.asdict(usage), resources=resources, queue_size=self._queue_size)
        return msgspec.json.encode(news).decode()


class Hosts:
    """What is known of the hosts that work, and whether one has room."""

    def __init__(
        self, store: Store, monitor: ResourceMonitor, limits: SchedulerConfig, host: str, queue_size: int | None
    ) -> None:
        self._store = store
        self._monitor = monitor
        self._limits = limits
        self._host = host
        self._queue_size = self._held = queue_size
        self._neighbours = Neighbours(store)
        self.look_due_ms: float = -math.inf
        self._roomy: ResourceUsage | None = None  # there was room for more on this disk
        self._full_disks: list[tuple[str, _Full]] = []  # of those who work, where none has room, as of the last look

    async def refuse_without_room(self, *, works: bool) -> None:
        """Judge by those who work, or where nobody does by this host. `works`: this process does.

        Raises: InsufficientResources.
        """
        seen: list[tuple[str, ResourceUsage]] = [*await self._neighbours.heard()]
        if works or not seen:
            seen.append((self._host, self._monitor.sample()))
        refusals, found = [], []
        for place in places(seen):
            if (full := self._full(place.usage)) is None:
                return
            seen_at = self._monitor.as_seen() if place.host == self._host else ""
            refusals.append(f"{place.host}: {full.why}{seen_at}")
            found.append(full)
        why = f"no host has room: {'; '.join(refusals)}; try again later, or raise the limit"
        raise _refusal(why, found, self._fresh_in_s())

    async def look(self, *, works: bool) -> None:
        """Have `refuse_without_storage`, and the store, judge by what those who work tell now. `works`: this process
        does, and its own disk and `queue_size` decide. An outage of the store leaves what was seen before."""
        if works:
            self.look_due_ms = math.inf
            self._hold_queue([])
            return
        with contextlib.suppress(StoreUnavailable):
            heard = await self._neighbours.heard()
            self._hold_queue([told.queue_size for _, told in heard])
            found = [(place.host, self._full_disk(place.usage)) for place in places(heard)]
            full = [(host, disk) for host, disk in found if disk is not None]
            self._full_disks = full if len(full) == len(found) else []
        self.look_due_ms = self._store.now_ms() + READ_MS

    def _hold_queue(self, told: Sequence[int | None]) -> None:
        """Where this process was given no `queue_size` of its own, take no more than one of those who work would."""
        size, whose = self._queue_size, "this process"
        largest = max((math.inf if one is None else one for one in told), default=math.inf)
        if size == QUEUE_SIZE and largest < QUEUE_SIZE:
            size, whose = int(largest), "those who work"
        if size != self._held:
            self._held = size
            self._store.hold_queue(size, whose)

    def refuse_without_storage(self) -> None:
        """Judge by the disk that this process writes to, and those of the hosts that work as of the last look.

        Raises: InsufficientResources.
        """
        usage = self._monitor.sample()
        if usage is not self._roomy and (full := self._full_disk(usage)) is not None:
            why = f"{full.why}{self._monitor.as_seen()}; free some, or raise max_storage_bytes"
            raise _refusal(why, [full], self._monitor.fresh_in_s())
        self._roomy = usage
        if self._full_disks:
            disks = "; ".join(f"{host}: {disk.why}" for host, disk in self._full_disks)
            why = f"no host has room: {disks}; free some, or raise max_storage_bytes there"
            look_in_s = max(0.0, self.look_due_ms - self._store.now_ms()) / 1000
            raise _refusal(why, [disk for _, disk in self._full_disks], look_in_s)

    def _fresh_in_s(self) -> float:
        """Return when this process judges by new figures: until then the answer stays the same."""
        return max(self._monitor.fresh_in_s(), self._neighbours.fresh_in_s())

    def _full(self, usage: ResourceUsage) -> _Full | None:
        """Return what is above a limit: that of the host, or that of whoever submits."""
        cpu = usage.cpu_usage
        if cpu is not None:
            others = cpu - (usage.own_cpu_usage or 0.0)
            for limit in (self._limits.max_cpu_usage, usage.max_cpu_usage):
                if limit is not None and others > limit:
                    used, most = shares(others, limit)
                    why = f"CPU in use by others is {used} of {usage.cpu_limit:g} cores, above max_cpu_usage = {most}"
                    return _Full(why, "max_cpu_usage", limit)
        memory = (self._limits.max_memory_bytes, usage.max_memory_bytes)
        others = usage.memory_bytes - usage.own_memory_bytes
        return _above("memory in use by others", others, memory) or self._full_disk(usage)

    def _full_disk(self, usage: ResourceUsage) -> _Full | None:
        limits = (self._limits.max_storage_bytes, usage.max_storage_bytes)
        return _above("storage in use", usage.storage_bytes, limits)


def places(seen: Iterable[tuple[str, ResourceUsage]]) -> list[Place]:
    """Put processes together that work in the same place: what each of them takes is load of the engine's own."""
    found: dict[tuple[str, float, int], list[ResourceUsage]] = {}
    for host, usage in seen:
        found.setdefault(place_of(host, usage), []).append(usage)
    return [Place(host, _together(usages)) for (host, _, _), usages in found.items()]


def _together(usages: Sequence[ResourceUsage]) -> ResourceUsage:
    newest = usages[-1]
    own_cpu = sum(usage.own_cpu_usage or 0.0 for usage in usages)
    own_memory = sum(usage.own_memory_bytes for usage in usages)
    return msgspec.structs.replace(
        newest,
        own_cpu_usage=None if newest.cpu_usage is None else min(newest.cpu_usage, own_cpu),
        own_memory_bytes=min(newest.memory_bytes, own_memory),
    )


def _above(name: str, used: int, limits: Iterable[int | None]) -> _Full | None:
    for limit in limits:
        if limit is not None and used > limit:
            much, most = amounts("memory", used, limit)
            setting = f"max_{name.split(maxsplit=1)[0]}_bytes"
            return _Full(f"{name} is {much}, above {setting} = {most}", setting, limit)
    return None


def _refusal(why: str, full: Sequence[_Full], retry_after: float) -> InsufficientResources:
    """Name the limit, and what it is, where it is one on all hosts."""
    limits, values = {one.limit for one in full}, {one.most for one in full}
    field = limits.pop() if len(limits) == 1 else None
    value = values.pop() if field is not None and len(values) == 1 else None
    return InsufficientResources(why, retry_after=retry_after, field=field, value=value)


def _steps(usage: ResourceUsage) -> tuple[int | None, ...]:
    """Return what is worth telling when it changes."""
    cpu = [None if share is None else int(share * _CPU_STEPS) for share in (usage.cpu_usage, usage.own_cpu_usage)]
    memory = [int(n / usage.memory_limit_bytes * _STEPS) for n in (usage.memory_bytes, usage.own_memory_bytes)]
    return (*cpu, *memory, int(usage.storage_bytes / usage.storage_limit_bytes * _STEPS))
