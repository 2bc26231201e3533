"""`submit`: one task from the command line. Its handler's code need not be here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from mainspring.cli.exits import NOT_COMPLETED, OK
from mainspring.cli.following import follow
from mainspring.cli.lookup import find_ids, registered
from mainspring.cli.opening import opened, run
from mainspring.cli.options import DEFAULT_STORE, AsJson, StorePath, duration, moment, size_of
from mainspring.cli.results import give
from mainspring.cli.screen import Screen
from mainspring.cli.shape import as_outcome
from mainspring.errors import InvalidInput, invalid
from mainspring.processors.calls import typed_task
from mainspring.tasks import (
    Binary,
    Custom,
    ModelInput,
    Resources,
    SearchQuery,
    Task,
    TaskId,
    TaskInput,
    TaskStatus,
    TaskType,
    Text,
)
from mainspring.tasks.codec import from_json

if TYPE_CHECKING:
    from mainspring.engine import Engine
    from mainspring.tasks import TaskResult

_STDIN = "-"
_FOREVER = "forever"
_OF_TEXT: dict[str, Callable[[str], TaskInput]] = {
    TaskType.VECTOR_SEARCH: SearchQuery,
    TaskType.MODEL_INFERENCE: ModelInput,
}
"""What --text becomes for the types that don't read a Text."""
_Time = "a local time, or a duration from now."
_Needs = "What an attempt reserves, in place of all that the handler declares."


def submit(
    type: Annotated[str, typer.Argument(metavar="TYPE", help="custom:NAME, or a built-in type as text_processing.")],
    input: Annotated[
        str | None,
        typer.Argument(
            metavar="INPUT",
            help="JSON, or - to read it from stdin: a handler's arguments by name, else an input with its kind.",
        ),
    ] = None,
    text: Annotated[str | None, typer.Option(help="The input of a built-in type, as a text.")] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The input of a built-in type, as a file's bytes.")
    ] = None,
    params: Annotated[str | None, typer.Option(metavar="JSON", help="Options of a built-in type.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "--model-id", metavar="ID", help="Which model, for the types that use one.")
    ] = None,
    priority: Annotated[
        str | None, typer.Option(metavar="[low|normal|high|critical]", help="Default: the handler's.")
    ] = None,
    deadline: Annotated[str | None, typer.Option(metavar="WHEN", help=f"Not started after it: {_Time}")] = None,
    not_before: Annotated[str | None, typer.Option(metavar="WHEN", help=f"Not started before it: {_Time}")] = None,
    delay: Annotated[str | None, typer.Option(metavar="DURATION", help="Not started before it is over.")] = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="DURATION", help="For one attempt. Default: the handler's.")
    ] = None,
    max_retries: Annotated[
        int | None, typer.Option(metavar="N", help="Tries after the first one. Default: the handler's.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--key", "--idempotency-key", metavar="KEY", help="Idempotency key: one task for each in a namespace."
        ),
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A label of yours; repeatable.")
    ] = None,
    group: Annotated[str | None, typer.Option(metavar="NAME", help="Tenant or other label.")] = None,
    cost: Annotated[
        float | None, typer.Option(metavar="N", help="What it is to cost its group. Default: the handler's, else 1.")
    ] = None,
    cpu: Annotated[
        float | None, typer.Option(metavar="CORES", help=f"{_Needs} Default: 1 where another is given.")
    ] = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help='The same: bytes, or as "2GiB".')] = None,
    gpu: Annotated[float | None, typer.Option(metavar="DEVICES", help="The same; fractions too.")] = None,
    custom: Annotated[
        list[str] | None, typer.Option(metavar="NAME=AMOUNT", help="The same, of a kind of yours; repeatable.")
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION", help="How long its result serves equal work; 0: not at all. Default: the handler's."
        ),
    ] = None,
    namespace: Annotated[str | None, typer.Option(metavar="NAME", help='Default: "default".')] = None,
    after: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A task that must end first; repeatable.")
    ] = None,
    on_dependency_failure: Annotated[
        str | None,
        typer.Option(metavar="[require|allow_failure|skip]", help="What becomes of it when one of those fails."),
    ] = None,
    task_id: Annotated[
        str | None, typer.Option(metavar="UUID", help="Its id; the same submit twice stores it once.")
    ] = None,
    wait_for_room: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION|forever", help="Where the queue or the disk is full, wait for room. Default: refuse."
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for it and print its value.")] = False,
    store: StorePath = DEFAULT_STORE,
    as_json: AsJson = False,
) -> int:
    """Store a task for a worker and print its id; durable once printed."""
    task_type = TaskType(type)
    options: dict[str, Any] = {
        "priority": priority,
        "deadline": moment(deadline, "deadline"),
        "not_before": moment(not_before, "not_before"),
        "delay": duration(delay, "delay"),
        "timeout": duration(timeout, "timeout"),
        "max_retries": max_retries,
        "idempotency_key": key,
        "metadata": _labels(metadata or []),
        "group": group,
        "cost": cost,
        "resources": _resources(cpu, memory, gpu, custom or []),
        "cache": duration(cache, "cache"),
        "namespace": namespace,
        "after": after,
        "on_dependency_failure": on_dependency_failure,
        "task_id": None if task_id is None else TaskId(task_id),
    }
    wanted = {name: value for name, value in options.items() if value is not None}
    payload = _arguments(input, text, file, params) if task_type.is_custom else _input(task_type, input, text, file)
    build = partial(typed_task, task_type, params=_object(params, "params"), model_id=model)
    patience = None if wait_for_room == _FOREVER else duration(wait_for_room or "0", "wait_for_room")
    return run(_submit(build, task_type, payload, wanted, store, patience, wait, Screen(as_json)))


