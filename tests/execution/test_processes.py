"""The process lane, with real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.execution.lane import Recorder, alive, begin, call, runner, until, value, work

from mainspring.config import ExecutorConfig
from mainspring.errors import invalid
from mainspring.tasks import ChildTasks, Custom, Log, Progress, Started, Task, TaskId

pytestmark = pytest.mark.anyio

both_loops = pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})], ids=["asyncio", "uvloop"]
)


async def test_handlers_get_typed_arguments_and_their_context() -> None:
    """Arguments are converted, the context names the attempt, stdin is empty, the folder is here."""
    async with runner() as it:
        job = work("describe", point={"x": 3})
        seen = value(await it.run(job, Recorder()))
        assert (seen["x"], seen["attempt"], seen["retry_count"], seen["id"]) == (3, 1, 0, str(job.task_id))
        assert seen["pid"] != os.getpid()
        assert value(await call(it, "stdin_and_main")) == ["", os.getcwd()]
        assert value(await call(it, "double_soon", n=4)) == 8
        assert value(await call(it, "interrupt_self")) == "still here"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process say so")
async def test_a_child_goes_before_its_parent_where_memory_runs_out() -> None:
    """The kernel chooses by this figure and the size: else the engine may be killed for what its child took."""

    def score(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    async with runner() as it:
        child = value(await call(it, "describe", point={"x": 3}))["pid"]
        assert score(child) == min(score(os.getpid()) + 500, 1000)


@both_loops
async def test_two_hundred_quick_ones() -> None:
    """More calls than slots wait for their turn, each gets its own result, and at most slots + 1 children exist."""
    async with runner() as it:
        reports = await asyncio.gather(*(call(it, "double", n=n) for n in range(200)))
        assert [value(report) for report in reports] == [2 * n for n in range(200)]
        assert len(psutil.Process().children()) <= 3


@both_loops
async def test_hard_stop_kills_one_and_not_its_neighbour() -> None:
    """An endless loop ends within its kill, the neighbour in the other child goes on, and the slot works again."""
    async with runner() as it:
        loop_, waits = work("spin"), work("until_cancelled")
        spinning, _ = await begin(it, loop_)
        waiting, _ = await begin(it, waits)
        assert it.stop(loop_, hard=True)
        report = await spinning
        assert report.error is not None
        assert (report.crashed, report.unstarted) == (False, False)
        assert report.usage.cpu_time is not None
        assert not waiting.done()
        assert value(await call(it, "double", n=1)) == 2
        assert not it.stop(waits, hard=False)
        assert value(await waiting) == "stopped"
        assert it.stop(waits, hard=True), "nothing is left to stop"


async def test_stop_before_the_start_charges_nothing() -> None:
    """A call that waits for a child ends at once when it is stopped, as unstarted."""
    async with runner(slots=1) as it:
        first, second = work("until_cancelled"), work("double", n=1)
        running, _ = await begin(it, first)
        channel = Recorder()
        queued = asyncio.create_task(it.run(second, channel))
        await asyncio.sleep(0)
        assert it.stop(second, hard=False)
        report = await queued
        assert report.unstarted
        assert not channel.signals
        it.stop(first, hard=False)
        assert value(await running) == "stopped"


async def test_a_cancelled_call_kills_its_attempt() -> None:
    """Nobody is left who wants the result, so nothing goes on computing it."""
    async with runner(slots=1) as it:
        running, _ = await begin(it, work("spin"))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert value(await call(it, "double", n=1)) == 2


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("segfault", {}, "SIGSEGV"),
        ("leave", {"code": 7}, "exited with code 7"),
        ("kill_self", {}, "SIGKILL"),
        ("close_everything", {}, "Bad file descriptor"),
    ],
)
async def test_a_death_costs_its_own_attempt(name: str, arguments: dict[str, Any], said: str) -> None:
    """The report says how the child died and what it printed last; the neighbour never notices."""
    async with runner() as it:
        neighbour = work("until_cancelled")
        waiting, _ = await begin(it, neighbour)
        report = await call(it, name, **arguments)
        assert report.crashed
        assert not report.unstarted
        assert report.error is not None
        assert report.error.type == "ProcessingFailed"
        assert said in f"{report.error.message} {report.error.traceback}"
        if name == "leave":
            assert report.error.traceback == "last words\n"
        if name == "segfault":
            assert "string_at" in (report.error.traceback or "")
        it.stop(neighbour, hard=False)
        assert value(await waiting) == "stopped"


async def test_death_during_import_is_charged() -> None:
    """A module that kills the interpreter would be tried for ever if it counted as never started."""
    async with runner(slots=1) as it:
        channel = Recorder()
        report = await it.run(work("never"), channel)
        assert report.crashed
        assert not report.unstarted
        assert report.error is not None
        assert "exited with code 9" in report.error.message
        assert "imported" in report.error.message
        assert not channel.signals
        assert value(await call(it, "double", n=1)) == 2


async def test_an_import_that_never_ends_is_a_timeout() -> None:
    """It is given up after the time that children have to start, and its slot serves the next one."""
    async with runner(slots=1, child_start_timeout_s=1.5) as it:
        channel = Recorder()
        async with asyncio.timeout(60):
            report = await it.run(work("late"), channel)
        assert report.error is not None
        assert report.error.type == "TaskTimeout"
        assert "child_start_timeout_s = 1.5" in report.error.message
        assert report.retryable
        assert not report.unstarted
        assert not channel.signals
        it._config = ExecutorConfig()  # the next one has all the time that a busy machine needs to start it
        assert value(await call(it, "double", n=1)) == 2


async def test_an_idle_childs_death_costs_nothing() -> None:
    """Children killed from outside while they have no work are replaced."""
    async with runner(slots=1) as it:
        pid = value(await call(it, "reads_pid"))
        guard = psutil.Process(pid).ppid()  # it ends with the child, and is reaped where that is heard of
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not psutil.pid_exists(guard))
        assert value(await call(it, "double", n=1)) == 2


@pytest.mark.parametrize("name", ["SystemExit", "KeyboardInterrupt", "GeneratorExit"])
async def test_exceptions_that_end_programs_end_an_attempt(name: str) -> None:
    """They are a failure of the attempt; the child lives on."""
    async with runner(slots=1) as it:
        before = value(await call(it, "reads_pid"))
        report = await call(it, "raise_base", kind=name)
        assert report.error is not None
        assert report.error.type == name
        assert not report.crashed
        assert value(await call(it, "reads_pid")) == before


async def test_failures_tell_whether_to_try_again() -> None:
    """`Permanent`, wrong arguments and results that can't be stored are not worth a retry; nor is an unknown type."""
    async with runner(slots=1) as it:
        for name, arguments, kind in [
            ("refuse", {}, "Permanent"),
            ("double", {"n": "x"}, "InvalidInput"),
            ("unstorable", {}, "InvalidInput"),
            ("nobody", {}, "UnsupportedTaskType"),
        ]:
            report = await call(it, name, **arguments)
            assert report.error is not None
            assert (report.error.type, report.retryable) == (kind, False)


