"""One seed, one run: a world is made, lives, comes to rest, and is judged."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import linecache
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import apsw
import msgspec

from mainspring.blobs.keys import SCHEMA as BLOB_SCHEMA
from mainspring.config import StoreConfig
from mainspring.environment import Random
from mainspring.store.sqlite import connection
from mainspring.store.sqlite.statements import SQL
from mainspring.tasks import Rate
from mainspring.testing.simulator.ages import age, sweeping
from mainspring.testing.simulator.clients import Client, Known
from mainspring.testing.simulator.governor import Governor
from mainspring.testing.simulator.loop import Deadlock, Livelock, SimLoop
from mainspring.testing.simulator.machine import Process
from mainspring.testing.simulator.order import Order
from mainspring.testing.simulator.shape import Shape, draw
from mainspring.testing.simulator.troubles import Troubles
from mainspring.testing.simulator.verdict import Verdict
from mainspring.testing.simulator.world import Node, World
from mainspring.testing.violation import Violation
from mainspring.vectors.appliers import SCHEMA as VECTOR_SCHEMA

_BOUND_S = 400.0
"""How long, without faults, all tasks of a run may take to end."""
_TOLD_S = 10.0
_STORES = 64
"""So many files without tasks are kept, by what they say of groups."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    seed: int
    violations: list[Violation]
    trace: list[tuple[float, str, str, dict[str, Any]]]
    shape: str
    steps: int
    seconds: float  # of virtual time
    tasks: int


def simulate(seed: int) -> Outcome:
    """Run one seed. Repeatable: the same seed gives the same trace, in any process."""
    rng = Random(f"{seed}:shape")
    shape, order = draw(rng, Random(f"{seed}:rations"), Random(f"{seed}:ages")), Order(Random(f"{seed}:order"))
    with _quiet_machine(), _folder() as folder:
        return _run(seed, shape, order, folder)


def _run(seed: int, shape: Shape, order: Order, folder: Path) -> Outcome:
    loop = SimLoop(order)
    path = folder / "work.db"
    path.write_bytes(_store_with(*_rules(shape)))
    world = World(seed, shape, loop, path)
    known = Known(shape.tasks, Random(f"{seed}:equal"), is_deadly="kill" in shape.faults, rolls_out=shape.rolls_out)
    loop.set_exception_handler(lambda _, context: _report(world, context))
    with _listening(world), _owning_connections(world), sweeping(shape):
        try:
            loop.run_until_complete(_live(world, known))
        except (Deadlock, Livelock) as exc:
            world.witness.accuse("progress", None, type(exc).__name__, text=str(exc))
        finally:
            world.bury_all()
    violations = Verdict(world, known).violations()
    outcome = Outcome(
        seed=seed,
        violations=violations,
        trace=world.notes,
        shape=f"{shape}; order: {order}",
        steps=loop.steps,
        seconds=loop.now + world.machine.slept_s,
        tasks=known.numbers,
    )
    loop.set_exception_handler(lambda *_: None)
    with _listening(world):  # what frames say while they end is of no interest any more
        loop.end_frames()
    loop.close()
    return outcome


async def _live(world: World, known: Known) -> None:
    clients: list[Client] = []
    living: list[asyncio.Task[None]] = []
    troubles, governor = Troubles(world), Governor(world, clients)

    def arrived(node: Node) -> None:
        for number in range(world.shape.clients if node.works else 1):
            client = Client(world, node, known, number, is_deadly="kill" in world.shape.faults)
            clients.append(client)
            living.append(node.process.spawn(client.live() if node.works else client.watch(), "client"))

    world.arrived = arrived
    world.begin()
    trouble = asyncio.create_task(troubles.go_on(), name="troubles")
    looking = asyncio.create_task(_look(world), name="look")
    governing = asyncio.create_task(governor.go_on(), name="governor") if world.shape.change_every_s else None
    await world.until(lambda: known.left <= 0, world.shape.span_s)
    if world.shape.faults:  # they go on while what was submitted last runs
        await asyncio.sleep(world.rng.random())
    trouble.cancel()
    looking.cancel()
    if governing is not None:
        governing.cancel()
    troubles.end()
    world.note("world", "goes on without faults", unfinished=world.unfinished())
    await age(world)
    await _come_to_rest(world, governor, clients, living)
    await world.close()


async def _look(world: World) -> None:
    """Look at the rows once while things go on: what is broken for a moment alone is found by many worlds together."""
    await asyncio.sleep(Random(f"{world.seed}:looks").expovariate(1 / 0.2))
    world.witness.look(world.latest_start_ms)


