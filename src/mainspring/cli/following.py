"""Waiting for tasks, with a bar on the terminal while it lasts."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from mainspring.cli.screen import console
from mainspring.errors import TaskTimeout
from mainspring.tasks import TaskId, TaskResult

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.progress import TaskID as BarId

    from mainspring.engine import Engine

_LOOK_S = 0.5
_MOST_LOOKED_AT = 32
"""How many running tasks are asked for their progress in one look."""


async def follow(
    engine: Engine, ids: Sequence[TaskId], tell: Callable[[TaskResult], None], limit_s: float | None = None
) -> None:
    """Wait until all tasks have ended, and tell of each how, as they end.

    Raises: TaskNotFound. TaskTimeout: some have not ended within `limit_s` seconds; they go on.
    """
    left = dict.fromkeys(ids)
    try:
        async with asyncio.timeout(limit_s):
            with _bar(engine, left):
                async for handle in engine.as_completed([engine.handle(id) for id in ids]):
                    tell(await engine.manager.get_task_result(handle.id))
                    del left[handle.id]
    except TimeoutError:
        await _tell_of_ended(engine, left, tell)
    if left:
        raise TaskTimeout(f"{len(left)} of {len(ids)} tasks have not ended within {limit_s:g} s; they go on")


async def _tell_of_ended(engine: Engine, left: dict[TaskId, None], tell: Callable[[TaskResult], None]) -> None:
    """Look once at those that are left: however short the time was, what has ended is told."""
    keys = [id.bytes for id in left]
    await engine.manager.store.require(keys)
    for ended in await engine.manager.store.ended(keys):
        id = TaskId(ended.id)
        with suppress(TaskTimeout):  # it stands for others, which have not all ended
            tell(await engine.manager.get_task_result(id, timeout=0))
            del left[id]


@contextmanager
def _bar(engine: Engine, left: dict[TaskId, None]) -> Iterator[None]:
    """Show on a terminal how many have ended, and how far those are that tell."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    # Lines on the same terminal go above the bar; a file or pipe gets them untouched.
    both = sys.stdout.isatty()
    with Progress(*columns, console=console(sys.stderr), transient=True, redirect_stdout=both) as bar:
        looking = asyncio.get_running_loop().create_task(_look(engine, left, bar, bar.add_task("", total=len(left))))
        try:
            yield
        finally:
            looking.cancel()


async def _look(engine: Engine, left: dict[TaskId, None], bar: Progress, row: BarId) -> None:
    total = len(left)
    while True:
        share = 0.0
        for id in list(left)[:_MOST_LOOKED_AT]:
            info = await engine.manager.get_task(id)
            if info.progress is not None and info.progress[1] and not info.status.is_final:
                share += min(1.0, info.progress[0] / info.progress[1])
        done = total - len(left)
        bar.update(row, completed=done + share, description=f"{done} of {total} ended")
        await asyncio.sleep(_LOOK_S)
