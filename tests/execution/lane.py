"""A process lane with handlers that behave and misbehave, and what tests say to it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import psutil
from tests.execution import handlers_that_hang_at_import, handlers_that_kill_at_import, process_handlers

from mainspring.config import ExecutorConfig
from mainspring.execution.base import BatchReport, Report, Work
from mainspring.execution.processes import ProcessRunner
from mainspring.processors.custom import Handler
from mainspring.tasks import Custom, CustomOutput, Signal, Started, TaskId
from mainspring.tasks.codec import decode_output, encode_input

HANDLERS: dict[str, Handler] = {
    handler.task_type: handler
    for function in [
        *vars(process_handlers).values(),
        handlers_that_kill_at_import.never,
        handlers_that_hang_at_import.late,
    ]
    if getattr(function, "__module__", "").startswith(("tests.execution.process_handlers", "tests.execution.handlers_"))
    and not isinstance(function, type)
    for handler in [Handler(function, lane="process")]
}


class Recorder:
    """A channel that remembers."""

    def __init__(self) -> None:
        self.signals: list[Signal] = []
        self.started = asyncio.Event()

    def send(self, signal: Signal) -> None:
        self.signals.append(signal)
        if isinstance(signal, Started):
            self.started.set()


def work(name: str, **arguments: Any) -> Work:
    data, _ = encode_input(Custom(arguments))
    return Work(id=TaskId().bytes, attempt=1, task_type=f"custom:{name}", input=data)


def value(report: Report | None) -> Any:
    assert report is not None, "it was given back"
    assert report.error is None, report.error
    assert report.output is not None
    output = decode_output(report.output)
    assert isinstance(output, CustomOutput)
    return output.value


def reports_of(done: BatchReport) -> list[Report]:
    """Return how all of a batch ended, where no channel was told before."""
    reports = [report for report in done.reports if report is not None]
    assert len(reports) == len(done.reports)
    return reports


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - other processes set no events
            await asyncio.sleep(0.005)


@asynccontextmanager
async def runner(slots: int = 2, **config: float) -> AsyncIterator[ProcessRunner]:
    """A runner that must leave neither processes nor descriptors behind."""
    before = set(os.listdir("/proc/self/fd")) if sys.platform == "linux" else set()
    it = ProcessRunner(HANDLERS, slots=slots, config=ExecutorConfig(**config))  # type: ignore[arg-type]
    try:
        yield it
    finally:
        await it.close()
    assert psutil.Process().children() == []
    if sys.platform == "linux":
        assert set(os.listdir("/proc/self/fd")) <= before | {str(max(map(int, before)) + 1)}


async def call(it: ProcessRunner, name: str, **arguments: Any) -> Report:
    async with asyncio.timeout(60):
        return await it.run(work(name, **arguments), Recorder())


async def begin(it: ProcessRunner, job: Work) -> tuple[asyncio.Task[Report], Recorder]:
    channel = Recorder()
    task = asyncio.create_task(it.run(job, channel))
    async with asyncio.timeout(60):
        await channel.started.wait()
    return task, channel
