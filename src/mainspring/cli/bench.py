"""`bench`: how fast the engine is on this machine and disk, in half a minute."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import statistics
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from mainspring.cli.opening import run
from mainspring.cli.options import AsJson
from mainspring.cli.screen import Screen, table
from mainspring.environment import SYSTEM
from mainspring.errors import invalid

if TYPE_CHECKING:
    from mainspring.engine import Engine

_TEXT = "x" * 100
_SUBMITTERS = 64
_WARM_UP = 200
_ALONE = 200
_SYNCS = 200
_BLOCK = b"y" * 4096
_IN_MEMORY = frozenset(("tmpfs", "ramfs", "devtmpfs"))


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One thing measured."""

    what: str
    n: int
    per_s: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    cpu_us: float | None = None  # of this process, for each


async def noop(text: str) -> str:
    """Do nothing, durably."""
    return text


def noop_in_child(text: str) -> str:
    """The same in a child process."""
    return text


async def noop_kept(text: str) -> str:
    """The same, with a result that is kept."""
    return text


def bench(
    n: Annotated[int, typer.Option("--n", min=_SUBMITTERS, metavar="N", help="Tasks in each run.")] = 10_000,
    folder: Annotated[
        Path, typer.Option(metavar="PATH", help="Where the store's file lies meanwhile: the disk that you mean.")
    ] = Path("."),
    as_json: AsJson = False,
) -> None:
    """Measure durable tasks on this machine: full durability, every default, nothing left behind.

    Run it on an idle machine, more than once. What limits durable work is the disk's sync, which stands first.
    """
    screen = Screen(as_json)
    if not folder.is_dir():
        raise invalid("folder", str(folder), "is no folder", "name one on the disk that you mean")
    if (kind := _filesystem(folder)) in _IN_MEMORY:
        raise invalid("folder", str(folder), f"is in memory ({kind}), where nothing is durable", "name one on a disk")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: by itself it would leave the stores behind
    with tempfile.TemporaryDirectory(prefix="mainspring-bench-", dir=folder) as scratch:
        figures = [_syncs(Path(scratch)), *run(_all(Path(scratch), n, screen))]
    if as_json:
        screen.document({"figures": figures, "cores": os.cpu_count(), "filesystem": kind})
        return
    columns = ("n", "per second", "p50", "p99", "CPU each")
    screen.draw(table(("what", *columns), [_row(figure) for figure in figures], right=columns))


def _row(figure: Figure) -> tuple[str, ...]:
    def shown(value: float | None, form: str) -> str:
        return "" if value is None else form.format(value)

    return (
        figure.what, f"{figure.n:,}", shown(figure.per_s, "{:,.0f}"), shown(figure.p50_ms, "{:.2f} ms"),
        shown(figure.p99_ms, "{:.2f} ms"), shown(figure.cpu_us, "{:.1f} µs"),
    )  # fmt: skip


def _filesystem(folder: Path) -> str:
    import psutil

    inside = [part for part in psutil.disk_partitions(all=True) if folder.resolve().is_relative_to(part.mountpoint)]
    return max(inside, key=lambda part: len(part.mountpoint)).fstype if inside else "unknown"


def _syncs(folder: Path) -> Figure:
    """Time appends with a sync, below which no durable commit can be."""
    taken = []
    handle = os.open(folder / "sync", os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        for _ in range(_SYNCS):
            began = SYSTEM.monotonic()
            os.write(handle, _BLOCK)
            getattr(os, "fdatasync", os.fsync)(handle)
            taken.append(SYSTEM.monotonic() - began)
    finally:
        os.close(handle)
    return _latencies("append of 4 KiB and its sync", taken)


def _latencies(what: str, taken: list[float]) -> Figure:
    cuts = statistics.quantiles(taken, n=100)
    return Figure(what=what, n=len(taken), p50_ms=cuts[49] * 1e3, p99_ms=cuts[98] * 1e3)


async def _all(folder: Path, n: int, screen: Screen) -> list[Figure]:
    ways: dict[str, tuple[Callable[[Engine, int], Awaitable[None]], int]] = {
        "no-op tasks by map": (_by_map, n),
        f"no-op tasks, {_SUBMITTERS} submitters": (_by_submitters, n),
        "no-op tasks in child processes": (_in_children, n),
        "tasks whose result is kept": (_kept, n),
    }
    figures = []
    for number, (what, (way, count)) in enumerate(ways.items()):
        screen.note(f"{what} ...")
        async with _opened(folder / f"{number}.db") as engine:
            await way(engine, min(count, _WARM_UP))
            if way is _kept:
                await way(engine, count)  # now all of them are
            figures.append(await _timed(what, way, engine, count))
    screen.note("one task at a time ...")
    async with _opened(folder / "alone.db") as engine:
        figures.append(_latencies("one no-op at a time", await _one_by_one(engine, _ALONE)))
    return figures


@asynccontextmanager
async def _opened(path: Path) -> AsyncIterator[Engine]:
    from mainspring.config import EngineConfig, TaskManagerConfig
    from mainspring.engine import Engine

    engine = Engine(path, EngineConfig(manager=TaskManagerConfig(queue_size=None)))
    engine.task(noop)
    engine.task(lane="process")(noop_in_child)
    engine.task(cache="1h")(noop_kept)
    async with engine:
        yield engine


async def _timed(what: str, way: Callable[[Engine, int], Awaitable[None]], engine: Engine, n: int) -> Figure:
    cpu_s, began = _cpu_s(), SYSTEM.monotonic()
    await way(engine, n)
    took, spent = SYSTEM.monotonic() - began, _cpu_s() - cpu_s
    return Figure(what=what, n=n, per_s=n / took, cpu_us=spent / n * 1e6)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def _by_map(engine: Engine, n: int) -> None:
    await engine.gather(await engine.map(noop, [_TEXT] * n))


async def _in_children(engine: Engine, n: int) -> None:
    await engine.gather(await engine.map(noop_in_child, [_TEXT] * n))


async def _kept(engine: Engine, n: int) -> None:
    await engine.gather(await engine.map(noop_kept, [f"{number}{_TEXT}" for number in range(n)]))


async def _by_submitters(engine: Engine, n: int) -> None:
    async def one(count: int) -> None:
        for _ in range(count):
            await (await engine.submit(noop, _TEXT)).result()

    await asyncio.gather(*(one(n // _SUBMITTERS + (at < n % _SUBMITTERS)) for at in range(_SUBMITTERS)))


async def _one_by_one(engine: Engine, n: int) -> list[float]:
    taken = []
    for _ in range(n):
        began = SYSTEM.monotonic()
        await (await engine.submit(noop, _TEXT)).result()
        taken.append(SYSTEM.monotonic() - began)
    return taken


__all__ = ["bench"]
