"""An event loop that ends while an engine is open: the program ends too, says why, and loses no task."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from tests.engine.support import LIMIT_S, engine_on, until

from mainspring import TaskStatus


def ends(main: Callable[[], Coroutine[Any, Any, Any]]) -> BaseException | None:
    """Run a program's main on a loop of its own; returns what it raised. A program that never ends fails."""
    raised: list[BaseException | None] = []

    def program() -> None:
        try:
            asyncio.run(main())
        except BaseException as exc:  # noqa: BLE001 - handed to the test
            raised.append(exc)
        else:
            raised.append(None)

    thread = threading.Thread(target=program, daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    assert raised, "the program never ends"
    return raised[0]


def test_a_program_that_never_stops_its_engine(caplog: pytest.LogCaptureFixture) -> None:
    """It ends with its own error, and is told what was missing."""

    async def main() -> None:
        await engine_on().start()
        raise ValueError("my bug")

    with caplog.at_level(logging.WARNING, "mainspring"):
        assert repr(ends(main)) == "ValueError('my bug')"
    assert "the event loop ends before the engine was stopped" in caplog.text


async def asleep() -> None:
    await asyncio.sleep(3600)


async def stubborn() -> None:
    """Swallows what ends it, as many do."""
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(3600)


@pytest.mark.parametrize("handler", [asleep, stubborn])
def test_handlers_still_running(tmp_path: Path, handler: Callable[..., Any]) -> None:
    """What runs meanwhile holds nothing up, is not told to have failed, and waits for the next process."""
    held: list[Any] = []

    async def main() -> None:
        engine = engine_on(tmp_path / "work.db")
        engine.task(handler)
        await engine.start()
        held.append(await engine.submit(handler))
        await until(lambda: bool(engine.manager.running_tasks()))

    assert ends(main) is None

    async def look() -> None:
        async with engine_on(tmp_path / "work.db", worker=False) as engine:
            info = await engine.handle(held[0].id).info()
            assert not info.status.is_final or handler is stubborn
            assert info.status is not TaskStatus.FAILED
            assert info.error is None

    assert ends(look) is None


_WITH_CHILD = """
import asyncio
from mainspring import Engine
from tests.engine import process_work

async def main():
    engine = Engine()
    engine.task(lane="process")(process_work.nap)
    await engine.start()
    await engine.submit(process_work.nap, 60)
    while not engine.manager.running_tasks():
        await asyncio.sleep(0.01)

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_a_child_still_running() -> None:
    """The process lane neither; the child ends with the program."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", _WITH_CHILD], cwd=root, timeout=LIMIT_S, check=False)
    assert done.returncode == 0


_PROGRAM = """
import asyncio, signal, sys
from mainspring import Engine

signal.signal(signal.SIGINT, signal.default_int_handler)  # also where whoever runs the tests ignores it

async def main():
    async with Engine(sys.argv[1]) as engine:
        @engine.task
        async def sleeps():
            print("runs", flush=True)
            try:
                await asyncio.sleep(3600)
            finally:
                print("ends", flush=True)
        handle = await engine.submit(sleeps)
        try:
            await handle.result()
        finally:
            asyncio.get_running_loop().call_soon(lambda: print("draining", flush=True))

asyncio.run(main())
"""


def test_two_interrupts_end_a_program(tmp_path: Path) -> None:
    """The first Ctrl-C begins a drain; the second one ends the program, though a handler still runs."""
    program = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(tmp_path / "work.db")],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=dict(os.environ),
    )  # fmt: skip
    assert program.stdout is not None
    try:
        assert program.stdout.readline() == "runs\n"
        program.send_signal(signal.SIGINT)
        assert program.stdout.readline() == "draining\n"
        program.send_signal(signal.SIGINT)
        assert program.stdout.readline() == "ends\n"
        assert program.wait(LIMIT_S) != 0
    finally:
        program.kill()
        program.wait()
        program.stdout.close()
