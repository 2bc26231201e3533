"""`cancel`, `retry`, `pause` and `resume`: what operators ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mainspring.cli.exits import NOT_COMPLETED, NOT_FOUND, OK
from mainspring.cli.lookup import find_ids, is_known, pauses, type_named
from mainspring.cli.opening import opened, run
from mainspring.cli.options import DEFAULT_STORE, AsJson, Ids, StorePath, Type
from mainspring.cli.screen import Screen
from mainspring.tasks import TaskId, TaskType

if TYPE_CHECKING:
    from mainspring.engine import Engine

_Namespace = Annotated[str | None, typer.Option(metavar="NAME", help="Only this namespace.")]
_Group = Annotated[str | None, typer.Option(metavar="NAME", help="Only this group.")]


def cancel(ids: Ids, store: StorePath = DEFAULT_STORE, as_json: AsJson = False) -> int:
    """Cancel tasks. Says of each whether it will never run, was asked to stop, or had ended already."""
    return run(_cancel(ids, store, Screen(as_json)))


_ANSWERS = {
    "cancelled": "cancelled; it will not run",
    "requested": "asked to stop; nothing it still returns is recorded",
}


async def _cancel(texts: list[str], store: str, screen: Screen) -> int:
    code = OK
    async with opened(store) as engine:
        for id in await find_ids(engine, texts):
            answer = await engine.manager.cancel_task(id)
            if answer not in ("cancelled", "requested", "already(cancelled)"):
                code = NOT_COMPLETED
            if screen.as_json:
                screen.document({"id": id, "answer": answer})
            else:
                screen.text(f"{id} {_ANSWERS.get(answer) or answer.replace('(', ' ').rstrip(')')}")
    return code


def retry(ids: Ids, store: StorePath = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Make new tasks of failed, timed out or cancelled ones, and of those that failed because of them."""
    run(_retry(ids, store, Screen(as_json)))


async def _retry(texts: list[str], store: str, screen: Screen) -> None:
    async with opened(store) as engine:
        for id in await find_ids(engine, texts):
            again: TaskId = await engine.manager.retry_task(id)
            if screen.as_json:
                screen.document({"id": id, "retried_as": again})
            else:
                screen.text(f"{id} retried as {again}")


def pause(
    type: Type = None,
    namespace: _Namespace = None,
    group: _Group = None,
    store: StorePath = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Start no more tasks of a kind, in any process; without options: of any kind. Running ones go on."""
    run(_pause(type, namespace, group, store, Screen(as_json)))


async def _pause(type: str | None, namespace: str | None, group: str | None, store: str, screen: Screen) -> None:
    async with opened(store) as engine:
        kind = await _kind(engine, type, namespace, group)
        await engine.manager.pause(**kind)
        if any(kind.values()) and not await is_known(engine, **kind):
            screen.note("there is no such task yet: the pause is there for the first one; check the options")
        await _tell_pauses(engine, screen)


def resume(
    type: Type = None,
    namespace: _Namespace = None,
    group: _Group = None,
    store: StorePath = DEFAULT_STORE,
    as_json: AsJson = False,
) -> int:
    """Take back the pause that was made with the same options."""
    return run(_resume(type, namespace, group, store, Screen(as_json)))


async def _resume(type: str | None, namespace: str | None, group: str | None, store: str, screen: Screen) -> int:
    async with opened(store) as engine:
        kind = await _kind(engine, type, namespace, group)
        found = await engine.manager.resume(**kind)
        if not found:
            screen.note("there is no pause with these options")
        await _tell_pauses(engine, screen)
    return OK if found else NOT_FOUND


async def _kind(engine: Engine, type: str | None, namespace: str | None, group: str | None) -> dict[str, str]:
    """Return what a pause names. Raises: InvalidInput: nothing can have that type."""
    kind = str(TaskType((await type_named(engine, type))[0])) if type else ""
    return {"type": kind, "namespace": namespace or "", "group": group or ""}


async def _tell_pauses(engine: Engine, screen: Screen) -> None:
    """Print what is paused now: a pause and a resume must name the same things to meet."""
    found = await pauses(engine)
    if screen.as_json:
        screen.document({"pauses": found})
    else:
        screen.text("\n".join(f"paused: {row}" for row in found) or "nothing is paused")


__all__ = ["cancel", "pause", "resume", "retry"]
