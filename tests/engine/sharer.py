"""A program around an engine with one slot: `sharer.py STORE FOLDER [ROOM [DIES]]`.

ROOM is how many tasks it claims at first; 1 is what it has a slot for. It gives nothing back unless it is asked, and
DIES by SIGKILL, if at all, at one of these moments:

asked       another process asks for what it holds
gave        it has handed half of that to the store, which has not committed it
asks        it asks another process
got         it is handed what another one gave away
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mainspring import Context, Engine, EngineConfig, StoreConfig, TaskManagerConfig
from mainspring.dispatch.lane import LaneDesk
from mainspring.dispatch.manager import TaskManager
from mainspring.store.base import Claimed
from mainspring.store.bell import SHARE, Bell
from mainspring.store.postgres.line import Line
from mainspring.store.sqlite.bell import FileBell

store, folder = sys.argv[1], Path(sys.argv[2])
room = int(sys.argv[3]) if len(sys.argv) > 3 else 1
dies = sys.argv[4] if len(sys.argv) > 4 else ""
settings = TaskManagerConfig(async_slots=1, process_slots=1, prefetch_s=10.0, grace_s=0.2)
engine = Engine(store, EngineConfig(manager=settings, store=StoreConfig(blobs=folder / "blobs")))
# Else a lane gives back by itself what does not begin soon.
LaneDesk.take_surplus = lambda self, called: []  # type: ignore[method-assign]


def note(what: str, ctx: Context) -> int:
    line = f"{what} {ctx.attempt} {os.getpid()}\n".encode()
    ledger = os.open(folder / "ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(ledger, line)
    os.close(ledger)
    return os.getpid()


@engine.task
async def hold(ctx: Context) -> int:
    """Holds its slot until a file says that it may end."""
    pid = note("hold", ctx)
    while not (folder / "go").exists():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return pid


@engine.task
async def step(n: int, ctx: Context) -> int:
    return note(str(n), ctx)


@engine.task
async def meet(n: int, processes: int, ctx: Context) -> int:
    """Ends when so many processes are here."""
    pid = note(str(n), ctx)
    (folder / f"{pid}.here").touch()
    while sum(name.endswith(".here") for name in os.listdir(folder)) < processes:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return pid


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def gives(it: TaskManager, is_wanted: Any, spare: Any, share: Any = TaskManager.asked_to_share) -> None:
    share(it, is_wanted, spare)
    if any(isinstance(desk, LaneDesk) and desk.given for desk in it._desks.values()):
        die()


def gets(it: TaskManager, claims: list[Claimed], claimed: Any = TaskManager.claimed) -> None:
    if any(claim.attempt > 1 for claim in claims):
        die()
    claimed(it, claims)


def ringer(ring: Callable[..., None]) -> Callable[..., None]:
    def rings(bell: Bell, kind: bytes, payload: bytes = b"") -> None:
        ring(bell, kind, payload)
        if kind == SHARE:
            die()

    return rings


def prepare() -> None:
    change: Any = {
        "asked": [(TaskManager, "asked_to_share", die)],
        "gave": [(TaskManager, "asked_to_share", gives)],
        "asks": [(kind, "ring", ringer(kind.ring)) for kind in (FileBell, Line)],
        "got": [(TaskManager, "claimed", gets)],
    }
    for owner, name, new in change.get(dies, []):
        setattr(owner, name, new)


async def main() -> None:
    prepare()
    async with engine:
        engine.manager.lanes["async"].limit = room
        (folder / f"{os.getpid()}.pid").touch()
        await engine.run()


if __name__ == "__main__":
    asyncio.run(main())