@both_loops
async def test_talkative_handlers_never_stand_still(capfd: pytest.CaptureFixture[str]) -> None:
    """Megabytes of output are drained while the handler writes, and reach this process's stderr."""
    async with runner(slots=1) as it:
        assert value(await call(it, "talk", size=4_000_000)) == 4_000_000
    assert "oooo" in capfd.readouterr().err


async def test_memory_and_cpu_are_the_attempts_own() -> None:
    """The peak of one attempt is not the next one's; CPU time is what was burnt (margins: 16 MiB, 50 ms + 10 %)."""
    async with runner(slots=1) as it:
        rest = (await call(it, "double", n=1)).usage
        big = (await call(it, "allocate", size=200 << 20)).usage
        after = (await call(it, "double", n=1)).usage
        assert rest.memory_bytes is not None
        assert big.memory_bytes is not None
        assert after.memory_bytes is not None
        assert abs(big.memory_bytes - rest.memory_bytes - (200 << 20)) < 16 << 20
        assert abs(after.memory_bytes - rest.memory_bytes) < 16 << 20
        report = await call(it, "burn", seconds=0.2)
        assert report.usage.cpu_time == pytest.approx(value(report), rel=0.1, abs=0.05)
        assert (await call(it, "double", n=1)).usage.cpu_time == pytest.approx(0, abs=0.02)


