"""Other processes on a test's store, and what tests do with them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
from tests import postgres
from tests.conformance.kit import Port, opened
from tests.store.process import real_store

from mainspring.config import is_server

ROOT = Path(__file__).parents[2]


class Peer:
    """Another process on the same file."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.name = ""

    async def hear(self, word: str) -> list[str]:
        """Return the rest of the next line that begins with this word."""
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            while line := (await self.process.stdout.readline()).decode().split():
                if line[0] == word:
                    return line[1:]
        raise AssertionError(f"the process ended without saying {word}")

    async def tell(self, *words: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write((" ".join(map(str, words)) + "\n").encode())
        await self.process.stdin.drain()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self, store: Path) -> None:
        stop_between_commits(store, self.process.pid)

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


def stop_between_commits(store: str | Path, pid: int) -> None:
    """Stop a process where it does not hold the lock of who writes, which nobody else would get until it goes on."""
    if is_server(store):
        postgres.stop_between_commits(str(store), pid)
        return
    connection = apsw.Connection(str(store))
    connection.set_busy_timeout(10_000)
    connection.execute("BEGIN IMMEDIATE")
    os.kill(pid, signal.SIGSTOP)
    connection.execute("ROLLBACK")
    connection.close()


Spawn = Callable[..., Awaitable[Peer]]


@asynccontextmanager
async def spawning(path: Path) -> AsyncIterator[Spawn]:
    """Start processes of `tests.store.process` on a store; none is left afterwards."""
    peers: list[Peer] = []

    async def start(what: str, argument: int = 0) -> Peer:
        command = [sys.executable, "-m", "tests.store.process", str(path), what, str(argument)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
        peer = Peer(
            await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=environment, cwd=ROOT
            )
        )
        peers.append(peer)
        (peer.name,) = await peer.hear("open") if what != "fork" else [""]
        return peer

    try:
        yield start
    finally:
        for peer in peers:
            with contextlib.suppress(ProcessLookupError):
                peer.send(signal.SIGCONT)
                await peer.kill()
            await peer.process.wait()


@asynccontextmanager
async def serving(path: Path, room: int = 0, **options: Any) -> AsyncIterator[tuple[Any, Port]]:
    async with opened(real_store(path, **options)) as store:
        port = Port(store, room)
        await port.serve()
        yield store, port


async def eventually(done: Callable[[], Awaitable[bool]]) -> None:
    """For what nobody is told of."""
    async with asyncio.timeout(60):
        while not await done():  # noqa: ASYNC110 - files and other processes set no event
            await asyncio.sleep(0.01)
