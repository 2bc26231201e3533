"""Processes around an engine, and what tests ask of them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.engine.support import LIMIT_S, quick, until

import mainspring
from mainspring import Custom, Engine, StoreConfig, Task, TaskType

PROGRAM = Path(__file__).with_name("program.py")
PATHS = {"PYTHONPATH": os.pathsep.join([str(Path(mainspring.__file__).parents[1]), *sys.path])}


def call(kind: str, /, **arguments: Any) -> Task:
    return Task(task_type=TaskType.custom(kind), input=Custom(arguments))


class Programs:
    """Starts `program.py`, or another one, and sees to it that none is left."""

    def __init__(self, folder: Path, store: str, program: Path = PROGRAM) -> None:
        self.folder = folder
        self.store = store
        self.program = program
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(self.program), self.store, str(self.folder), *map(str, arguments)]
        program = subprocess.Popen(command, env={**os.environ, **PATHS})
        self._started.append(program)
        return program

    async def running(self, *arguments: object) -> subprocess.Popen[bytes]:
        """Start one and wait until it serves its handlers."""
        program = self.start(*arguments)
        await until((self.folder / f"{program.pid}.pid").exists)
        return program

    def mark(self, name: str) -> Path:
        return self.folder / name

    def end(self) -> None:
        for program in self._started:
            if program.poll() is None:
                program.kill()
            program.wait(LIMIT_S)

    def looking(self, stall_s: float = 600.0, dead_s: float = 10.0) -> Engine:
        """An engine that runs nothing."""
        config = quick(StoreConfig(stall_s=stall_s, dead_s=dead_s, blobs=self.folder / "blobs"))
        return Engine(self.store, config, worker=False)


async def serves(engine: Engine, kind: str) -> None:
    """Wait until some program has said that it runs these."""
    async with asyncio.timeout(LIMIT_S):
        while kind not in await engine.manager.store.registered_types():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