async def test_children_are_recycled() -> None:
    """A child goes after the given number of attempts, and when it holds more memory than it may."""
    async with runner(slots=1, child_recycle_tasks=3) as it:
        pids = [value(await call(it, "reads_pid")) for _ in range(7)]
        assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 1]
    async with runner(slots=1, child_recycle_bytes=1) as it:
        assert len({value(await call(it, "reads_pid")) for _ in range(3)}) == 3


async def test_grandchildren_end_with_their_child(tmp_path: Path) -> None:
    """A kill takes what the handler started with it, though it holds our pipes; so does the end of an idle child."""
    killed, left = tmp_path / "killed", tmp_path / "left"
    async with runner(slots=1) as it:
        job = work("leave_grandchild_and_spin", file=str(killed))
        running, _ = await begin(it, job)
        await until(lambda: killed.exists() and killed.read_text() != "")
        assert it.stop(job, hard=True)
        await running
        await until(lambda: not alive(int(killed.read_text())))
        value(await call(it, "leave_grandchild", file=str(left)))
        assert alive(int(left.read_text()))
        assert value(await call(it, "fork_and_return")), "only the original answers"
        assert value(await call(it, "double", n=2)) == 4
    await until(lambda: not alive(int(left.read_text())))


async def test_signals_arrive_in_order() -> None:
    """Started comes first; fast progress is thinned out; a log line arrives as it was written."""
    async with runner(slots=1) as it:
        channel = Recorder()
        await it.run(work("report", steps=10_000), channel)
        assert isinstance(channel.signals[0], Started)
        assert [signal.message for signal in channel.signals if isinstance(signal, Log)] == ["starting 10000"]
        steps = [signal.done for signal in channel.signals if isinstance(signal, Progress)]
        assert steps == sorted(steps)
        assert 20 <= len(steps) < 2000


async def test_children_of_a_handler() -> None:
    """They come with the outcome, or with now=True are stored meanwhile; what storing raises arrives."""
    async with runner(slots=1) as it:
        report = await call(it, "submit", n=1, now=False)
        (effect,) = report.effects
        assert isinstance(effect, ChildTasks)
        assert [task.input for task in effect.tasks] == [Custom({"n": 1})]
        assert report.refs == (effect.tasks[0].id.bytes,)

        stored: list[Task] = []

        known = TaskId.new()

        async def store(task: Task) -> TaskId:
            if task.input == Custom({"n": 3}):
                raise invalid("n", 3, "is refused", "use 2")
            stored.append(task)
            return known

        it.store_now = store
        report = await call(it, "submit", n=2, now=True)
        assert report.refs == (known.bytes,)
        assert report.effects == (ChildTasks(()),)  # none is left to store, and no equal work may do for this one
        assert stored[0].task_type == "custom:double"
        refused = await call(it, "submit", n=3, now=True)
        assert refused.error is not None
        assert (refused.error.type, refused.retryable) == ("InvalidInput", False)


@pytest.mark.parametrize("wrong_type", [False, True])
async def test_children_that_are_no_tasks(wrong_type: bool) -> None:
    """What can't be stored, or is of a wrong type, fails the attempt that submits it, and does not kill its child."""
    async with runner(slots=1) as it:
        report = await call(it, "submit_nonsense", wrong_type=wrong_type)
        assert report.error is not None
        assert (report.error.type, report.retryable, report.crashed) == ("InvalidInput", False, False)
        assert not report.effects


@both_loops
async def test_large_payloads_cross() -> None:
    """Frames far above a socket's buffer go both ways."""
    async with runner(slots=1) as it:
        assert len(value(await call(it, "large", size=20_000_000))) == 20_000_000
        assert value(await call(it, "measure", data=bytes(20_000_000))) == 20_000_000