async def _come_to_rest(
    world: World, governor: Governor, clients: list[Client], living: list[asyncio.Task[None]]
) -> None:
    """Without faults everything ends: clients, tasks, and waits for them."""
    await world.until(
        lambda: all(_is_over(client, task) for client, task in zip(clients, living, strict=True)), _TOLD_S
    )
    await world.lift_pauses()
    await governor.settle()
    if not await world.until(lambda: not world.unfinished() and bool(world.up), _BOUND_S):
        for id, status, reason, due in world.stuck():
            world.witness.accuse("progress", id, "does not end", status=status, reason=reason, due=due)
    for task in living:
        if task.done() and not task.cancelled() and task.exception() is not None:
            world.witness.accuse("errors", None, "a client failed", exception=repr(task.exception()))
    if not await world.until(lambda: all(_is_told(client) for client in clients), _TOLD_S):
        for left in {task for client in clients if client.is_alive for task in client.unanswered}:
            world.witness.accuse("progress", str(left), "has ended, and somebody still waits for it")


def _is_over(client: Client, task: asyncio.Task[None]) -> bool:
    return task.done() or not client.is_alive


def _is_told(client: Client) -> bool:
    return not client.is_alive or not client.unanswered


def _report(world: World, context: dict[str, Any]) -> None:
    exc, owner = context.get("exception"), getattr(context.get("task") or context.get("future"), "owner", None)
    if isinstance(owner, Process) and not owner.is_alive:
        return
    world.witness.accuse("errors", None, str(context.get("message")), exception=repr(exc))


class _Ear(logging.Handler):
    def __init__(self, world: World) -> None:
        super().__init__(logging.WARNING)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self._world.note("log", record.levelname.lower(), text=text)
        if record.levelno >= logging.ERROR:
            exc = record.exc_info[1] if record.exc_info else None
            self._world.witness.accuse("errors", None, text, exception=repr(exc))


@contextlib.contextmanager
def _listening(world: World) -> Iterator[None]:
    """What the package logs goes into the trace; an error is a violation."""
    logger, ear = logging.getLogger("mainspring"), _Ear(world)
    logger.addHandler(ear)
    propagates, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(ear)
        logger.propagate = propagates


@contextlib.contextmanager
def _owning_connections(world: World) -> Iterator[None]:
    apsw.connection_hooks.append(world.machine.adopt)
    try:
        yield
    finally:
        apsw.connection_hooks.remove(world.machine.adopt)


@contextlib.contextmanager
def _quiet_machine() -> Iterator[None]:
    """No garbage is collected half way: when finalizers run must not depend on what ran before.

    What is left of dead processes closes itself afterwards, and may fail at that.
    """
    collects = gc.isenabled()
    gc.disable()
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of what died before it began
            with _sure_of_the_disk():
                yield
            gc.collect(0)  # nothing was, so that is all of this run
    finally:
        sys.unraisablehook = hook
        if collects:
            gc.enable()


@contextlib.contextmanager
def _sure_of_the_disk() -> Iterator[None]:
    """Don't ask again and again what is the same in all worlds: faults here are of statements, never of the file.

    Sources don't change, the folder is on no network, and the file is ours, whole and not newer.
    """
    with (
        mock.patch.object(linecache, "checkcache", _spared),
        mock.patch.object(connection, "filesystem", _spared),
        mock.patch.object(connection, "_judge", _spared),
    ):
        yield


def _spared(*_: object) -> None:
    """What stands there in their place; a mock keeps all that it is called with."""


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
    folder = tempfile.mkdtemp(prefix="mainspring-sim-", dir=base)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _rules(shape: Shape) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield the statements that set what groups may have, with their values."""
    for group in sorted({*shape.limits, *shape.rates}):
        rate = Rate.parse(shape.rates[group], "rate") if group in shape.rates else (None, None)
        yield "put_limit", ("", group, shape.limits.get(group), *rate, None, None, 0)
    for (namespace, group), weight in shape.shares.items():
        yield "put_share", (namespace, group, weight)


@lru_cache(_STORES)
def _store_with(*rules: tuple[str, tuple[Any, ...]]) -> bytes:
    if not rules:
        return empty_store()
    with _folder() as folder:
        path = folder / "ruled.db"
        path.write_bytes(empty_store())
        connection = apsw.Connection(str(path))
        for name, values in rules:
            connection.execute(SQL[name], values)
        connection.close()
        return path.read_bytes()


@lru_cache(1)
def empty_store() -> bytes:
    """The file of a store without tasks: copying it is cheaper than making it."""
    with _folder() as folder:
        path = folder / "empty.db"
        connection.open_writer(path, StoreConfig(), extra_schema=VECTOR_SCHEMA + BLOB_SCHEMA).close()
        return path.read_bytes()
