"""From a call, `submit(function, *args, option=…)`, to a task. Engine and handlers use the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from mainspring.config import plain, seconds
from mainspring.environment import HERE, Original
from mainspring.errors import InvalidInput, invalid
from mainspring.processors.context import Child, Context, check_cost
from mainspring.processors.custom import OPTION_NAMES, Handler, priority_of
from mainspring.tasks import Custom, Ref, Task, TaskId, TaskInput, TaskType


def split_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take the submit options out of a call's keyword arguments and return them."""
    options = {name: kwargs.pop(name) for name in [*kwargs] if name in OPTION_NAMES}
    if "max_retries" in options:
        options["max_retries"] = plain(options["max_retries"])
    return options


def call_task(handler: Handler, args: tuple[Any, ...], kwargs: dict[str, Any], *, id: TaskId | None = None) -> Task:
    """Return the task that calls a handler. Raises InvalidInput for arguments or options that don't fit."""
    options = split_options(kwargs) if kwargs else None
    input = Custom(handler.bind(args, kwargs))
    if not options and id is None:
        return Task(task_type=handler.task_type, input=input, **handler.declared)
    return typed_task(handler.task_type, input, with_declared(handler, options or {}), id=id)


def with_declared(handler: Handler, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call's options with what its handler was declared with where the call says nothing."""
    return {
        **handler.declared,
        "cost": handler.cost if options.get("group") and not callable(handler.cost) else None,
        **{name: value for name, value in options.items() if value is not None},
    }


def task_of(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Task:
    """Return the task that a call of a handler or of a built-in operation stands for. Raises InvalidInput."""
    builder = getattr(function, "__mainspring_builds__", None)
    if builder is not None:
        return builder(*args, **kwargs)  # type: ignore[no-any-return]
    return call_task(handler_of(function), args, kwargs)


def handler_of(function: object) -> Handler:
    """Return the handler that a registered function stands for. Raises: InvalidInput: it stands for none."""
    handler: Handler | None = getattr(function, "__mainspring__", None)
    if handler is not None:
        return handler
    if callable(function):
        remedy = "register it before, with @engine.task or engine.task(function)"
        raise invalid("handler", function, "is not registered", remedy)
    why = "is no function"
    if isinstance(function, str):
        why = "is a name, and no function"
    elif isinstance(function, Task):
        why = "is a ready Task, which engine.submit alone takes"
    remedy = "pass the function itself that was registered with @engine.task, or an operation such as engine.embed"
    raise invalid("handler", function, why, remedy)


def typed_task(
    task_type: TaskType,
    input: TaskInput,
    options: Mapping[str, Any],
    *,
    params: dict[str, Any] | None = None,
    model_id: str | None = None,
    id: TaskId | None = None,
) -> Task:
    """Return a task of any type from the options that submit calls take."""
    return Task(
        id=id or TaskId(options.get("task_id")),
        task_type=task_type,
        input=input,
        params=params or {},
        model_id=model_id,
        **_fields(options),
    )


_AS_GIVEN = ("max_retries", "group", "namespace", "on_dependency_failure", "resources", "idempotency_key")
_CONVERTED: dict[str, Callable[[Any], Any]] = {
    "priority": priority_of,
    "timeout": lambda value: seconds(value, "timeout"),
    "cache": lambda value: seconds(value, "cache"),
    "cost": lambda value: check_cost(value, "cost"),
    "deadline": lambda value: moment(value, "deadline"),
}


def _fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the task's fields that these options set. Raises InvalidInput."""
    fields = {name: options[name] for name in _AS_GIVEN if options.get(name) is not None}
    for name, converted in _CONVERTED.items():
        if options.get(name) is not None:
            fields[name] = converted(options[name])
    if options.get("metadata"):
        fields["metadata"] = options["metadata"]
    if options.get("after"):
        fields["dependencies"] = _ids(options["after"])
    given = [name for name in ("delay", "not_before") if options.get(name) is not None]
    if len(given) > 1:
        raise invalid("delay", options["delay"], "and not_before say the same", "give one of them")
    for name in given:
        fields["not_before"] = moment(options[name], name)
    return fields


def moment(value: datetime | float | str | timedelta, field: str) -> datetime:
    """Return a point in time given as such or as a duration from now."""
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise invalid(field, value, "has no time zone", "use datetime.now(UTC) + ..., or a duration from now")
        return value
    now = datetime.fromtimestamp(HERE.get().wall_ms() / 1000, UTC)
    return now + timedelta(seconds=seconds(value, field))


def _ids(after: Any) -> tuple[TaskId, ...]:
    items: Iterable[Any] = (after,) if isinstance(after, (TaskId, Ref, str)) else after
    if not isinstance(items, Iterable):
        raise invalid("after", after, "is no task", "pass a handle, an id, or a list of those")
    return tuple(id_of(item) for item in items)


def id_of(item: Any) -> TaskId:
    """Return the id that a handle, an id or its text stands for. Raises InvalidInput."""
    if isinstance(item, Ref):
        return item.id
    if item is None:
        raise invalid("task id", item, "is no task", "pass a handle or an id")
    return TaskId(item)


def check_task(task: Any) -> None:
    """Raises InvalidInput for what is no task, or has no id, type or input to begin with."""
    if not isinstance(task, Task):
        raise invalid("task", task, "is no Task", "pass Task(...), or submit(function, ...) to an engine")
    if not isinstance(task.id, TaskId):
        raise invalid("id", task.id, "is no TaskId", "pass TaskId(...), or leave it out for a new one")
    if not isinstance(task.task_type, str):
        raise invalid("task_type", task.task_type, "is no task type", "use TaskType")
    if not isinstance(task.input, TaskInput):
        raise invalid("input", task.input, "is no input", "use Text, Binary, SearchQuery, ModelInput or Custom")


def child_id(parent: TaskId, call: int) -> TaskId:
    """Return the id of a handler's n-th `submit(..., now=True)`: the same in every attempt, ordered like its parent."""
    digest = hashlib.blake2b(parent.bytes + call.to_bytes(8, "big"), digest_size=10).digest()
    raw = bytearray(parent.bytes[:6] + digest)
    raw[6] = raw[6] & 0x0F | 0x70  # version 7
    raw[8] = raw[8] & 0x3F | 0x80  # variant
    return TaskId(bytes(raw))


StoreNow = Callable[[Task], Any]
"""Stores a task at once and returns its id there. On the loop it returns a future of that; elsewhere it blocks."""


def in_a_copy() -> InvalidInput:
    """What is said to a process that was forked from an engine's, and asks it for something."""
    return InvalidInput(
        "this process was forked from the engine's, whose threads are not in it: what is asked of it here would be "
        "waited for in vain; submit before the fork or in the original, or start a program of its own that opens an "
        "Engine (subprocess, or multiprocessing with spawn)",
        field="fork",
    )


def submitter(origin: Original, store_now: StoreNow, build: Callable[..., Task] = task_of) -> Callable[..., Child]:
    """Return what `Context.submit` calls; `build` makes the task of a call. `origin` was there before any handler."""

    def submit(
        context: Context, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], now: bool
    ) -> Child:
        if origin.is_copy:
            raise in_a_copy()
        context.calls += 1
        if now:
            kwargs["task_id"] = child_id(context.id, context.calls)
        task = build(function, args, kwargs)
        if now:
            stored = store_now(task)
            if isinstance(stored, TaskId):
                return Child(stored)
            context.storing = [*context.storing, stored]
            return Child(task.id, stored)
        if context.children is None:
            context.children = []
        context.children.append(task)
        return Child(task.id)

    return submit