async def _submit(
    build: Callable[[TaskInput, dict[str, Any]], Task],
    task_type: TaskType,
    payload: TaskInput,
    options: dict[str, Any],
    store: str,
    patience: float | None,
    wait: bool,
    screen: Screen,
) -> int:
    # A store that isn't there knows no handler: only built-in types may make one.
    async with opened(store, making=None if task_type.is_custom else screen) as engine:
        if task_type.is_custom:
            known = await registered(engine, task_type)
            payload = Custom(known.from_json(cast(Custom, payload).value))
            known.check(payload)
            options = {**known.options, **options}
        if "after" in options:
            options["after"] = await find_ids(engine, options["after"])
        task = build(payload, options)
        id = (await engine.submit(task, wait_for_room=patience)).id
        await _tell(engine, task, id, screen, on_stdout=screen.as_json or not wait)
        return await _waited(engine, id, screen) if wait else OK


async def _tell(engine: Engine, task: Task, id: TaskId, screen: Screen, *, on_stdout: bool) -> None:
    existed = id != task.id
    if screen.as_json:
        screen.document({"id": id, "existed": existed})
    elif on_stdout:
        screen.text(str(id))
    else:
        screen.note(f"task {id}")
    if existed:
        screen.note(f"the key {task.idempotency_key!r} had this task already; nothing new was stored")
    if (await engine.manager.store.standing(id.bytes)).reason == "no_worker":
        screen.note(f"no living worker serves {task.task_type} yet; `mainspring worker` starts one")


async def _waited(engine: Engine, id: TaskId, screen: Screen) -> int:
    """Wait for the task, and print its value or its error. Returns the exit code."""
    results: list[TaskResult] = []
    await follow(engine, [id], results.append)
    is_completed = results[0].status is TaskStatus.COMPLETED
    if not screen.as_json:
        give(await engine.handle(id).result(), None, screen)  # raises the task's error, which `run` tells
        return OK
    value = {"value": await engine.handle(id).result()} if is_completed else {}
    screen.document({**as_outcome(results[0]), **value})
    return OK if is_completed else NOT_COMPLETED


def _arguments(input: str | None, *others: object) -> Custom:
    """Return a handler's arguments. Raises InvalidInput."""
    if any(other is not None for other in others):
        raise invalid("input", "--text, --file or --params", "are for built-in types", "pass the arguments as JSON")
    return Custom(_object(_read(input), "input") or {})


def _input(task_type: TaskType, input: str | None, text: str | None, file: Path | None) -> TaskInput:
    """Return the input of a built-in type. Raises InvalidInput."""
    if sum(given is not None for given in (input, text, file)) != 1:
        raise invalid("input", input, "is not the only one, or missing", "give one of INPUT, --text and --file")
    if text is not None:
        return _OF_TEXT.get(task_type, Text)(text)
    if file is not None:
        try:
            return Binary(file.read_bytes())
        except OSError as exc:
            raise invalid("file", str(file), f"can't be read ({exc.strerror})", "name another file") from exc
    try:
        return cast(TaskInput, from_json(_read(input) or "", TaskInput))
    except InvalidInput as exc:
        kinds = ", ".join(str(kind.__struct_config__.tag) for kind in get_args(TaskInput))
        raise invalid(
            "input", input, str(exc.__cause__), f'pass JSON as {{"kind": "text", "text": "..."}}; kinds: {kinds}'
        ) from exc


def _read(input: str | None) -> str | None:
    return sys.stdin.read() if input == _STDIN else input


def _object(text: str | None, field: str) -> dict[str, Any] | None:
    return None if text is None else from_json(text, dict[str, Any], field)


def _labels(texts: list[str]) -> dict[str, str]:
    """Return labels by name. Raises InvalidInput."""
    return dict(_pair(text, "metadata", "NAME=VALUE", "team=search") for text in texts)


def _pair(text: str, field: str, form: str, example: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise invalid(field, text, f"is not {form}", f"write it as --{field} {example}")
    return name, value


def _resources(cpu: float | None, memory: str | None, gpu: float | None, custom: list[str]) -> Resources | None:
    """Return what was said of resources; None where nothing was. Raises InvalidInput."""
    given: dict[str, Any] = {
        "cpu": cpu,
        "memory": None if memory is None else size_of(memory, "memory"),
        "gpu": gpu,
        "custom": dict(map(_amount, custom)) or None,
    }
    said = {name: value for name, value in given.items() if value is not None}
    return Resources(**said) if said else None


def _amount(text: str) -> tuple[str, float]:
    name, amount = _pair(text, "custom", "NAME=AMOUNT", "license=1")
    try:
        return name, float(amount)
    except ValueError:
        raise invalid("custom", text, "has no number as its amount", "write it as --custom license=1") from None


__all__ = ["submit"]
