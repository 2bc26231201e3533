"""The process lane behind the engine: what a limit, a cancel and a crash mean when the handler can be killed."""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.engine import process_work
from tests.engine.support import SOON, engine_on, shows, until, value

from mainspring import (
    Batch,
    Custom,
    Engine,
    InvalidInput,
    ProcessingFailed,
    Task,
    TaskCancelled,
    TaskPriority,
    TaskStatus,
    TaskTimeout,
    TaskType,
)
from mainspring.processors.base import Lane

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
async def engine(anyio_backend: str) -> AsyncIterator[Engine]:
    engine = engine_on(process_slots=2)
    for function in vars(process_work).copy().values():
        if getattr(function, "__module__", "") == process_work.__name__:
            engine.task(lane="process", retry=SOON)(function)
    async with engine:
        yield engine


async def outcomes(handle: Any) -> list[str]:
    return [attempt.outcome for attempt in (await handle.info()).attempts]


async def test_results_and_errors_cross_the_pipe(engine: Engine) -> None:
    """Values come back; exceptions keep type, message and traceback; retries are counted."""
    assert await engine.gather(await engine.map(process_work.double, range(30))) == [2 * n for n in range(30)]
    handle = await engine.submit(process_work.fail, 2)
    assert await value(handle) == 3
    assert await outcomes(handle) == ["retry", "retry", "completed"]
    with pytest.raises(ProcessingFailed, match="never works") as caught:
        await value(await engine.submit(process_work.refuse))
    assert caught.value.attempts == 1
    assert caught.value.info is not None
    assert "process_work.py" in str(caught.value.info.traceback)


async def test_a_limit_ends_what_computes(engine: Engine, tmp_path: Path) -> None:
    """Pure Python that never looks up is killed at its limit; the other slot goes on."""
    spinner = await engine.submit(process_work.spin, str(tmp_path / "a"), timeout="0.2s", max_retries=0)
    others = await engine.map(process_work.double, range(10))
    with pytest.raises(TaskTimeout):
        await value(spinner)
    assert await engine.gather(others) == [2 * n for n in range(10)]
    assert (await spinner.info()).status is TaskStatus.TIMEOUT
    assert await value(await engine.submit(process_work.double, 1)) == 2


async def test_cancel_ends_what_computes(engine: Engine, tmp_path: Path) -> None:
    """First it is asked; past its grace it is killed. Either way CANCELLED is what is recorded."""
    for function in (process_work.spin, process_work.until_asked):
        mark = tmp_path / function.__name__
        handle = await engine.submit(function, mark=str(mark))
        await until(mark.exists)
        assert await handle.cancel() in ("requested", "cancelled")
        with pytest.raises(TaskCancelled):
            await value(handle)
        assert (await handle.info()).status is TaskStatus.CANCELLED


@pytest.mark.parametrize(("how", "evidence"), [("segfault", "SIGSEGV"), ("leave", "exit")])
async def test_a_crash_costs_only_its_own_task(engine: Engine, how: str, evidence: str) -> None:
    """After three crashes it is FAILED with what is known of the death; what ran beside it is done."""
    function = getattr(process_work, how)
    arguments = {"code": 3} if how == "leave" else {}
    crasher = await engine.submit(function, **arguments)
    others = await engine.map(process_work.double, range(20))
    with pytest.raises(ProcessingFailed, match="child process") as caught:
        await value(crasher)
    assert await engine.gather(others) == [2 * n for n in range(20)]
    info = await crasher.info()
    assert info.status is TaskStatus.FAILED
    assert await outcomes(crasher) == ["crashed", "crashed", "failed"]
    error = caught.value.info
    assert error is not None
    assert evidence.lower() in f"{error.message} {error.traceback}".lower()
    if how == "leave":
        assert "last words" in str(error.traceback)


async def test_one_crash_is_survived(engine: Engine, tmp_path: Path) -> None:
    """A crash is no failure of the task: it runs again, also without retries, and no retry is charged."""
    handle = await engine.submit(process_work.leave_once, str(tmp_path / "mark"), max_retries=0)
    assert await value(handle) == "second time"
    assert await outcomes(handle) == ["crashed", "completed"]
    assert (await handle.info()).task.retry_count == 0


@pytest.mark.parametrize("kind", ["SystemExit", "KeyboardInterrupt", "GeneratorExit"])
async def test_base_exceptions(engine: Engine, kind: str) -> None:
    """They end the attempt, not the child."""
    pid = await value(await engine.submit(process_work.where))
    with pytest.raises(ProcessingFailed, match=kind):
        await value(await engine.submit(process_work.leave_by, kind, max_retries=0))
    pids = await engine.gather([await engine.submit(process_work.where) for _ in range(4)])
    assert pid in pids


async def test_children_of_a_process_handler(engine: Engine) -> None:
    """Fan-out works from a child process too, with and without `now`."""
    handle = await engine.submit(process_work.parent, 4)
    total = await engine.submit(process_work.same, handle)
    assert await value(handle) == [0, 2, 4, 6]
    assert await value(total) == [0, 2, 4, 6]


