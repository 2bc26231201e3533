"""What runs next: one of several ways to choose, by a seed.

Choosing evenly alone rarely starves anybody, so some orders let one process wait, or follow priorities that change at a
few moments (Burckhardt et al. 2010, "A randomized scheduler with probabilistic guarantees of finding bugs").
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from mainspring.environment import Random

_KINDS = ("even", "starving", "by priority")


class Order:
    def __init__(self, rng: Random) -> None:
        self.random = rng.random
        self._rng = rng
        self._kind = rng.choice(_KINDS)
        self._mixes_tasks = rng.random() < 0.5
        self._victim: Any = None
        self._patience = 0
        self._ranks: dict[Any, float] = {}

    def __str__(self) -> str:
        return f"{self._kind}, {'tasks of a process in any order' if self._mixes_tasks else 'first in first out'}"

    def process(self, ready: list[Any]) -> Any:
        """Return whose callback runs next."""
        if self._kind == "starving":
            return self._all_but_the_victim(ready)
        if self._kind == "by priority":
            return self._by_priority(ready)
        return ready[int(self.random() * len(ready))]

    def _all_but_the_victim(self, ready: list[Any]) -> Any:
        if self._patience == 0:
            self._victim = self._rng.choice(ready)
            self._patience = self._rng.randrange(20, 400)
        self._patience -= 1
        others = [owner for owner in ready if owner is not self._victim]
        return others[int(self.random() * len(others))]

    def _by_priority(self, ready: list[Any]) -> Any:
        for owner in ready:
            if owner not in self._ranks:
                self._ranks[owner] = self.random()
        first = min(ready, key=self._ranks.__getitem__)
        if self.random() < 0.01:
            self._ranks[first] = 1.0 + self.random()
        return first

    def callback(self, queue: deque[asyncio.Handle]) -> asyncio.Handle:
        """Take out what runs next of a process. Its tasks may overtake each other; plain callbacks keep their order."""
        if not self._mixes_tasks:
            return queue.popleft()
        at = int(self.random() * len(queue))
        if not _is_step(queue[at]):
            at = next(n for n, handle in enumerate(queue) if not _is_step(handle))
        handle = queue[at]
        del queue[at]
        return handle


def _is_step(handle: asyncio.Handle) -> bool:
    return isinstance(getattr(handle._callback, "__self__", None), asyncio.Task)  # type: ignore[attr-defined]
