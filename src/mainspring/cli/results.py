"""`wait` and `result`: how tasks end, and what they leave."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mainspring.cli.exits import NOT_COMPLETED, OK
from mainspring.cli.following import follow
from mainspring.cli.lookup import find_ids
from mainspring.cli.opening import opened, run
from mainspring.cli.options import DEFAULT_STORE, AsJson, Id, Ids, StorePath, WaitLimit, duration
from mainspring.cli.screen import Screen
from mainspring.cli.shape import as_outcome, error_line, state
from mainspring.errors import TaskError, invalid
from mainspring.tasks import TaskResult, TaskStatus
from mainspring.tasks.codec import to_json


def wait(ids: Ids, timeout: WaitLimit = None, store: StorePath = DEFAULT_STORE, as_json: AsJson = False) -> int:
    """Wait until tasks have ended, telling of each how. The exit code is 0 only when all completed."""
    return run(_wait(ids, duration(timeout, "timeout"), store, Screen(as_json)))


async def _wait(texts: list[str], limit_s: float | None, store: str, screen: Screen) -> int:
    statuses: set[TaskStatus] = set()

    def tell(result: TaskResult) -> None:
        statuses.add(result.status)
        if screen.as_json:
            screen.document(as_outcome(result))
        else:
            error = f" ({error_line(result.error)})" if result.error is not None else ""
            screen.text(f"{result.task_id} {result.status.value}{error}")

    async with opened(store) as engine:
        ids = list(dict.fromkeys(await find_ids(engine, texts)))
        await follow(engine, ids, tell, limit_s)
    return OK if statuses == {TaskStatus.COMPLETED} else NOT_COMPLETED


def result(
    id: Id,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Write to a file: bytes and text as they are, arrays as .npy, else JSON."
        ),
    ] = None,
    store: StorePath = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Print the value that a completed task returned."""
    run(_result(id, out, store, Screen(as_json)))


async def _result(text: str, out: Path | None, store: str, screen: Screen) -> None:
    async with opened(store) as engine:
        (id,) = await find_ids(engine, [text])
        info = await engine.manager.get_task(id)
        if not info.status.is_final:
            raise TaskError(f"task {id} is {state(info)}: it has no result yet; `mainspring wait` waits for it")
        value = await engine.handle(id).result()
    give(value, out, screen)


def give(value: Any, out: Path | None, screen: Screen) -> None:
    """Write a value to a file or to stdout."""
    if out is not None:
        n = _save(value, out)
        if screen.as_json:
            screen.document({"out": str(out), "bytes": n})
        screen.note(f"wrote {n:,} bytes to {out}")
    elif screen.as_json:
        screen.document(value)
    elif isinstance(value, bytes):
        if sys.stdout.isatty():
            raise invalid(
                "result", value[:20], "is bytes, which a terminal can't show", "add --out FILE, or redirect it"
            )
        sys.stdout.buffer.write(value)
        sys.stdout.buffer.flush()
    else:
        print(value if isinstance(value, str) else to_json(value, indent=None if _is_array(value) else 2), flush=True)


def _save(value: Any, out: Path) -> int:
    """Write a value to a file and return its size. Raises InvalidInput: the file can't be written."""
    try:
        if _is_array(value):
            import numpy as np

            with out.open("wb") as file:
                np.save(file, value, allow_pickle=False)
        elif isinstance(value, bytes):
            out.write_bytes(value)
        else:
            out.write_text(value if isinstance(value, str) else to_json(value), encoding="utf-8")
    except OSError as exc:
        raise invalid("out", str(out), f"can't be written ({exc.strerror})", "name another file") from exc
    return out.stat().st_size


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype")


__all__ = ["result", "wait"]
