"""A process of its own on a store, led by a test through lines of text: python process.py PATH WHAT [ARGUMENT].

Says `open NAME`, then does WHAT, and tells what it is told of: `revoked N` with N that it still holds, `lost N`:
work ROOM    says `serves`, completes all it is handed, and notes each in a ledger beside the store
hold ROOM    holds all it is handed, says `held N` for each hand-over; `run N` marks the first N as running handlers,
             `finish` completes all, also what it does not hold any more
submit N     submits N tasks at each `go`, and says `sent` when they are durable
lazy ROOM    holds without safety looks
lead         nothing but look after the file
fork         becomes leader, forks a child that stays (`child PID`), and holds what it is handed
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

from tests.conformance.kit import Port, new

from mainspring.blobs.local import LocalBlobStore
from mainspring.config import StoreConfig
from mainspring.environment import SYSTEM, Environment
from mainspring.store.base import Claimed, Finish
from mainspring.store.sqlite.store import SqliteStore


def say(*words: object) -> None:
    print(*words, flush=True)


def real_store(path: Path, env: Environment = SYSTEM, look_s: float = 1.0, **config: Any) -> SqliteStore:
    """As the engine opens it: real clock, real folder."""
    return SqliteStore(
        path,
        StoreConfig(**config),
        blobs=lambda file: LocalBlobStore(file.with_name(file.name + "-blobs")),
        env=env,
        look_s=look_s,
    )


class Worker(Port):
    def __init__(self, store: Any, room: int, path: Path) -> None:
        super().__init__(store, room)
        self.ledger = os.open(path.with_name("ledger"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    async def serve(self) -> None:
        await super().serve()
        say("serves")

    def claimed(self, claims: list[Claimed]) -> None:
        super().claimed(claims)
        lines = "".join(f"{claim.id.hex()} {claim.attempt} {os.getpid()}\n" for claim in claims)
        os.write(self.ledger, lines.encode())
        for claim in claims:
            self.end(claim)
        self.store.demand()


class Holder(Port):
    def claimed(self, claims: list[Claimed]) -> None:
        super().claimed(claims)
        say("held", len(self.held), time.monotonic())

    def revoked(self, held: frozenset[tuple[int, int]]) -> None:
        super().revoked(held)
        say("revoked", len(self.held))

    def lost(self, finishes: list[Finish]) -> None:
        super().lost(finishes)
        say("lost", len(finishes))


async def lines() -> Any:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield line.decode().split()


async def main(path: Path, what: str, argument: int) -> None:
    store = real_store(path, look_s=3600.0 if what == "lazy" else 1.0)
    await store.open()
    port: Port | None = None
    if what == "work":
        port = Worker(store, argument, path)
    elif what in ("hold", "lazy", "fork"):
        port = Holder(store, argument)
    if what == "fork" and (pid := fork()):
        say("child", pid)
    say("open", store.worker_id)
    if port is not None:
        await port.serve()
    async for word, *more in lines():
        if word == "run":
            await run(port, int(more[0]))
            say("running")
        elif word == "go":
            await store.submit([new() for _ in range(argument)])
            say("sent", time.monotonic())
        elif word == "finish":
            finish_all(port)
        elif word == "end":
            break
    await store.close()


def finish_all(port: Port | None) -> None:
    assert port is not None
    for claim in port.order:
        port.end(claim)


async def run(port: Port | None, n: int) -> None:
    assert port is not None
    for slot, claim in enumerate(list(port.held.values())[:n]):
        port.store.mark(slot, claim.seq, claim.attempt)
        port.store.started(claim, port.store.now_ms())
    await port.settle()


def fork() -> int:
    pid = os.fork()
    if pid == 0:
        for standard in range(3):
            os.close(standard)  # the test waits for the end of these
        time.sleep(60)
        os._exit(0)
    return pid


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0))
