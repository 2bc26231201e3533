"""Who changes limits, rates and shares of groups while work goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from mainspring.environment import Random
from mainspring.errors import TaskError
from mainspring.testing.simulator.clients import Client
from mainspring.testing.simulator.machine import EPOCH_S
from mainspring.testing.simulator.shape import RATES
from mainspring.testing.simulator.world import Node, World

_SLOW: Final = "2/2h"
"""Nobody waits for that: another rate is set before the world comes to rest."""
_HAS_SLOW: Final = "SELECT grp FROM group_limit WHERE rate_ms = 7200000"
_LOOK_S = 0.1
_PATIENCE_S = 60.0
_HEARD_S = 2.0
_SQUEEZES: Final = 0.7
"""In so many worlds whose limits change one is lowered just before others have much to do for its group."""
_SLOWS: Final = 0.5
"""In so many a slow rate is used up, and then changed for the last time."""
_USED_UP_S: Final = 2.0
_USED_UP: Final = "SELECT 1 FROM group_limit WHERE rate_ms = 7200000 AND full_us > ?"


class Governor:
    """Args: clients: those of all processes, also of ones that come later."""

    def __init__(self, world: World, clients: Sequence[Client]) -> None:
        self._world = world
        self._clients = clients
        self._rng = Random(f"{world.seed}:governor")
        self._squeezing = Random(f"{world.seed}:squeeze")
        self._squeezes = self._squeezing.random() < _SQUEEZES
        self._slowing = Random(f"{world.seed}:slow")
        self._slows = self._slowing.random() < _SLOWS
        self._asking: list[tuple[Node, asyncio.Task[None]]] = []

    async def go_on(self) -> None:
        """Change one thing after the other."""
        rng, shape, squeezing = self._rng, self._world.shape, self._squeezing
        while shape.change_every_s:
            await asyncio.sleep(rng.expovariate(1 / shape.change_every_s))
            if not (up := self._world.up):
                continue
            if self._slows and self._slowing.random() < 0.3:
                await self._slow_down(self._slowing.choice(up), self._slowing.choice("ab"))
                return
            if shape.shares and rng.random() < 0.4:
                self._share(rng.choice(up), rng.choice(list(shape.shares)), rng.choice((None, 1, 3)))
            elif self._squeezes and squeezing.random() < 0.5:
                await self._squeeze(squeezing.choice(up), squeezing.choice("ab"))
            else:
                rate = rng.choice((None, None, _SLOW, *RATES))
                self._limit(rng.choice(up), rng.choice("ab"), rng.choice((None, None, 1, 2, 3)), rate)

    async def _squeeze(self, node: Node, group: str) -> None:
        """Lower a limit that all have heard of, and let others than who did it have much to do for that group."""
        for concurrency in (self._squeezing.choice((None, 3)), 1):
            if node.is_up:
                self._limit(node, group, concurrency, None)
            await self._world.until(self._is_answered, _HEARD_S)
        others = [client for client in self._clients if client.is_alive and client.node is not node]
        if others:
            client = self._squeezing.choice(others)
            client.node.process.spawn(client.flood(group), "flood")

    async def _slow_down(self, node: Node, group: str) -> None:
        """Set a rate that lets two begin in hours, and once they have a fast one, by which the rest goes at once."""
        self._limit(node, group, None, _SLOW)
        await self._world.until(self._is_answered, _HEARD_S)
        if living := [client for client in self._clients if client.is_alive]:
            client = self._slowing.choice(living)
            client.node.process.spawn(client.flood(group), "flood")
        await self._world.until(self._is_used_up, _USED_UP_S)
        if up := self._world.up:
            self._limit(self._slowing.choice(up), group, None, self._slowing.choice(RATES))

    def _is_used_up(self) -> bool:
        soon_us = (EPOCH_S + self._world.loop.now + self._world.machine.slept_s + _USED_UP_S) * 1_000_000
        return bool(self._world.rows(_USED_UP, int(soon_us)))

    async def settle(self) -> None:
        """Leave no rate that takes longer than a world lasts, also none that somebody is just setting."""
        await self._world.until(self._is_answered, _PATIENCE_S)
        while slow := self._world.rows(_HAS_SLOW):
            if up := self._world.up:
                self._limit(up[0], slow[0][0], None, RATES[0])
            await asyncio.sleep(_LOOK_S)

    def _is_answered(self) -> bool:
        self._asking = [(node, task) for node, task in self._asking if not (task.done() or node.is_over)]
        return not self._asking

    def _limit(self, node: Node, group: str, concurrency: int | None, rate: str | None) -> None:
        assert node.engine is not None
        self._world.note(node.name, "limits", group=group, concurrency=concurrency, rate=rate)
        self._ask(node, node.engine.limit(group, concurrency=concurrency, rate=rate))

    def _share(self, node: Node, whose: tuple[str, str], weight: float | None) -> None:
        assert node.engine is not None
        namespace, group = whose
        self._world.note(node.name, "shares out", namespace=namespace, group=group, weight=weight)
        self._ask(node, node.engine.share(weight, group=group or None, namespace=namespace or None))

    def _ask(self, node: Node, asking: Coroutine[Any, Any, None]) -> None:
        self._asking.append((node, node.process.spawn(_asked(asking), "limits")))


async def _asked(asking: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(TaskError):  # the disk is broken, or the engine stops: it stays as it is
        await asking
