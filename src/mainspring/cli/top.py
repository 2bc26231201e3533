"""`top`: what goes on in a store, as it goes on."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from mainspring.cli.lookup import when
from mainspring.cli.opening import opened, run
from mainspring.cli.options import DEFAULT_STORE, AsJson, StorePath, duration
from mainspring.cli.screen import Screen, console, local, printable, size, span, table
from mainspring.environment import SYSTEM
from mainspring.errors import StoreUnavailable, invalid
from mainspring.tasks.needs import CLOSE, amounts

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from mainspring.cli.overview import HostUse, LaneUse, Overview, Queue, WorkerUse
    from mainspring.engine import Engine

_LEAST_S = 0.1
_QUEUES = 20
_WORKERS = 10
_QUEUE_NUMBERS = ("unfinished", "running", "ended/s", "failed/s", "call", "batch")
_QUEUE_DROP = ("batch", "lane", "call", "failed/s", "ended/s", "running")
_HOST_DROP = ("of disk", "disk", "own memory", "own", "of", "of all")
_HOST_NUMBERS = ("cpu", "own", "of", "memory", "own memory", "of all", "disk", "of disk")


def top(
    interval: Annotated[str, typer.Option(metavar="DURATION", help='How often to look, as "500ms" or "2s".')] = "1s",
    once: Annotated[bool, typer.Option("--once", help="Look once, print and leave; --json does so too.")] = False,
    store: StorePath = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Watch queues, lanes, workers, machines and batches until Ctrl-C."""
    every_s = duration(interval, "interval")
    if every_s is None or every_s < _LEAST_S:
        raise invalid("interval", interval, "is too short", f"use {_LEAST_S * 1000:.0f}ms or more")
    if not (once or as_json or sys.stdout.isatty()):
        raise invalid("top", "stdout", "is no terminal", "add --once, or --json for programs")
    run(_once(store, Screen(as_json)) if once or as_json else _watch(store, every_s))


async def _once(store: str, screen: Screen) -> None:
    from mainspring.cli.overview import overview

    async with opened(store) as engine:
        seen = await overview(engine)
        if screen.as_json:
            screen.document({"store": engine.address, **_document(seen)})
        else:
            screen.draw(*_drawn(engine.address, seen))


def _document(seen: Overview) -> dict[str, object]:
    return {name: getattr(seen, name) for name in seen.__struct_fields__}


async def _watch(store: str, every_s: float) -> None:
    from rich.live import Live

    async with opened(store) as engine:
        with Live(console=console(sys.stdout), auto_refresh=False, screen=True) as live:
            shown: list[RenderableType] = []
            while True:
                shown = await _frame(engine, shown)
                live.update(_stacked(shown), refresh=True)
                await asyncio.sleep(every_s)


async def _frame(engine: Engine, before: list[RenderableType]) -> list[RenderableType]:
    """Return what is to be seen now; while the store can't be read what was seen last, and why."""
    from mainspring.cli.overview import overview

    try:
        return _drawn(engine.address, await overview(engine))
    except StoreUnavailable as exc:
        return [printable(f"{local(when(SYSTEM.wall_ms()))}  the store can't be read: {exc}"), *before[1:]]


def _stacked(parts: Sequence[RenderableType]) -> RenderableType:
    from rich.console import Group

    return Group(*parts)


def _drawn(address: str, seen: Overview) -> list[RenderableType]:
    parts: list[RenderableType] = [
        printable(f"{local(seen.at)}  {address}"),
        ", ".join(f"{n:,} {status}" for status, n in seen.tasks.items()),
        "",
        _queues(seen),
        "",
        _lanes(seen.lanes),
        "",
        _workers(seen) if seen.workers else "no worker is alive",
        "",
        _hosts(seen.hosts),
    ]
    parts += [printable(f"worker {one.name} {one.starts_nothing}") for one in seen.workers if one.starts_nothing]
    return parts + [printable(f"paused since {local(pause.since)}: {pause}") for pause in seen.pauses]