async def test_a_machine_that_starts_no_children_fails_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waiting attempt fails with the reason, instead of waiting for ever."""
    async with runner() as it:
        monkeypatch.setattr(sys, "executable", "/nonexistent/python")
        reports = await asyncio.gather(*(call(it, "double", n=n) for n in range(3)))
        assert all(report.error is not None and "could not be started" in report.error.message for report in reports)
        monkeypatch.undo()
        assert value(await call(it, "double", n=1)) == 2


async def test_without_a_file_descriptor_left_no_child_starts() -> None:
    """The attempt fails with the reason, and may be tried again; once there are some, children start."""
    async with runner(slots=1) as it:
        with no_descriptor_left():
            report = await call(it, "double", n=1)
        assert report.error is not None
        assert "could not be started" in report.error.message
        assert "Too many open files" in report.error.message
        assert (report.retryable, report.crashed) == (True, False)
        assert value(await call(it, "double", n=1)) == 2


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """No file can be opened in this process."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_a_child_that_never_gets_ready_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dying at the start is reported with what it printed."""
    monkeypatch.setattr("mainspring.execution.processes._PROGRAM", "raise SystemExit('no way')")
    async with runner(slots=1) as it:
        report = await call(it, "double", n=1)
        assert report.error is not None
        assert "exited with code 1 before it was ready" in report.error.message
        assert report.error.traceback == "no way\n"


@both_loops
async def test_without_a_descriptor_for_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel has none, children are polled for: kills and deaths are seen all the same."""
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    async with runner(slots=1) as it:
        assert "SIGSEGV" in str((await call(it, "segfault")).error)
        job = work("spin")
        running, _ = await begin(it, job)
        it.stop(job, hard=True)
        assert (await running).error is not None
        assert value(await call(it, "double", n=1)) == 2


SCRIPT = """
    import asyncio, os, sys
    from mainspring.execution.base import Work
    from mainspring.execution.processes import ProcessRunner
    from mainspring.processors.custom import Handler
    from mainspring.tasks import Custom, TaskId
    from mainspring.tasks.codec import decode_output, encode_input

    print("imported as", __name__, flush=True)

    def busy() -> None:
        sum(range(10**15))  # in C, with the GIL: no other thread of the child can do anything

    def where() -> str:
        return __name__

    class Channel:
        def send(self, signal) -> None:
            print("started", flush=True)

    def work(name: str) -> Work:
        return Work(id=TaskId().bytes, attempt=1, task_type="custom:" + name, input=encode_input(Custom({}))[0])

    async def main() -> None:
        handlers = [Handler(function, lane="process") for function in (busy, where)]
        runner = ProcessRunner({handler.task_type: handler for handler in handlers}, slots=1)
        report = await runner.run(work(sys.argv[1]), Channel())
        print("value", decode_output(report.output).value)
        await runner.close()

    if __name__ == "__main__":
        asyncio.run(main())
"""


def script(folder: Path) -> Path:
    path = folder / "a_script.py"
    path.write_text(textwrap.dedent(SCRIPT))
    return path


@pytest.mark.parametrize("by_module", [False, True])
def test_handlers_of_a_script(tmp_path: Path, by_module: bool) -> None:
    """Functions of the running script, started by path or by -m, are found again; its guarded part runs once."""
    path = script(tmp_path)
    start = ["-m", "a_script"] if by_module else [str(path)]
    done = subprocess.run(
        [sys.executable, *start, "where"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=tmp_path,
        env=_env(),
    )
    name = "a_script" if by_module else "__mainspring_main__"
    assert done.stdout.split("\n") == ["imported as __main__", "started", f"value {name}", ""]
    assert done.stderr == f"imported as {name}\n"


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child that holds the GIL in C code is not reached")
def test_no_orphan_goes_on_computing(tmp_path: Path) -> None:
    """kill -9 of the parent ends its busy child and its spare one."""
    parent = subprocess.Popen([sys.executable, script(tmp_path), "busy"], stdout=subprocess.PIPE, text=True, env=_env())
    try:
        assert parent.stdout is not None
        assert [parent.stdout.readline() for _ in range(2)] == ["imported as __main__\n", "started\n"]
        children = psutil.Process(parent.pid).children()
        assert children
    finally:
        parent.kill()
        parent.communicate()
    _, left = psutil.wait_procs(children, timeout=10)
    for process in left:
        process.kill()
    assert not left


def test_a_child_loads_little_before_the_handler() -> None:
    """The time until a child is ready is the time to replace a killed one: no event loop, no network, no store."""
    code = "import mainspring.execution.child_main, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_env()).stdout
    assert not {"asyncio", "ssl", "subprocess", "ctypes", "apsw", "httpx", "numpy"} & set(loaded.split())
