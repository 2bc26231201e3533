"""Scenarios set on a disk: from opening to closing, with trouble on the way when asked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import apsw
from tests.conformance.kit import WORK, new

from mainspring.errors import TaskError
from mainspring.store.sql import graph
from mainspring.store.sql import store as sql_store
from mainspring.store.sqlite import log
from mainspring.store.sqlite.connection import APPLICATION_ID
from mainspring.store.sqlite.statements import schema_of
from proof.faults import scenarios, whole
from proof.faults.judge import FILE, Recover, scratch
from proof.faults.replay import Image, Replay, put
from proof.faults.vfs import Disk, Mark, Plan
from proof.faults.world import Maker, Told, World


@contextlib.contextmanager
def small_steps() -> Iterator[None]:
    """Checkpoints, long cascades and new tries come within a scenario of some dozen tasks."""
    with (
        mock.patch.object(log, "FOLD_BYTES", 60 * 4096),
        mock.patch.object(graph, "TRAVEL_LIMIT", 4),
        mock.patch.object(sql_store, "RETRY_S", 0.005),
        mock.patch.object(sql_store, "MOST_RETRY_S", 0.02),
    ):
        yield


class Trouble(NamedTuple):
    """How the disk fails, and from when on its operations are counted."""

    plan: Plan
    opening: bool = False  # from the first one on, not from the end of opening on


@dataclass(slots=True)
class Played:
    """A scenario that was played to its end."""

    disk: Disk
    mended: int = 0  # length of the log when the disk was mended
    refusals: int = 0
    doubts: int = 0


Play = Callable[[Disk, "Scene", Trouble | None], Awaitable[Played]]


async def on_store(disk: Disk, scene: Scene, trouble: Trouble | None) -> Played:
    """Play it by hand: the test is the caller and the worker."""
    maker = Maker(disk.folder / FILE, **scene.config)
    made = maker()
    if trouble is not None and trouble.opening:
        disk.break_(trouble.plan)
        try:
            await made.open()
        except TaskError:
            disk.heal()
            made = maker()
            await made.open()
    else:
        await made.open()
        if trouble is not None:
            disk.break_(trouble.plan)
    world = World(made, maker.clock, disk.mark)
    assert scene.run is not None
    await scene.run(world)
    played = Played(disk)
    if trouble is not None:
        disk.heal()
        played.mended = len(disk.log)
        await world.heard_of_all()
        await world.send_again()
        await scenarios.recovery(world)
    await made.close()
    played.refusals, played.doubts = world.refusals, world.doubts
    return played


async def on_engine(disk: Disk, scene: Scene, trouble: Trouble | None) -> Played:
    """Let a whole engine run it, with handlers of its own."""
    played = Played(disk)

    def begun() -> None:
        if trouble is not None:
            disk.break_(trouble.plan)

    def ending() -> None:
        disk.heal()
        played.mended = len(disk.log)

    caller = await whole.play(disk.folder / FILE, disk.mark, begun, ending)
    played.refusals, played.doubts = caller.refusals, caller.doubts
    return played


@dataclass(frozen=True, slots=True)
class Scene:
    """A scenario, and what lies on the disk before it."""

    name: str
    run: scenarios.Run | None  # None: an engine runs by itself
    play: Play = on_store
    recover: Recover = scenarios.recover
    start: Image = field(default_factory=dict)
    told: tuple[Told, ...] = ()  # before it
    config: dict[str, Any] = field(default_factory=dict)


async def play(scene: Scene, trouble: Trouble | None = None) -> Played:
    with scratch() as name:
        put(scene.start, Path(name))
        with Disk(Path(name)) as disk:
            return await scene.play(disk, scene, trouble)


def all_scenes(**config: Any) -> dict[str, Scene]:
    image, told = asyncio.run(left_behind())
    return {
        scene.name: scene
        for scene in (
            Scene("small", scenarios.small, config=config),
            Scene("mixed", scenarios.mixed, config=config),
            Scene("recovery", scenarios.recovery, start=image, told=told, config=config),
            Scene("upgrade", scenarios.recovery, start={FILE: old_file()}, config=config),
            Scene("engine", None, on_engine, whole.recover),
        )
    }


def old_file() -> bytes:
    """A store of the first version, with a task that is ready and one that waits for it."""
    with scratch() as name:
        path = Path(name, FILE)
        connection = apsw.Connection(str(path))
        connection.execute(schema_of(1))
        connection.pragma("application_id", APPLICATION_ID)
        connection.pragma("user_version", 1)
        connection.execute(
            "INSERT INTO class VALUES (1, 'default', ?, ''); INSERT INTO edge VALUES (2, 0, 1, 0)", (WORK,)
        )
        for seq, reason, parent in ((1, 0, None), (2, 1, 1)):
            task = new("ok")
            connection.execute(
                "INSERT INTO task (seq, id, class, rank, status, reason, priority, max_retries, submitted_ms, ready_ms,"
                " waits_for, waits_at, input) VALUES (?, ?, 1, 0, 0, ?, 1, 3, 0, 0, ?, ?, ?)",
                (seq, task.id, reason, parent, parent and 0, task.input),
            )
        connection.execute("INSERT INTO tally VALUES (1, 0, 2), (0, 0, 2)")
        connection.close()
        return path.read_bytes()


async def left_behind() -> tuple[Image, tuple[Told, ...]]:
    """A store whose process died at work, and what was told before."""
    with scratch() as name:
        folder = Path(name)
        with Disk(folder) as disk:
            maker = Maker(folder / FILE)
            store = maker()
            await store.open()
            await scenarios.leave_behind(store, maker.clock, disk.mark)
            await scenarios.die(store)
        replay = Replay(disk, forgetful=False)
        for entry in disk.log:
            replay.step(entry)
        return replay.after_death(), tuple(entry.what for entry in disk.log if isinstance(entry, Mark))
