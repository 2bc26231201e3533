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
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import apsw
import msgspec
from bench.subject import PAYLOAD, by_map, noop, opened

from mainspring import Engine

RECORDED = Path(__file__).with_name("counts.json")
_SIZES = 1_000, 4_000
_SUBMITTERS = 50
_LINKS = 10
_GROUPS, _AT_ONCE = 10, 32
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


WAYS: dict[str, Callable[[Engine, int], Awaitable[None]]] = {
    "map": by_map,
    "submitters": by_submitters,
    "chains": by_chains,
    "costs": by_costs,
}


class Counter:
    """Counts while it is entered; threads that began before are not seen."""

    def __init__(self) -> None:
        self.calls = 0
        self.steps = 0

    def __enter__(self) -> Counter:
        apsw.connection_hooks.append(self._watch)
        threading.setprofile(self._called)
        sys.setprofile(self._called)
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

    def _called(self, _frame: Any, event: str, _arg: Any) -> None:
        if event in ("call", "c_call"):
            self.calls += 1


async def _count(way: Callable[[Engine, int], Awaitable[None]], path: Path, counter: Counter) -> dict[str, float]:
    found = []
    async with opened(path) as engine:
        for n in _SIZES:
            calls, steps = counter.calls, counter.steps
            await way(engine, n)
            found.append((counter.calls - calls, counter.steps - steps))
    (calls, steps), (more_calls, more_steps) = found
    tasks = _SIZES[1] - _SIZES[0]
    return {"calls": (more_calls - calls) / tasks, "steps": (more_steps - steps) / tasks}


def counts() -> dict[str, dict[str, float]]:
    """Return calls and steps of a task, by the way in which tasks are submitted."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, way in WAYS.items():
            with Counter() as counter:
                found[name] = asyncio.run(_count(way, Path(folder, f"{name}.db"), counter))
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
