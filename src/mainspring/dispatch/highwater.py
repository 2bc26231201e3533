"""The high-water mark: where the machine is full, nothing new starts until there is room again. What runs goes on."""

from __future__ import annotations

from mainspring.dispatch.neighbours import Neighbours, place_of
from mainspring.environment import Environment
from mainspring.errors import StoreUnavailable
from mainspring.resources.monitor import ResourceMonitor, ResourceUsage
from mainspring.store.base import Store
from mainspring.tasks.needs import amounts, shares

EASE = 0.95
"""It is over when no more is in use than this share of the mark: else it would come and go with each task."""


class HighWater:
    """Judges memory by all that is in use, and CPU by what the engine's own processes do not use that work here: on
    this host, under the same limits."""

    def __init__(self, monitor: ResourceMonitor, store: Store, env: Environment) -> None:
        self.why: str | None = None  # nothing new starts: completes "worker ... starts nothing new: "
        self._monitor = monitor
        self._neighbours = Neighbours(store)
        self._host = env.host()

    async def look(self) -> bool:
        """Return whether it has come or gone."""
        before = self.why is not None
        usage = self._monitor.sample()
        why = self._memory(usage) or await self._cpu(usage)
        self.why = None if why is None else f"{why}{self._monitor.as_seen()}"
        return before != (self.why is not None)

    def _memory(self, usage: ResourceUsage) -> str | None:
        mark = usage.max_memory_bytes
        low = mark * EASE
        if usage.memory_bytes <= (mark if self.why is None else low):
            return None
        is_above = usage.memory_bytes > mark
        used, most, eased = amounts("memory", usage.memory_bytes, mark, low)
        return f"memory in use is {used}, {_above(is_above)} max_memory_bytes = {most}; it goes on at {eased}"

    async def _cpu(self, usage: ResourceUsage) -> str | None:
        mark = usage.max_cpu_usage
        if mark is None or usage.cpu_usage is None:
            return None
        limit = mark if self.why is None else mark * EASE
        others = usage.cpu_usage - (usage.own_cpu_usage or 0.0)
        if others > limit:
            others -= await self._own_beside(usage)
        if others <= limit:
            return None
        is_above = others > mark
        used, most, eased = shares(others, mark, mark * EASE)
        return (
            f"others use {used} of {usage.cpu_limit:g} cores, {_above(is_above)} max_cpu_usage = {most}; "
            f"it goes on at {eased}"
        )

    async def _own_beside(self, usage: ResourceUsage) -> float:
        """Return the share that other workers use which work here too: they are no strangers. What one has told that
        works under another limit is a share of that: how much of it went here, nobody knows."""
        try:
            heard = await self._neighbours.heard()
        except StoreUnavailable:  # nothing can be claimed meanwhile either
            return 0.0
        here = place_of(self._host, usage)
        return sum(one.own_cpu_usage or 0.0 for host, one in heard if place_of(host, one) == here)


def _above(is_above: bool) -> str:
    return "above" if is_above else "after it was above"
