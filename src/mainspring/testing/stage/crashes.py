"""A user's scenario, with its process killed before and after each durable step, and what must hold afterwards."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import shutil
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, get_args

import apsw

from mainspring.config import EngineConfig
from mainspring.engine import Engine
from mainspring.environment import HERE, SYSTEM
from mainspring.errors import InvalidInput, invalid
from mainspring.testing.history import check_history
from mainspring.testing.simulator.machine import Process
from mainspring.testing.simulator.strands import Died
from mainspring.testing.stage.engine import Fallen, SimulatedEngine, lent
from mainspring.testing.stage.stage import Stage

Moment: TypeAlias = Literal["before", "after"]
Scenario: TypeAlias = Callable[[SimulatedEngine], Awaitable[object]]
logger = logging.getLogger("mainspring")
NO_LOOP = "crashes are played on event loops of their own; call mainspring_crashes in a plain def test"
_POINT = re.compile(r"(\d+)-(before|after)")


class Point(NamedTuple):
    step: int  # from 1
    moment: Moment

    def __str__(self) -> str:
        return f"{self.step}-{self.moment}"


class CrashReport(NamedTuple):
    """What was played."""

    steps: int  # durable ones, of the scenario without a crash
    crashes: int

    def __str__(self) -> str:
        left = 2 * self.steps - self.crashes
        return f"{self.crashes} crashes at {self.steps} durable steps" + (f"; {left} were left out" if left else "")


class CrashesBroken(Exception):
    """The store breaks its invariants after a crash, or the scenario can't be played."""


class Crashes:
    """Plays scenarios. `only` is one point to be played alone, `command` tells how to repeat a point."""

    def __init__(self, folder: Path, command: Callable[[str], str], seed: int = 0, only: str | None = None) -> None:
        self._folder = folder
        self._command = command
        self._seed = seed
        self._only = None if only is None else _point(only)
        self._began_ms = SYSTEM.wall_ms()
        self._numbers = count()
        self.reports: list[CrashReport] = []

    def __call__(
        self,
        scenario: Scenario,
        check: Callable[[SimulatedEngine], object] | None = None,
        *,
        engine: Engine | None = None,
        config: EngineConfig | None = None,
        reset: Callable[[], object] | None = None,
        again: bool = True,
        max_steps: int = 200,
    ) -> CrashReport:
        """Play a scenario once, then once for each crash; each time in a new store.

        A durable step is a commit that changes the store. The process that runs the scenario is killed before or after
        it, another one comes, and then nothing may be left undone, `check` must pass, and the store must be sound.

        Args:
            scenario: what the program does: an async function of the engine, which is open. It runs in the process.
            check: what must hold at the end: a function of the engine, async or not.
            engine: the application's, with its handlers; it is the one of the scenario meanwhile.
            config: of the engine, where not the application's own.
            reset: called before each time: empties what fakes of the outside world remember.
            again: the next process runs the scenario again, as a program that is restarted does; else it only works.
            max_steps: at most so many steps, evenly chosen.

        Raises: what scenario and check raise, and CrashesBroken, with a note that says where, and how to repeat it.
        """
        __tracebackhide__ = True
        _refuse_running_loop()
        if type(max_steps) is not int or max_steps < 1:
            raise invalid("max_steps", max_steps, "is no number of steps", "use 1 or more")

        def play(point: Point | None) -> int:
            __tracebackhide__ = True
            if reset is not None:
                reset()
            return self._play(scenario, check, engine, config, again, point)

        with _noted("without any crash"):
            steps = play(None)
        points = [self._only] if self._only is not None else _chosen(steps, max_steps)
        for point in points:
            where = f"with the process killed {point.moment} durable step {point.step} of {steps}"
            with _noted(f"{where}; to repeat that alone:\n  {self._command(str(point))}"):
                play(point)
        self.reports.append(CrashReport(steps, len(points)))
        return self.reports[-1]

    def _play(
        self,
        scenario: Scenario,
        check: Callable[[SimulatedEngine], object] | None,
        like: Engine | None,
        config: EngineConfig | None,
        again: bool,
        point: Point | None,
    ) -> int:
        __tracebackhide__ = True
        folder = self._folder / f"{next(self._numbers)}-{point}"
        folder.mkdir()
        steps = _Steps(point)
        stage = Stage(self._seed, self._began_ms)
        with _quiet(is_quiet=self._only is None), stage.open():
            engine = SimulatedEngine(stage, folder / "work.db", config, like=like, traced=steps.sees)
            if again:
                engine.carried = frozenset(engine.executor.handlers)
            with lent(like, engine):
                stage.run(_live(engine, scenario, again))
                steps.is_over = True
                stage.run(_judge(engine, check))
            if point is None and (unused := engine.plans.unused()):
                raise CrashesBroken("what the scenario asked to fail did not: " + "; ".join(unused))
        if point is not None and not steps.struck:
            raise CrashesBroken("that step did not come: the scenario does not do the same each time")
        shutil.rmtree(folder)
        return steps.count


