"""The world of one simulated run: a machine, a store's file, and engine processes that come, fail and go."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from contextvars import Context
from functools import partial
from pathlib import Path
from typing import Any

from mainspring.config import SchedulerConfig
from mainspring.dispatch import lane
from mainspring.dispatch.lane import LaneDesk
from mainspring.engine import Engine
from mainspring.environment import Environment, Random
from mainspring.errors import TaskError
from mainspring.processors import context as contexts
from mainspring.processors.batch import Batch
from mainspring.resources.monitor import ResourceMonitor, ResourceUsage
from mainspring.store.base import Claimed
from mainspring.store.sql.operations import Group
from mainspring.store.sql.transaction import Transaction
from mainspring.store.sqlite.connection import open_reader
from mainspring.tasks import TaskId
from mainspring.testing.simulator.ages import Aged
from mainspring.testing.simulator.disk import Disk
from mainspring.testing.simulator.handlers import CODES, handlers
from mainspring.testing.simulator.loop import SimLoop
from mainspring.testing.simulator.machine import Machine, Process
from mainspring.testing.simulator.rations import Rations
from mainspring.testing.simulator.shape import Shape
from mainspring.testing.simulator.together import Member
from mainspring.testing.simulator.witness import CARE, LAGS, Witness

_LOOK_S = 0.1
_STOP_S = 120.0
DAY_S = 86_400.0
LONGEST_STALL_S = 8.0
"""No process stands still for longer."""


class Node:
    """One life of an engine process.

    Args:
        works: whether it runs tasks; else it only waits for what others run.
    """

    def __init__(self, world: World, slot: int, life: int, *, works: bool = True) -> None:
        self.world = world
        self.slot = slot
        self.works = works
        self.name = f"p{slot}.{life}"
        self.process = Process(world.machine, self.name)
        self.process.died = self.fall
        self.process.witness = world
        self.disk = Disk(self.process, Random(f"{world.seed}:disk:{self.name}"))
        self.code = CODES[life % len(CODES)] if world.shape.rolls_out else CODES[0]
        self.engine: Engine | None = None
        self.is_up = False
        self.is_over = False
        self.submitting = 0  # calls of clients under way
        self._care = asyncio.Event()
        self._given: dict[int, float] = {}  # tasks that it gave to others that had nothing to do: when it last did

    def start(self) -> None:
        self.process.spawn(self._run(), "main").add_done_callback(self._ran)

    def _ran(self, main: asyncio.Task[None]) -> None:
        if (exc := main.exception()) is not None:
            self.world.witness.accuse("errors", None, "a process failed", exception=repr(exc))
            self.fall()

    async def _run(self) -> None:
        """What the process's main program does."""
        world = self.world
        began_in_trouble = world.is_troubled
        engine = self.engine = Roomy(world.path, world.shape.config, env=self.process, worker=self.works)
        for handler in handlers(self.code).values():
            engine.executor.register(handler)
        try:
            await engine.start()
        except TaskError as exc:
            world.note(self.name, "can't start", error=exc)
            if not began_in_trouble:  # what struck then may show later
                world.witness.accuse("opening", None, "can't start although nothing is wrong", error=str(exc))
            self.fall()
            return
        self._watch_claims(engine)
        self._watch_shares(engine)
        self.is_up = True
        world.note(self.name, "is up", worker=engine.manager.store.worker_id)
        world.clocks(self.process)
        world.arrived(self)

    def _watch_claims(self, engine: Engine) -> None:
        writer: Any = engine.manager.store._writer
        report = writer._report
        late: list[Claimed] = []  # what a commit in doubt handed over is told of later

        def watched(tx: Transaction, group: Group, next_event_ms: int | None) -> None:
            late.extend(writer._doubtful)
            if (aged := self.world.witness.aged) is not None:
                aged.look(tx.now_ms)
            if tx.sets_limits and self.world.witness.rations is not None:
                self.world.witness.rations.look(tx)
            self.world.witness.handed_over(tx.claims, self.code)
            if claims := [claim for claim in tx.claims if claim not in late]:
                self.world.witness.claimed(self.process, claims, tx)
            lanes = tx.memory.lane_of_type
            if any(claim.flags & CARE and lanes[claim.task_type].name.startswith("async") for claim in claims):
                self._care.set()
            self._check_taken_back(tx)
            report(tx, group, next_event_ms)

        writer._report = watched

    def _check_taken_back(self, tx: Transaction) -> None:
        """What it gave away it takes back only for a slot that has nothing else, while whoever asked is on its way."""
        now = self.world.loop.now
        config = self.world.shape.config.manager
        slots = {"async": config.async_slots, "thread": config.thread_slots}
        for claim in tx.claims:
            port = tx.memory.lane_of_type.get(claim.task_type)
            is_fresh = now - self._given.get(claim.seq, -1.0) < lane._STEP_BACK_S
            if is_fresh and port is not None and port.taken - port.released > slots.get(port.name, 0):
                self.world.witness.accuse("sharing", str(TaskId(claim.id)), "is taken back by who gave it away")

    def _watch_shares(self, engine: Engine) -> None:
        for desk in engine.manager._desks.values():
            if isinstance(desk, LaneDesk):
                desk.share = partial(self._share, desk, desk.share)  # type: ignore[method-assign]

    def _share(self, desk: LaneDesk, share: Callable[[Any], list[Claimed]], is_wanted: Any) -> list[Claimed]:
        """Whoever is asked gives half of what waits for a slot, unless a slot waits for it."""
        waiting = 0 if desk.has_idle() else sum(is_wanted(claim) for claim in desk._queue)
        given = share(is_wanted)
        if waiting:
            self.world.note(
                self.name, "shares", lane=desk.lane, waiting=waiting, given=[TaskId(one.id) for one in given]
            )
        if len(given) < waiting - waiting // 2:
            self.world.witness.accuse("sharing", None, "gives too little", waiting=waiting, given=len(given))
        self._given.update((claim.seq, self.world.loop.now) for claim in given)
        return given

    async def has_care(self) -> None:
        """Wait until it is given a claim that a slot of the loop has to wait for something with, and does."""
        assert self.engine is not None
        self._care.clear()
        await self._care.wait()
        for _ in range(20):
            if any(desk._waiting for desk in self.engine.manager._desks.values() if desk.lane == "async"):
                return
            await asyncio.sleep(self.world.machine.longest_lag_s / 1000)

    def stop(self) -> asyncio.Task[None]:
        """Begin to stop in order, as on SIGTERM."""
        self.is_up = False
        return self.process.spawn(self._stop(), "stop")

    async def _stop(self) -> None:
        assert self.engine is not None
        self.world.note(self.name, "stops")
        self.process.is_draining = True
        await self.engine.stop()
        self.world.note(self.name, "has stopped")
        self.end()

    def fall(self) -> None:
        """Die on the spot."""
        if self.is_over:
            return
        self.world.note(self.name, "dies")
        self.world.witness.died(self.process)
        self.end()

    def end(self) -> None:
        """Nothing of it runs any more, and the system takes back its locks; its files stay."""
        self.is_up, self.is_over = False, True
        self.process.die()
        if self.engine is not None:
            let_go(self.engine)
        self.world.gone(self)


