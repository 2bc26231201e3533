"""`ps` and `failures`: lists of tasks."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from mainspring.cli.lookup import type_named
from mainspring.cli.opening import opened, run
from mainspring.cli.options import DEFAULT_STORE, AsJson, Limit, StorePath, Type
from mainspring.cli.screen import Screen, console, local, table
from mainspring.errors import TaskNotFound, invalid
from mainspring.tasks import TaskInfo, TaskStatus

if TYPE_CHECKING:
    from rich.table import Table

    from mainspring.engine import Engine

_PAGE = 200
_LOOK_S = 1.0
_COLUMNS = ("id", "type", "state", "priority", "age", "attempt", "progress")


def ps(
    status: Annotated[TaskStatus | None, typer.Option(help="Only tasks with this status.")] = None,
    type: Type = None,
    namespace: Annotated[str | None, typer.Option(metavar="NAME", help="Only this namespace.")] = None,
    limit: Limit = 50,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every second, until Ctrl-C.")] = False,
    store: StorePath = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """List tasks, the newest first."""
    screen = Screen(as_json)
    if watch and not as_json and not sys.stdout.isatty():
        raise invalid("watch", watch, "needs a terminal", "leave it out, or add --json for a line a second")
    run(_ps(store, _Filter(status, type, namespace, limit), screen, watch))


class _Filter:
    """Which tasks to list."""

    def __init__(self, status: TaskStatus | None, type: str | None, namespace: str | None, limit: int) -> None:
        self.status = status
        self.type = type
        self.namespace = namespace
        self.limit = limit

    async def tasks(self, engine: Engine) -> list[TaskInfo]:
        return [info async for info in self._pages(engine)]

    async def _pages(self, engine: Engine) -> AsyncIterator[TaskInfo]:
        left, before = self.limit, None
        while left:
            page = await engine.manager.store.list_tasks(
                status=self.status, type=self.type, namespace=self.namespace, limit=min(left, _PAGE), before=before
            )
            for info in page:
                with suppress(TaskNotFound):  # it was pruned since the page was read
                    yield await engine.manager.with_reason(info)
            if len(page) < min(left, _PAGE):
                return
            left -= len(page)
            before = page[-1].task.id


async def _ps(store: str, wanted: _Filter, screen: Screen, watch: bool) -> None:
    from mainspring.cli.shape import as_row

    async with opened(store) as engine:
        if wanted.type is not None:
            wanted.type, known = await type_named(engine, wanted.type)
            if wanted.type not in known:
                screen.note(f"this store knows no type {wanted.type}; it knows {', '.join(sorted(known))}")
        if watch and screen.as_json:
            while True:
                screen.document([as_row(info) for info in await wanted.tasks(engine)])
                await asyncio.sleep(_LOOK_S)
        if watch:
            await _watch(engine, wanted)
        tasks = await wanted.tasks(engine)
        if screen.as_json:
            screen.document([as_row(info) for info in tasks])
        else:
            screen.draw(_table(tasks))


async def _watch(engine: Engine, wanted: _Filter) -> None:
    from rich.live import Live

    with Live(_table(await wanted.tasks(engine)), console=console(sys.stdout), auto_refresh=False, screen=True) as live:
        while True:
            await asyncio.sleep(_LOOK_S)
            live.update(_table(await wanted.tasks(engine)), refresh=True)


def _table(tasks: list[TaskInfo]) -> Table:
    from mainspring.cli.shape import age, progress, short, state

    rows = [
        (
            short(info.task.id),
            str(info.task.task_type),
            state(info),
            info.task.priority.name.lower(),
            age(info),
            str(info.attempt),
            progress(info),
        )
        for info in tasks
    ]
    return table(_COLUMNS, rows, right=("age", "attempt", "progress"))


def failures(
    limit: Limit = 50,
    store: StorePath = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """List tasks that failed or ran out of time, with their errors, the newest first."""
    run(_failures(store, limit, Screen(as_json)))


async def _failures(store: str, limit: int, screen: Screen) -> None:
    from mainspring.cli.shape import as_row, error_line, short

    async with opened(store) as engine:
        both = [
            info
            for status in (TaskStatus.FAILED, TaskStatus.TIMEOUT)
            for info in await _Filter(status, None, None, limit).tasks(engine)
        ]
    newest = sorted(both, key=lambda info: info.submitted, reverse=True)[:limit]
    if screen.as_json:
        screen.document([as_row(info) for info in newest])
        return
    rows = [
        (
            short(info.task.id),
            str(info.task.task_type),
            local(info.ended),
            str(info.task.retry_count + 1),
            error_line(info.error),
        )
        for info in newest
    ]
    screen.draw(table(("id", "type", "ended", "tries", "error"), rows, right=("tries",)))


__all__ = ["failures", "ps"]
