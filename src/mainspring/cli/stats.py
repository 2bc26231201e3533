"""`stats`: how much there is to do, who does it, and what it has cost."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from mainspring.cli import costs
from mainspring.cli.lookup import WorkerRow, pauses, workers
from mainspring.cli.opening import opened, run
from mainspring.cli.options import DEFAULT_STORE, AsJson, StorePath, moment
from mainspring.cli.screen import Screen, local, span, table
from mainspring.environment import SYSTEM
from mainspring.errors import invalid
from mainspring.tasks import BUILT_IN_TYPES, LedgerKey

if TYPE_CHECKING:
    from rich.table import Table

_BACK = '"2026-01-31T18:00", or "24h" for a day back'
_COUNTS = ("unfinished", "completed", "failed", "timeout", "cancelled")


class By(StrEnum):
    """What costs may be summed up by."""

    TYPE = "type"
    GROUP = "group"
    DAY = "day"


def stats(
    by: Annotated[
        list[By] | None, typer.Option(help="Sum up what attempts have cost by this; may be given several times.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help='With --by: attempts that ended since then; "24h" is a day back.')
    ] = None,
    store: StorePath = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Count tasks by status and type; list living workers and pauses. With --by: what attempts have cost."""
    if not by and since is not None:
        raise invalid("since", since, "goes with --by", "add --by type, group or day")
    run(_costs(store, [key.value for key in by], since, Screen(as_json)) if by else _stats(store, Screen(as_json)))


async def _costs(store: str, by: Sequence[LedgerKey], since: str | None, screen: Screen) -> None:
    async with opened(store) as engine:
        ledger = await engine.ledger(by, since=moment(since, "since", _BACK))
    if screen.as_json:
        screen.document(costs.as_document(ledger))
        return
    screen.draw(costs.as_table(ledger))
    if note := costs.missing(ledger):
        screen.text(note)


async def _stats(store: str, screen: Screen) -> None:
    async with opened(store) as engine:
        counts = await engine.manager.store.stats()
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
