"""Work that a task takes, counted instead of timed, so that a check says the same on a busy machine as on an idle one.

    python -m bench.counts              the counts, beside those that are recorded
    python -m bench.counts --write      record them for this version of Python

Counted are calls of functions in all threads and steps of SQLite's virtual machine, both from the difference of two
sizes, so that neither the start nor the end matters. They say nothing of waiting, nor of how long a call takes.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import msgspec
from bench.subject import PAYLOAD, by_map, noop, opened

from mainspring import Batch, Engine

RECORDED = Path(__file__).with_name("counts.json")
_SIZES = 1_000, 4_000
_SUBMITTERS = 50
_LINKS = 10
_GROUPS, _AT_ONCE = 10, 32
_BATCH = 64
_KEPT, _NOOP = "1h", "custom:noop"
_EVERY_STEPS = 20
"""SQLite tells of so many steps at a time."""


async def by_submitters(engine: Engine, n: int) -> None:
    """Submit and await one task after the other, in 50 coroutines."""

    async def one() -> None:
        for _ in range(n // _SUBMITTERS):
            await (await engine.submit(noop, PAYLOAD)).result()

    await asyncio.gather(*(one() for _ in range(_SUBMITTERS)))


async def by_chains(engine: Engine, n: int) -> None:
    """Submit chains of ten, each link with the result of the one before."""
    last: Any = None
    for _ in range(n // _LINKS):
        last = PAYLOAD
        for _ in range(_LINKS):
            last = await engine.submit(noop, last)
    await last.result()


async def by_costs(engine: Engine, n: int) -> None:
    """Store n tasks in bulk, all in ten limited groups and with a cost, which is reserved when one is claimed."""
    groups = [f"group {number}" for number in range(_GROUPS)]
    for group in groups:
        await engine.limit(group, concurrency=_AT_ONCE, cost_rate="1000000000/s")
    stored = [await engine.map(noop, [PAYLOAD] * (n // _GROUPS), group=group, cost=10) for group in groups]
    for handles in stored:
        await engine.gather(handles)


async def _keep(engine: Engine) -> None:
    """Have the results that `by_hits` asks for."""
    await engine.gather(await engine.map(noop, _texts(0, _SIZES[1]), cache=_KEPT))


async def by_hits(engine: Engine, n: int) -> None:
    """Store n different tasks in bulk whose results are kept."""
    await engine.gather(await engine.map(noop, _texts(0, n), cache=_KEPT))


async def by_misses(engine: Engine, n: int) -> None:
    """Store n different tasks in bulk, to be kept, that were never done before."""
    await engine.gather(await engine.map(noop, _texts(n * _SIZES[1], n), cache=_KEPT))


async def by_equals(engine: Engine, n: int) -> None:
    """Store n equal tasks in bulk that were never done before; one runs, once all the others wait for it."""
    await engine.manager.pause(type=_NOOP)
    handles = await engine.map(noop, [f"{n} times {PAYLOAD}"] * n, cache=_KEPT)
    await engine.manager.resume(type=_NOOP)
    await engine.gather(handles)


def _texts(first: int, n: int) -> list[str]:
    return [f"{number} {PAYLOAD}" for number in range(first, first + n)]


async def noops(texts: list[str]) -> list[str]:
    """Do nothing, for several tasks at once."""
    return texts


async def _declare_batches(engine: Engine) -> None:
    engine.task(timeout=30, batch=Batch(max_size=_BATCH))(noops)


async def by_batches(engine: Engine, n: int) -> None:
    """Store n tasks in bulk, which run in full calls."""
    await engine.gather(await engine.map(noops, [PAYLOAD] * n))


async def by_joining(engine: Engine, n: int) -> None:
    """Submit and await one task after the other, in 50 coroutines: what waits at the same time runs in one call."""

    async def one() -> None:
        for _ in range(n // _SUBMITTERS):
            await (await engine.submit(noops, PAYLOAD)).result()

    await asyncio.gather(*(one() for _ in range(_SUBMITTERS)))


def noop_in_child(text: str) -> str:
    """Do nothing, in a child."""
    return text


def calls_of_child() -> int:
    """Return how many calls the main thread of a child has made since it was asked first."""
    if sys.getprofile() is None:
        sys.setprofile(_IN_CHILD.called)
    return _IN_CHILD.calls


async def _declare_children(engine: Engine) -> None:
    engine.task(timeout=30, lane="process")(noop_in_child)
    engine.task(timeout=30, lane="process")(calls_of_child)
    await _asked(engine)


async def _asked(engine: Engine) -> int:
    return int(await (await engine.submit(calls_of_child)).result())


async def by_child(engine: Engine, n: int) -> None:
    """Submit and await one task after the other, in the process lane: how many ends come together is chance else."""
    for _ in range(n):
        await (await engine.submit(noop_in_child, PAYLOAD)).result()


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """A way in which tasks are submitted, and what it needs."""

    way: Callable[[Engine, int], Awaitable[None]]
    prepare: Callable[[Engine], Awaitable[None]] | None = None  # not counted
    sizes: tuple[int, int] = _SIZES
    slots: int | None = None  # of the async lane; calls that take what waits take more where more slots claim ahead
    elsewhere: Callable[[Engine], Awaitable[int]] | None = None  # asks a child for its calls so far


WAYS = {
    "map": Workload(way=by_map),
    "submitters": Workload(way=by_submitters),
    "chains": Workload(way=by_chains),
    "costs": Workload(way=by_costs),
    "hits": Workload(way=by_hits, prepare=_keep),
    "misses": Workload(way=by_misses),
    "equals": Workload(way=by_equals),
    "batches": Workload(way=by_batches, prepare=_declare_batches, slots=2),
    "joining": Workload(way=by_joining, prepare=_declare_batches, slots=2),
    "child": Workload(way=by_child, prepare=_declare_children, sizes=(100, 400), elsewhere=_asked),
}


class Counter:
    """Counts while it is entered; threads that began before are not seen."""

    def __init__(self) -> None:
        self.calls = 0
        self.steps = 0

    def __enter__(self) -> Counter:
        apsw.connection_hooks.append(self._watch)
        threading.setprofile(self.called)
        sys.setprofile(self.called)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)
        apsw.connection_hooks.remove(self._watch)

    def _watch(self, connection: apsw.Connection) -> None:
        connection.set_progress_handler(self._stepped, _EVERY_STEPS)

    def _stepped(self) -> bool:
        self.steps += _EVERY_STEPS
        return False

    def called(self, _frame: Any, event: str, _arg: Any) -> None:
        if event in ("call", "c_call"):
            self.calls += 1


_IN_CHILD = Counter()


async def _count(work: Workload, path: Path, counter: Counter) -> dict[str, float]:
    found = []
    async with opened(path, slots=work.slots, children=1) as engine:
        if work.prepare is not None:
            await work.prepare(engine)
        for n in work.sizes:
            before = await _so_far(work, engine, counter)
            await work.way(engine, n)
            after = await _so_far(work, engine, counter)
            found.append({unit: after[unit] - before[unit] for unit in after})
    tasks = work.sizes[1] - work.sizes[0]
    return {unit: (found[1][unit] - found[0][unit]) / tasks for unit in found[0]}


async def _so_far(work: Workload, engine: Engine, counter: Counter) -> dict[str, int]:
    elsewhere = {} if work.elsewhere is None else {"child": await work.elsewhere(engine)}
    return {"calls": counter.calls, "steps": counter.steps, **elsewhere}


def counts(ways: Iterable[str] = WAYS) -> dict[str, dict[str, float]]:
    """Return calls and steps of a task, by the way in which tasks are submitted; `child` are calls within a child."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ways:
            with Counter() as counter:
                found[name] = asyncio.run(_count(WAYS[name], Path(folder, f"{name}.db"), counter))
    return found


def version() -> str:
    """Return the version of Python that counts belong to: each makes other calls."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def recorded() -> dict[str, dict[str, float]] | None:
    """Return what is recorded for this version of Python, if anything is."""
    known: dict[str, dict[str, dict[str, float]]] = msgspec.json.decode(RECORDED.read_bytes())
    return known.get(version())


def main() -> None:
    parser = argparse.ArgumentParser(description="Work that a task takes, counted.")
    parser.add_argument("--write", action="store_true", help="record the counts for this version of Python")
    write = parser.parse_args().write
    found, before = counts(), recorded() or {}
    for way, figures in found.items():
        for unit, n in figures.items():
            past = before.get(way, {}).get(unit)
            print(f"{way:12} {unit:6} {n:7.1f}" + ("" if past is None else f"  {n / past:5.3f} of {past:.1f}"))
    if write:
        known = msgspec.json.decode(RECORDED.read_bytes()) if RECORDED.exists() else {}
        rounded = {way: {unit: round(n, 1) for unit, n in figures.items()} for way, figures in found.items()}
        RECORDED.write_bytes(msgspec.json.format(msgspec.json.encode({**known, version(): rounded}), indent=2) + b"\n")


if __name__ == "__main__":
    main()
