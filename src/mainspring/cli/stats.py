"""`stats`: how much there is to do, and who does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mainspring.cli.lookup import WorkerRow, pauses, workers
from mainspring.cli.opening import opened, run
from mainspring.cli.options import DEFAULT_STORE, AsJson, StorePath
from mainspring.cli.screen import Screen, local, span, table
from mainspring.environment import SYSTEM
from mainspring.tasks import BUILT_IN_TYPES, TaskStatus

if TYPE_CHECKING:
    from rich.table import Table

_COUNTS = ("unfinished", "completed", "failed", "timeout", "cancelled")


def stats(store: StorePath = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Count tasks by status and type; list the living workers and what is paused."""
    run(_stats(store, Screen(as_json)))


async def _stats(store: str, screen: Screen) -> None:
    async with opened(store) as engine:
        counts = dict.fromkeys((status.value for status in TaskStatus), 0) | await engine.manager.store.stats()
        alive = await workers(engine)
        paused = await pauses(engine)
    types: dict[str, dict[str, int]] = counts.pop("types")
    if screen.as_json:
        screen.document({"tasks": counts, "types": types, "workers": alive, "pauses": paused})
        return
    screen.text(", ".join(f"{n:,} {status}" for status, n in counts.items()))
    if types:
        screen.draw("", _types(types))
    screen.draw("", _workers(alive) if alive else "no worker is alive")
    for row in paused:
        screen.text(f"paused since {local(row.since)}: {row}")


def _types(types: dict[str, dict[str, int]]) -> Table:
    rows = [(kind, *(f"{found.get(name, 0):,}" for name in _COUNTS)) for kind, found in sorted(types.items())]
    return table(("type", *_COUNTS), rows, right=_COUNTS)


def _workers(alive: Sequence[WorkerRow]) -> Table:
    now = SYSTEM.wall_ms() / 1000
    rows = [
        (row.name, str(row.pid), row.host, span(now - row.started.timestamp()), _served(row.types)) for row in alive
    ]
    return table(("worker", "pid", "host", "up for", "serves"), rows, right=("pid", "up for"))


def _served(types: Sequence[str]) -> str:
    own = [kind for kind in types if kind not in BUILT_IN_TYPES]
    return ", ".join([*own, "built-in types"])


__all__ = ["stats"]