async def _live(engine: SimulatedEngine, scenario: Scenario, again: bool) -> None:
    """Run the program to its end, as often as it takes."""
    __tracebackhide__ = True
    await engine.start()
    while True:
        life = engine.process
        try:
            await engine.in_process(scenario(engine))  # type: ignore[arg-type]
        except Fallen:
            await engine.back
            if again:
                continue
        await engine.run_until_idle()
        if engine.process is life or not again:
            return


async def _judge(engine: SimulatedEngine, check: Callable[[SimulatedEngine], object] | None) -> None:
    __tracebackhide__ = True
    if check is not None:
        verdict = check(engine)
        if inspect.isawaitable(verdict):
            await verdict
    if found := check_history(engine.path, blobs=engine.blobs):
        raise CrashesBroken("\n  ".join(["the store is not sound; please report this:", *map(str, found)]))


class _Steps:
    """Counts the durable steps of an engine's processes, and kills one."""

    def __init__(self, point: Point | None) -> None:
        self.count = 0
        self.struck = False
        self.is_over = False  # what comes now is no step of the scenario
        self._point = point
        self._changes: dict[apsw.Connection, int] = {}  # before the transaction

    def sees(self, connection: apsw.Connection, sql: str) -> bool:
        if sql.startswith("BEGIN"):
            self._changes[connection] = connection.total_changes()
        elif sql == "COMMIT" and not self.is_over and connection.total_changes() > self._changes.get(connection, 0):
            self.count += 1
            if self._point is not None and self.count == self._point.step:
                self._strike(connection, self._point.moment)
        return True

    def _strike(self, connection: apsw.Connection, moment: Moment) -> None:
        self.struck = self.is_over = True
        if moment == "after":
            connection.execute("COMMIT")
        process = HERE.get()
        assert isinstance(process, Process)
        process.halt()
        raise Died


def _chosen(steps: int, most: int) -> list[Point]:
    n = min(steps, most)
    return [Point(1 + at * steps // n, moment) for at in range(n) for moment in get_args(Moment)]


def _point(text: str) -> Point:
    match = _POINT.fullmatch(text)
    if match is None:
        raise invalid("--mainspring-crash", text, "is no point", "write it as in 7-before or 7-after")
    return Point(int(match[1]), match[2])  # type: ignore[arg-type]


def _refuse_running_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise InvalidInput(NO_LOOP)


@contextmanager
def _noted(note: str) -> Iterator[None]:
    try:
        yield
    except BaseException as exc:  # pytest.fail is not an Exception
        exc.add_note(note)
        raise


@contextmanager
def _quiet(*, is_quiet: bool) -> Iterator[None]:
    """Each death is worth a warning where it is not meant; a test that fails shows enough without hundreds of them."""
    level = logger.level
    if is_quiet:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
