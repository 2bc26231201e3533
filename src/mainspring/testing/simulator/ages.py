"""Worlds that last for hours or days: the machine sleeps while part of the work waits, and retention takes away what
has grown old; nothing that somebody still needs, and nothing that is younger than was said."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol
from unittest import mock

from mainspring.config import StoreConfig
from mainspring.errors import TaskError
from mainspring.store.sql import caretaker
from mainspring.tasks import TaskId
from mainspring.tasks.lifecycle import COMPLETED
from mainspring.testing.simulator.machine import EPOCH_S
from mainspring.testing.simulator.shape import Shape

if TYPE_CHECKING:
    from mainspring.engine import Engine
    from mainspring.testing.simulator.world import World

_GONE: Final = "SELECT id, status, ended_ms FROM tombstone"
_ORPHANS: Final = """SELECT DISTINCT task.id FROM edge JOIN task ON task.seq = edge.child
    LEFT JOIN task AS parent ON parent.seq = edge.parent WHERE task.status < 2 AND parent.seq IS NULL"""
_HOLLOW: Final = """SELECT DISTINCT task.id FROM stands_for JOIN task ON task.seq = stands_for.task
    LEFT JOIN task AS other ON other.seq = stands_for.ref WHERE other.seq IS NULL"""
_LEFT: Final = """SELECT task.id FROM task
    WHERE status >= 2 AND ended_ms <= ?1 - CASE status WHEN 2 THEN ?2 ELSE ?3 END
    AND NOT EXISTS (SELECT 1 FROM stands_for WHERE ref = task.seq)
    AND NOT EXISTS (SELECT 1 FROM edge JOIN task AS child ON child.seq = edge.child
        WHERE edge.parent = task.seq AND child.status < 2)"""
_SWEEP_TICKS: Final = 4
"""Retention goes over everything each second."""
_SWEEP_S: Final = 1.5
_PATIENCE_S: Final = 10.0
_CALM_S: Final = 1.0
_TICK_MS: Final = 1
_FAULTS: Final = ("busy", "full", "io error", "read error", "commit undone", "commit done", "commit in doubt")
_HELD: Final = ("", "custom:work", "custom:crunch")


class Accuser(Protocol):
    def accuse(self, invariant: str, task: str | None, what: str, **figures: Any) -> None: ...

    def find(self, sql: str, *values: Any) -> list[Any]: ...


class Aged:
    """Judges what is not there any more."""

    def __init__(self, witness: Accuser, config: StoreConfig) -> None:
        self._witness = witness
        self._keep_ms = int(config.keep_completed_s * 1000), int(config.keep_failed_s * 1000)
        self._gone: set[bytes] = set()

    def look(self, now_ms: int) -> None:
        """A transaction of this moment is committed."""
        rows = self._witness.find(_GONE)
        if len(rows) == len(self._gone):
            return
        for id, status, ended_ms in rows:
            if id not in self._gone:
                self._gone.add(id)
                age_ms, keep_ms = now_ms - ended_ms, self._keep_ms[status != COMPLETED]
                if status < COMPLETED or age_ms < keep_ms - _TICK_MS:
                    self._accuse(id, "is pruned too soon", status=status, age_ms=age_ms, keep_ms=keep_ms)
        for (id,) in self._witness.find(_ORPHANS):
            self._accuse(id, "has not ended, and a parent of it is pruned")
        for (id,) in self._witness.find(_HOLLOW):
            self._accuse(id, "is there, and what its result stands for is pruned")

    def left(self, now_ms: int) -> list[bytes]:
        """Return what is old enough to go, and needed by nobody."""
        return [id for (id,) in self._witness.find(_LEFT, now_ms, *self._keep_ms)]

    def too_long(self, id: bytes) -> None:
        self._accuse(id, "is not pruned, however old")

    def _accuse(self, id: bytes, what: str, **figures: Any) -> None:
        self._witness.accuse("retention", str(TaskId(id)), what, **figures)


@contextlib.contextmanager
def sweeping(shape: Shape) -> Iterator[None]:
    """Have retention come more often than every ten seconds, where it is looked at: most of these would be empty."""
    with mock.patch.object(caretaker, "_SWEEP_TICKS", _SWEEP_TICKS) if shape.sleeps_s else contextlib.nullcontext():
        yield


async def age(world: World) -> None:
    """Let the machine sleep while some tasks wait, and see what retention makes of it."""
    aged = world.witness.aged
    if aged is None:
        return
    for seconds in world.shape.sleeps_s:
        await _hold(world, world.rng.choice(_HELD))
        await asyncio.sleep(world.rng.random() * _CALM_S)
        asleep_ms = _now_ms(world)
        world.note("machine", "sleeps", seconds=seconds)
        world.machine.slept_s += seconds
        for process in world.machine.processes:
            process.has_stood_still = True
        _strike(world)
        await asyncio.sleep(_SWEEP_S)
        _mend(world)
        # What ended before is old by now, or never will be without another sleep.
        left = partial(aged.left, asleep_ms + int(seconds * 1000))
        if not await world.until(partial(_is_empty, left), _PATIENCE_S):
            for id in left():
                aged.too_long(id)


def _strike(world: World) -> None:
    """Where disks fail they also do when retention takes away what has grown old."""
    if "disk" in world.shape.faults:
        for node in world.up:
            node.disk.arm(world.rng.choice(_FAULTS), world.rng.choice((0, 1, 2, 5)))


def _mend(world: World) -> None:
    for node in world.up:
        node.disk.mend()


def _is_empty(found: Callable[[], list[bytes]]) -> bool:
    return not found()


async def _hold(world: World, kind: str) -> None:
    """Pause a kind of tasks, whoever can."""

    def is_paused() -> bool:
        return (kind,) in world.rows("SELECT type FROM pause WHERE namespace = '' AND grp = ''")

    while not is_paused():
        if up := world.up:
            assert up[0].engine is not None
            up[0].process.spawn(_pause(up[0].engine, kind))
        await world.until(is_paused, _CALM_S)


async def _pause(engine: Engine, kind: str) -> None:
    with contextlib.suppress(TaskError):  # it is asked again
        await engine.manager.pause(type=kind)


def _now_ms(world: World) -> int:
    """What the store's clocks show, where nobody has set the machine's."""
    return int((EPOCH_S + world.loop.now + world.machine.slept_s) * 1000)