@pytest.mark.parametrize("now", [False, True])
async def test_a_child_is_submitted_as_its_handler_is_declared(now: bool) -> None:
    """By name and with all options, as a thread would submit it, also where it is registered while children run."""
    async with engine_on(process_slots=1) as engine:
        engine.task(lane="process")(process_work.where)
        await value(await engine.submit(process_work.where))  # a child is there
        engine.task(
            name="sum.up", lane="process", batch=Batch(max_size=2), priority=TaskPriority.HIGH, retry=7, timeout="9m",
            cache="1h", cost=2.5,
        )(process_work.sums)  # fmt: skip
        tasks = []
        lanes: tuple[Lane, ...] = ("thread", "process")
        for name in lanes:
            engine.task(name=name, lane=name)(process_work.submits_as_declared)
            parent = Task(task_type=TaskType.custom(name), input=Custom({"now": now}))
            child = engine.handle(await value(await engine.submit(parent)))
            assert await value(child) == 1
            tasks.append((await child.info()).task)
        by_thread, by_process = (msgspec.structs.replace(task, id=tasks[0].id) for task in tasks)
        assert by_process == by_thread
        assert (by_process.task_type, by_process.max_retries, by_process.cost) == ("custom:sum.up", 7, 2.5)


async def test_what_cannot_be_stored_fails_its_attempt(engine: Engine) -> None:
    """An open file can't leave its process."""
    with pytest.raises(InvalidInput, match="can't be stored") as caught:
        await value(await engine.submit(process_work.open_file))
    assert caught.value.attempts == 1


async def test_progress_comes_from_the_child(engine: Engine, tmp_path: Path) -> None:
    """`ctx.progress` shows in info while the child runs."""
    mark = tmp_path / "go"
    handle = await engine.submit(process_work.progress, str(mark))
    await shows(handle, progress=(3.0, 4.0))
    mark.touch()
    await value(handle)


async def test_metrics(engine: Engine) -> None:
    """CPU time and peak memory are the attempt's own; waiting costs no CPU."""
    burner = await engine.submit(process_work.burn, 0.1)
    napper = await engine.submit(process_work.nap, 0.1)
    large = await engine.submit(process_work.allocate, 64)
    small = await engine.submit(process_work.double, 1)
    await engine.gather([burner, napper, large, small])
    busy, idle, big, little = [
        (await engine.manager.get_task_result(handle.id)).metrics for handle in (burner, napper, large, small)
    ]
    assert busy.lane == "process"
    assert busy.cpu_time is not None
    assert idle.cpu_time is not None
    assert 0.09 < busy.cpu_time < 0.2
    assert idle.cpu_time < 0.05
    assert busy.duration is not None
    assert idle.duration is not None
    assert min(busy.duration, idle.duration) >= 0.1
    assert big.memory_bytes is not None
    assert little.memory_bytes is not None
    assert big.memory_bytes >= 64 << 20
    assert busy.queue_wait is not None


async def test_large_values_cross_the_pipe(engine: Engine) -> None:
    """Two megabytes in and out."""
    text = "ab" * (1 << 20)
    assert await value(await engine.submit(process_work.same, text)) == text


async def test_killed_children_leave_the_others_uncharged(engine: Engine, tmp_path: Path) -> None:
    """Tasks queued behind one that is killed run once and have one attempt."""
    spinner = await engine.submit(process_work.spin, str(tmp_path / "b"), timeout="0.1s", max_retries=0)
    crasher = await engine.submit(process_work.leave, 5)
    queued = await engine.map(process_work.double, range(40))
    for handle in (spinner, crasher):
        with pytest.raises((TaskTimeout, ProcessingFailed)):
            await value(handle)
    await engine.gather(queued)
    for handle in queued:
        assert await outcomes(handle) == ["completed"]


def test_what_a_child_could_not_import_is_refused() -> None:
    """Lambdas, nested functions and functions of no file are refused when declared; nothing is registered."""
    engine = engine_on()

    def nested() -> None: ...

    with pytest.raises(InvalidInput, match="top level of a module"):
        engine.task(lane="process")(nested)
    with pytest.raises(InvalidInput, match="lambda"):
        engine.task(lane="process", name="anonymous")(lambda: 1)
    scope: dict[str, Any] = {"__name__": "nowhere_at_all"}
    exec("def typed_in(): ...", scope)
    with pytest.raises(InvalidInput, match="file"):
        engine.task(lane="process")(scope["typed_in"])
    assert engine.executor.handlers == {}


def test_the_lane_is_there_before_its_first_task() -> None:
    """Declaring a handler loads the lane: later a process may have no descriptor left to read a module with."""
    code = (
        "import sys; from mainspring import Engine; from tests.engine import process_work; engine = Engine()\n"
        "before = 'mainspring.execution.processes' in sys.modules\n"
        "engine.task(lane='process')(process_work.double)\n"
        "print(before, 'mainspring.execution.processes' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout == "False True\n", done.stderr


async def test_a_module_that_takes_long_to_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as its child imports it, that is what a task is said to wait for."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    waits = f"import os\nif os.getpid() != {os.getpid()}:\n    open({str(gate)!r}).read()\n"
    module = f"{waits}def work(n: int) -> int:\n    return n\n"
    (tmp_path / "slow_to_import.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    work = importlib.import_module("slow_to_import").work
    async with engine_on(tmp_path / "work.db", process_slots=1) as engine:
        engine.task(lane="process")(work)
        handle = await engine.submit(work, 1)
        with await asyncio.to_thread(gate.open, "w"):  # once the child reads
            said = await handle.explain()
        words = "has given it to a child process, which begins it once it has started and imported the module."
        assert said == f"Worker {engine.manager.store.worker_id} has claimed it and {words}"
        assert await value(handle) == 1
