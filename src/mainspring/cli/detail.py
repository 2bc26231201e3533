"""`show` and `why`: one task, whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mainspring.cli.lookup import find_ids
from mainspring.cli.opening import opened, run
from mainspring.cli.options import DEFAULT_STORE, AsJson, Id, StorePath
from mainspring.cli.screen import Screen, local, printable, size, span, table
from mainspring.cli.shape import as_whole, error_line, progress, state, summary
from mainspring.errors import StoreDamaged
from mainspring.tasks import Attempt, TaskInfo, TaskResult
from mainspring.tasks.codec import to_json

if TYPE_CHECKING:
    from rich.table import Table


_COSTS = ("waited", "ran for", "cpu", "memory", "network", "batch")


def show(id: Id, store: StorePath = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Print everything about a task: options, parents, attempts, error, result."""
    run(_show(id, store, Screen(as_json)))


async def _show(text: str, store: str, screen: Screen) -> None:
    async with opened(store) as engine:
        (id,) = await find_ids(engine, [text])
        info = await engine.manager.get_task(id)
        result, damage = None, None
        try:
            result = await engine.manager.get_task_result(id) if info.status.is_final else None
        except StoreDamaged as exc:  # the rest can be shown
            damage = exc
    _draw(info, result, screen)
    if damage is not None:
        raise damage


def _draw(info: TaskInfo, result: TaskResult | None, screen: Screen) -> None:
    if screen.as_json:
        screen.document(as_whole(info, result))
        return
    screen.draw(_facts(info, result))
    if info.attempts:
        screen.draw("", _attempts(info.attempts))
    if info.error is not None and info.error.traceback:
        screen.draw("", printable(info.error.traceback.rstrip()))


def _facts(info: TaskInfo, result: TaskResult | None) -> Table:
    from rich.table import Table

    drawn = Table.grid(padding=(0, 2))
    drawn.add_column(no_wrap=True, style="bold")
    drawn.add_column(overflow="fold")
    for name, value in (*_declared(info), *_happened(info, result)):
        if value:
            drawn.add_row(name, printable(value))
    return drawn


def _declared(info: TaskInfo) -> Iterator[tuple[str, str]]:
    task = info.task
    yield "id", str(task.id)
    yield "type", str(task.task_type)
    yield "state", state(info)
    yield "priority", task.priority.name.lower()
    yield "namespace", "" if task.namespace == "default" else task.namespace
    yield "group", task.group or ""
    yield "is to cost", "" if task.cost is None else f"{task.cost:,g}"
    yield "model", task.model_id or ""
    yield "input", summary(task.input.as_text() if hasattr(task.input, "text") and _is_text(info) else task.input)
    yield "params", to_json(task.params) if task.params else ""
    yield "metadata", to_json(task.metadata) if task.metadata else ""
    yield "resources", "" if task.resources is None else to_json(task.resources)
    yield "timeout", span(task.timeout)
    yield "not before", local(task.not_before)
    yield "deadline", local(task.deadline)
    yield "idempotency key", task.idempotency_key or ""
    yield "waits for", ", ".join(map(str, task.dependencies))
    yield "if one fails", task.on_dependency_failure if task.dependencies else ""


def _is_text(info: TaskInfo) -> bool:
    return isinstance(getattr(info.task.input, "text", None), str)


def _happened(info: TaskInfo, result: TaskResult | None) -> Iterator[tuple[str, str]]:
    yield "submitted", local(info.submitted)
    yield "due", local(info.due)
    yield "started", local(info.started)
    yield "ended", local(info.ended)
    yield "attempt", f"{info.attempt} ({info.task.retry_count} of {info.task.max_retries} retries)"
    yield "progress", progress(info)
    yield "worker", info.worker or ""
    yield "retry of", str(info.retry_of or "")
    yield "retried as", str(info.retried_as or "")
    yield "error", error_line(info.error)
    if result is not None:
        metrics = result.metrics
        yield "ran for", span(metrics.duration)
        yield "waited", span(metrics.queue_wait)
        yield "cpu time", span(metrics.cpu_time)
        yield "memory", size(metrics.memory_bytes)
        yield "lane", metrics.lane or ""
        yield "result", summary(result.output.value) if result.output is not None else ""


def _attempts(attempts: tuple[Attempt, ...]) -> Table:
    rows = [
        (
            str(item.number),
            item.outcome,
            item.worker or "",
            item.lane or "",
            local(item.ended),
            span(item.queue_wait),
            span(item.duration),
            span(item.cpu_time),
            size(item.memory_bytes),
            size(item.network_bytes),
            str(item.batch_size),
            error_line(item.error),
        )
        for item in attempts
    ]
    columns = ("attempt", "outcome", "worker", "lane", "ended", *_COSTS, "error")
    return table(columns, rows, right=("attempt", *_COSTS))


def why(id: Id, store: StorePath = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Say why a task is not running, or how it ended."""
    run(_why(id, store, Screen(as_json)))


async def _why(text: str, store: str, screen: Screen) -> None:
    async with opened(store) as engine:
        (id,) = await find_ids(engine, [text])
        standing = await engine.manager.store.standing(id.bytes)
        sentence = await engine.scheduler.explain(id)
    if screen.as_json:
        screen.document({"id": id, "status": standing.status, "reason": standing.reason, "why": sentence})
    else:
        screen.text(sentence)


__all__ = ["show", "why"]