def _queues(seen: Overview) -> RenderableType:
    if not seen.queues:
        return "nothing waits, and nothing ended lately"
    shown, more = seen.queues[:_QUEUES], len(seen.queues) - _QUEUES
    rows = [_queue(queue) for queue in shown]
    if more > 0:
        rows.append((f"and {more:,} more types", *[""] * 9))
    return table(("type", "lane", *_QUEUE_NUMBERS, "waiting", ""), rows, right=_QUEUE_NUMBERS, drop=_QUEUE_DROP)


def _queue(queue: Queue) -> tuple[str, ...]:
    return (
        queue.type,
        queue.lane,
        f"{queue.unfinished:,}",
        f"{'>' if 'running' in queue.more else ''}{queue.running:,}",
        _rate(queue.ended_per_s),
        _rate(queue.failed_per_s),
        "" if queue.mean_s is None else _brief(queue.mean_s),
        "" if queue.batch is None or queue.batch < 1.005 else f"{queue.batch:.1f}",
        ", ".join(f"{'>' if reason in queue.more else ''}{n:,} {reason}" for reason, n in queue.waiting.items()),
        ", ".join(_notes(queue)),
    )


def _notes(queue: Queue) -> Iterator[str]:
    if queue.unfinished and not queue.is_served:
        yield "no worker"
    if queue.never:
        yield f"{'>' if 'never' in queue.more else ''}{queue.never:,} never fit here"
    if queue.paused:
        yield f"paused ({queue.paused})"


def _rate(per_s: float) -> str:
    return "" if not per_s else f"{per_s:,.0f}" if per_s >= 10 else f"{per_s:.1f}"


def _brief(seconds: float) -> str:
    return span(seconds) if seconds >= 1 else f"{seconds * 1000:.3g}ms"


def _lanes(lanes: Sequence[LaneUse]) -> Table:
    rows = [
        (
            lane.name,
            "?" if lane.slots is None else f"{lane.slots:,}",
            f"{lane.busy:.2f}",
            f"{lane.running:,}",
            _rate(lane.ended_per_s),
        )
        for lane in lanes
    ]
    numbers = ("slots", "busy", "running", "ended/s")
    return table(("lane", *numbers), rows, right=numbers)


def _workers(seen: Overview) -> Table:
    rows = [_worker(worker, seen) for worker in seen.workers[:_WORKERS]]
    if (more := len(seen.workers) - _WORKERS) > 0:
        rows.append((f"and {more:,} more", *[""] * 7))
    numbers = ("pid", "up for", "running", "claimed")
    columns = ("worker", "host", *numbers, "slots", "reserved")
    return table(columns, rows, right=numbers, drop=("slots", "host", "up for", "reserved"))


def _worker(worker: WorkerUse, seen: Overview) -> tuple[str, ...]:
    slots = worker.slots or {}
    return (
        worker.name,
        worker.host,
        str(worker.pid),
        span((seen.at - worker.started).total_seconds()),
        f"{worker.running:,}",
        f"{worker.claimed:,}",
        ", ".join(f"{n} {lane}" for lane, n in slots.items()),
        ", ".join(_reserved(worker)),
    )


def _reserved(worker: WorkerUse) -> Iterator[str]:
    for kind, of in (worker.resources or {}).items():
        if of["reserved"] > CLOSE:
            yield " of ".join(amounts(kind, of["reserved"], of["capacity"]))


def _hosts(hosts: Sequence[HostUse]) -> Table:
    rows = [(host.host + ("" if host.works else " (no worker tells)"), *_usage(host)) for host in hosts]
    return table(("machine", *_HOST_NUMBERS), rows, right=_HOST_NUMBERS, drop=_HOST_DROP)


def _usage(host: HostUse) -> tuple[str, ...]:
    usage = host.usage
    return (
        _share(usage.cpu_usage),
        _share(usage.own_cpu_usage),
        f"{usage.cpu_limit:g} cores",
        size(usage.memory_bytes),
        size(usage.own_memory_bytes),
        size(usage.memory_limit_bytes),
        size(usage.storage_bytes),
        size(usage.storage_limit_bytes),
    )


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


__all__ = ["top"]
