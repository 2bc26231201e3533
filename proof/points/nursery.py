"""A process without connections or threads of its own, that forks a child for each life that is to end.

It reads orders, one line of JSON each, and answers each with how its child ended. A child opens the store itself, plays
a scenario, and kills itself by SIGKILL at the point that it was ordered to; what it was told, it wrote down before.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import apsw
import msgspec

from proof.faults import ablations, scenarios, whole
from proof.faults.judge import FILE
from proof.faults.scenes import small_steps
from proof.faults.vfs import Disk, Fault, Operation
from proof.faults.world import Maker, Told, World

LEDGER = "told"
Moment = Literal["before", "after", "write"]
"""Before or after a statement, or half way through an operation on the file."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    folder: str  # that holds the store
    scenario: str
    moment: Moment = "before"
    point: int = 0  # which statement or operation; 0: live on to the end
    ablation: str | None = None


class Death(msgspec.Struct, frozen=True, kw_only=True):
    """How a child ended."""

    was_killed: bool  # else it came to its end
    error: str = ""


class Points:
    """Counts what the writing connection does, and kills this process at one point of it."""

    def __init__(self, moment: Moment, point: int) -> None:
        self._moment = moment
        self._left = point

    def watch(self, connection: apsw.Connection) -> None:
        if connection.open_flags & apsw.SQLITE_OPEN_READWRITE:
            event = apsw.SQLITE_TRACE_STMT if self._moment == "before" else apsw.SQLITE_TRACE_PROFILE
            connection.trace_v2(event, lambda _: self.reached(), id=self)

    def operation(self, operation: Operation) -> Fault | None:
        """Let half of the last operation happen; `failed` ends the process then."""
        self._left -= 1
        return Fault(Killed, 0.5) if self._left == 0 else None

    def reached(self) -> None:
        self._left -= 1
        if self._left == 0:
            kill()


class Killed(apsw.IOError):
    """Raised where this process ends."""

    def __init__(self) -> None:
        kill()


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def ending(order: Order) -> Iterator[None]:
    """End this process at the point that is ordered."""
    points = Points(order.moment, order.point)
    if order.moment == "write":
        with Disk(Path(order.folder)) as disk:
            disk.break_(points.operation)
            yield
    else:
        apsw.connection_hooks.append(points.watch)
        yield


def ledger(folder: Path) -> Callable[[Told], None]:
    """Write down what is told, so that it outlives this process."""
    fd = os.open(folder / LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    return lambda told: os.write(fd, msgspec.json.encode(told) + b"\n")  # type: ignore[return-value]


def read_ledger(folder: Path) -> list[Told]:
    path = folder / LEDGER
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [msgspec.json.decode(line, type=Told) for line in lines]  # type: ignore[type-var,unused-ignore]


async def live(order: Order) -> None:
    """Open the store and play the scenario to its end."""
    folder = Path(order.folder)
    path, tell = folder / FILE, ledger(folder)
    if order.scenario == "engine":
        await whole.play(path, tell, lambda: None, lambda: None)
        return
    maker = Maker(path)
    store = maker()
    await store.open()
    if order.scenario == "leave_behind":
        await scenarios.leave_behind(store, maker.clock, tell)
        kill()
    world = World(store, maker.clock, tell)
    await _RUNS[order.scenario](world)
    await store.close()


_RUNS = {
    "small": scenarios.small,
    "mixed": scenarios.mixed,
    "recovery": scenarios.recovery,
    "upgrade": scenarios.recovery,
}


def child(order: Order) -> None:
    logging.getLogger("mainspring").setLevel(logging.CRITICAL)
    ablation = getattr(ablations, order.ablation) if order.ablation else contextlib.nullcontext
    with small_steps(), ablation(), ending(order):
        asyncio.run(live(order))


def bear(order: Order) -> Death:
    """Fork a child, and return how it ended."""
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child(order)
            code = 0
        except BaseException as exc:  # noqa: BLE001 - the boundary of the child: its parent tells
            os.write(into, repr(exc).encode()[:4000])
        finally:
            os._exit(code)
    os.close(into)
    with os.fdopen(out, "rb") as said:
        error = said.read().decode()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return Death(was_killed=True)
    return Death(was_killed=False, error=error if os.waitstatus_to_exitcode(status) else "")


def main() -> None:
    gc.freeze()  # what children share with this process stays shared
    for line in sys.stdin.buffer:
        death = bear(msgspec.json.decode(line, type=Order))
        sys.stdout.buffer.write(msgspec.json.encode(death) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