def let_go(engine: Engine) -> None:
    """Take back what the system takes back of a process that died, beside its descriptors."""
    store: Any = engine.manager.store
    if store._life is not None:
        store._life._unmap()  # shared memory outlives it, and holds the lock like a descriptor
        store._life._fd = -1
    if store._caretaker._lock is not None:
        store._caretaker._lock._fd = -1


class Unlimited(ResourceMonitor):
    """A machine with room for everything."""

    def __init__(self) -> None:
        """There is nothing to look at."""
        self.limits = SchedulerConfig()

    def sample(self) -> ResourceUsage:
        return ResourceUsage(
            cpu_usage=0.0, own_cpu_usage=0.0, memory_bytes=0, own_memory_bytes=0, storage_bytes=0, network_bytes=0,
            cpu_limit=1.0, memory_limit_bytes=1 << 40, storage_limit_bytes=1 << 40,
            max_cpu_usage=None, max_memory_bytes=1 << 40, max_storage_bytes=1 << 40,
        )  # fmt: skip


class Roomy(Engine):
    """An engine on such a machine."""

    def _watch_resources(self, env: Environment) -> ResourceMonitor:
        return Unlimited()


class World:
    def __init__(self, seed: int, shape: Shape, loop: SimLoop, path: Path) -> None:
        self.seed = seed
        self.shape = shape
        self.loop = loop
        self.path = path
        self.rng = Random(f"{seed}:world")
        self.machine = Machine(loop, Random(f"{seed}:machine"))
        self.witness = Witness(self.clocks, has_one_code=not shape.rolls_out)
        if shape.has_groups or shape.change_every_s:
            self.witness.rations = Rations(
                self.witness,
                lambda: loop.now + self.machine.slept_s,
                sees_all=not {"disk", "outage"} & {*shape.faults},
                has_one_clock="clock" not in shape.faults,
            )
        if shape.sleeps_s:
            self.witness.aged = Aged(self.witness, shape.config.store)
        self.notes: list[tuple[float, str, str, dict[str, Any]]] = []
        self.is_troubled = True  # faults may strike
        self.nodes: list[Node | None] = [None] * shape.processes
        self.arrived: Callable[[Node], None] = lambda node: None
        self._where = str(path)
        self._lives = 0
        self._ahead_ms = 0  # of the furthest clock
        self._is_closing = False

    def note(self, who: str, what: str, **details: Any) -> None:
        """Keep a line of the trace. Where the file lies is left out of it: that differs from run to run."""
        for name, value in details.items():
            text = f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else value
            if isinstance(text, str) and self._where in text:
                text = text.replace(self._where, self.path.name)
            details[name] = text
        self.notes.append((self.loop.now, who, what, details))

    # Processes

    def begin(self) -> None:
        self.witness.rows = open_reader(self.path)
        self._start(0)
        for slot in range(1, self.shape.processes):  # with the first, or while it is at work
            self.loop.call_later(
                self.rng.choice((0.0, 0.0, 0.02)) * self.rng.random(), self._start, slot, context=Context()
            )

        visiting = Random(f"{self.seed}:visitor")
        if self.shape.waits_for_word and visiting.random() < 0.4:
            self.loop.call_later(0.05 + 0.5 * visiting.random(), self._visit, context=Context())

    def _start(self, slot: int) -> None:
        self._lives += 1
        node = self.nodes[slot] = Node(self, slot, self._lives)
        node.start()

    def _visit(self) -> None:
        """One that only waits comes in nobody's place: what it is not told then it never learns."""
        self._lives += 1
        visitor = Node(self, len(self.nodes), self._lives, works=False)
        self.nodes.append(visitor)
        visitor.start()

    def gone(self, node: Node) -> None:
        """A process is over: another one takes its place a little later, unless others can do without."""
        if not node.works or self._is_closing:
            return
        if self.rng.random() < 0.7 or not any(one is not None and one.works and not one.is_over for one in self.nodes):
            delay = self.rng.choice((0.0, 0.1, 1.0)) * self.rng.random()
            self.loop.call_later(delay, self._start, node.slot, context=Context())  # not in that of the dead

    @property
    def up(self) -> list[Node]:
        return [node for node in self.nodes if node is not None and node.is_up]

    def clocks(self, process: Process) -> tuple[int, int]:
        """Return what the store's clock shows in a process, and the furthest one of all there were."""
        node = next(node for node in self.nodes if node is not None and node.process is process)
        assert node.engine is not None
        now = node.engine.manager.store.now_ms()
        self._ahead_ms = max(self._ahead_ms, now - int(self.loop.now * 1000))
        return now, self._ahead_ms + int(self.loop.now * 1000)

    # What handlers tell (see `handlers.Witness`)

    def began(
        self, process: Process, ctx: contexts.Context, plan: dict[str, Any], inputs: list[Any], lane: str
    ) -> None:
        self.note(process.name, "begins", task=ctx.id, attempt=ctx.attempt, plan=plan)
        self.witness.began(process, ctx, plan, inputs, lane)

    def began_together(
        self, process: Process, members: Sequence[Member], inputs: list[Any], lane: str, policy: Batch
    ) -> None:
        for context, plan, _ in members:
            self.note(process.name, "is in a call", task=context.id, attempt=context.attempt, plan=plan)
        self.witness.began_together(process, members, inputs, lane, policy)

    def came_back(self, process: Process, ctx: contexts.Context, how: str) -> None:
        if process.is_alive:
            self.note(process.name, "ends", task=ctx.id, attempt=ctx.attempt, how=how)
        self.witness.came_back(process, ctx)

    def kill(self, process: Process) -> None:
        for node in self.nodes:
            if node is not None and node.process is process:
                node.fall()

    # Looking from outside

    @property
    def latest_start_ms(self) -> int:
        """How long after a claim was checked its handler may begin: threads are slow, and processes stand still."""
        stalls_s = LONGEST_STALL_S if {"stall", "swizzle"} & {*self.shape.faults} else 0.0
        jumps_s = DAY_S if "clock" in self.shape.faults else 0.0  # the clock of the next life may lag behind
        return 1_000 + int(1_000 * (sum(self.shape.sleeps_s) + jumps_s + stalls_s + LAGS * self.machine.longest_lag_s))

    @property
    def lives(self) -> int:
        """How many processes there were."""
        return self._lives

    @property
    def is_submitting(self) -> bool:
        return any(node is not None and not node.is_over and node.submitting for node in self.nodes)

    def unfinished(self) -> int:
        return int(self._one("SELECT count(*) FROM task WHERE status < 2"))

    def first_unfinished(self, n: int) -> list[TaskId]:
        return [TaskId(id) for (id,) in self.rows("SELECT id FROM task WHERE status < 2 ORDER BY seq")[:n]]

    def _one(self, sql: str) -> Any:
        assert self.witness.rows is not None
        row = self.witness.rows.execute(sql).fetchone()
        return None if row is None else row[0]

    async def until(self, holds: Callable[[], bool], limit_s: float) -> bool:
        """Wait until it holds; false when it does not within the limit."""
        until = self.loop.now + limit_s
        while not holds():
            if self.loop.now > until:
                return False
            await asyncio.sleep(_LOOK_S)
        return True

    async def lift_pauses(self) -> None:
        self.witness.pauses.clear()
        while (row := self.rows("SELECT namespace, type, grp FROM pause LIMIT 1")) or not self.up:
            if row and self.up:
                namespace, type, group = row[0]
                node = self.up[0]
                assert node.engine is not None
                node.process.spawn(_resume(node.engine, namespace, type, group))
            await asyncio.sleep(_LOOK_S)

    def rows(self, sql: str, *values: Any) -> list[Any]:
        return self.witness.find(sql, *values)

    async def close(self) -> None:
        """Stop all processes in order."""
        self._is_closing = True
        stopping = [node.stop() for node in self.up]
        done = await self.until(lambda: all(task.done() for task in stopping), _STOP_S)
        if not done:
            self.witness.accuse("draining", None, "a process does not come to its end", left=len(self.up))

    def bury_all(self) -> None:
        """Whatever still lives is over."""
        self._is_closing = True
        for node in self.nodes:
            if node is not None and not node.is_over:
                node.end()

    def stuck(self) -> list[Any]:
        """Return (id, status, reason, due) of tasks that have not ended."""
        return [
            (str(TaskId(id)), status, reason, due)
            for id, status, reason, due in self.rows("SELECT id, status, reason, due_ms FROM task WHERE status < 2")
        ]


async def _resume(engine: Engine, namespace: str, type: str, group: str) -> None:
    with contextlib.suppress(TaskError):  # it is asked again
        await engine.manager.resume(namespace=namespace, type=type, group=group)
