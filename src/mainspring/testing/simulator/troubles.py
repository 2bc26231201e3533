"""What goes wrong in a simulated world, and when."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from mainspring.environment import Random
from mainspring.testing.simulator.disk import UNTOLD, Disk
from mainspring.testing.simulator.world import LONGEST_STALL_S, Node, World

_DAY_MS = 86_400_000
_PATIENCE_S = 2.0


class Troubles:
    """Lets faults strike one after the other until it is told to stop."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = Random(f"{world.seed}:troubles")
        self._lives = self._rng.choice((1, 2, 3, 5))  # that may still be taken: coming back is what costs most
        self._kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "kill": self._kill,
            "untold": self._silence,
            "restart": self._restart,
            "disk": self._arm,
            "outage": self._break,
            "clock": self._jump,
            "stall": self._stall,
            "swizzle": self._swizzle,
            "bells": self._lose_messages,
        }

    async def go_on(self) -> None:
        shape = self._world.shape
        while shape.faults:
            await asyncio.sleep(self._rng.expovariate(1 / shape.fault_every_s))
            await self._kinds[self._rng.choice(shape.faults)]()

    def end(self) -> None:
        """From now on nothing goes wrong, and what stood still goes on."""
        world = self._world
        world.machine.loses_messages = world.machine.delays_messages = 0.0
        for node in world.nodes:
            if node is not None:
                node.disk.mend()
                node.process.stalled_until = 0.0
        world.is_troubled = False

    def _some_node(self) -> Node | None:
        nodes = [node for node in self._world.nodes if node is not None and node.works and not node.is_over]
        return self._rng.choice(nodes) if nodes else None

    async def _kill(self) -> None:
        """Often where a handler does not stop that was asked to, once it was given up and one other runs beside it."""
        if self._lives and (node := self._some_node()) is not None:
            self._lives -= 1
            witness = self._world.witness
            stubborn = [one for one in self._world.up if witness.has_stubborn(one.process)]
            if stubborn and self._rng.random() < 0.7:
                chosen = node = self._rng.choice(stubborn)
                await self._world.until(lambda: witness.has_one_beside_given_up(chosen.process), self._rng.random())
            node.fall()

    async def _silence(self) -> None:
        """Kill one just when it has committed something that it has told nobody yet."""
        if self._lives and (node := self._some_node()) is not None:
            self._lives -= 1
            node.disk.arm(UNTOLD, self._rng.choice((0, 0, 1, 2)))

    async def _restart(self) -> None:
        if not self._lives or not (up := [node for node in self._world.up if node.works]):
            return
        self._lives -= 1
        node = self._rng.choice(up)
        if self._rng.random() < 0.9:  # just when a slot of it has to wait for something, if that comes
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE_S):
                    await node.has_care()
        if node.is_up:
            if "untold" in self._world.shape.faults and self._rng.random() < 0.5:
                node.disk.arm(UNTOLD, self._rng.choice((0, 0, 1)))
            node.stop()

    async def _arm(self) -> None:
        if (node := self._some_node()) is not None:
            (kind,) = self._rng.choices(list(Disk.KINDS), list(Disk.KINDS.values()))
            if kind.startswith("die"):
                if not self._lives:
                    return
                self._lives -= 1
            left = self._rng.choice((0, 0, 0, 1, 2, 5, 20))
            self._world.note(node.name, "disk will fail", kind=kind, left=left)
            node.disk.arm(kind, left)

    async def _break(self) -> None:
        """Of one process or of all: the same disk."""
        seconds, kind = self._rng.choice((0.05, 0.5, 3.0)) * self._rng.random(), self._rng.choice(("full", "io error"))
        every = self._rng.random() < 0.5
        chosen = self._some_node()
        for node in self._world.nodes:
            if node is not None and not node.is_over and (every or node is chosen):
                self._world.note(node.name, "disk is broken", kind=kind, seconds=round(seconds, 3))
                node.disk.break_for(seconds, kind)

    async def _jump(self) -> None:
        """Between submits: a delay that was counted by the clock before it would last by the other one."""
        if not await self._world.until(lambda: not self._world.is_submitting, _PATIENCE_S):
            return
        by = self._rng.choice((-1, 1)) * self._rng.choice((1_000, 60_000, 3_600_000, _DAY_MS))
        self._world.note("clock", "jumps", by_ms=by)
        self._world.machine.wall_offset_ms += by

    async def _stall(self) -> None:
        if (node := self._some_node()) is not None:
            self._hold(node, self._rng.choice((0.1, 1.0, LONGEST_STALL_S)) * self._rng.random())

    def _hold(self, node: Node, seconds: float) -> None:
        self._world.note(node.name, "stands still", seconds=round(seconds, 3))
        node.process.stalled_until = self._world.loop.now + seconds
        node.process.has_stood_still = True

    async def _swizzle(self) -> None:
        """Stop some one after the other, and let them go on in another order."""
        nodes = [node for node in self._world.nodes if node is not None and not node.is_over]
        if not nodes:
            return
        for node in self._rng.sample(nodes, self._rng.randint(1, len(nodes))):
            self._hold(node, 0.1 + self._rng.random() * 3.0)
            await asyncio.sleep(self._rng.random() * 0.1)

    async def _lose_messages(self) -> None:
        machine = self._world.machine
        machine.loses_messages = self._rng.choice((0.0, 0.3, 1.0))
        machine.delays_messages = self._rng.choice((0.0, 0.5))
        self._world.note("network", "changes", loses=machine.loses_messages, delays=machine.delays_messages)
