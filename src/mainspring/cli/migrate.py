"""`migrate`: a whole store becomes another one, between a file and a server or among their like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from mainspring.cli.moving import Contents, Place, Report, contents, move
from mainspring.cli.options import AsJson
from mainspring.cli.screen import Screen
from mainspring.cli.stages import stages
from mainspring.environment import SYSTEM
from mainspring.errors import StoreUnavailable

_Blobs = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder of large payloads, where an engine names one (StoreConfig.blobs)."),
]


def migrate(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A file, or the address of a server.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Where to: a new file, or an empty schema.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what there is to move; change nothing.")] = False,
    anew: Annotated[
        bool, typer.Option("--anew", help="Throw away what a move that was interrupted has left in TARGET.")
    ] = False,
    source_blobs: _Blobs = None,
    target_blobs: _Blobs = None,
    as_json: AsJson = False,
) -> None:
    """Move a whole store, with its blobs and vectors, and compare both ends before it counts.

    Stop all workers and engines on SOURCE first. Interrupted, SOURCE is as it was: run the same command again to go on.
    Afterwards SOURCE says where its tasks are, and no engine opens it.
    """
    screen, began = Screen(as_json), SYSTEM.monotonic()
    here, there = Place(source, source_blobs), Place(target, target_blobs)
    if dry_run:
        _tell_plan(screen, here, there)
        return
    with stages(as_json=as_json) as shown:
        report = move(here, there, shown, screen.note, anew=anew)
    _tell(screen, report, SYSTEM.monotonic() - began)


def _tell_plan(screen: Screen, here: Place, there: Place) -> None:
    found, target = here.peek(contents), there.peek(contents)
    if found is None:
        raise StoreUnavailable(f"there is no store at {here.shown}; check the name")
    if screen.as_json:
        screen.document(
            {
                "source": found,
                "target": target,
                "source_blobs": str(here.blob_folder),
                "target_blobs": str(there.blob_folder),
            }
        )
        return
    screen.text(f"{found.store}: {_counted(found)}")
    screen.text(f"blobs go from {here.blob_folder} to {there.blob_folder}")
    if found.workers:
        screen.text(f"not signed off: {_named(found)}")
    screen.text(f"{there.shown}: {'does not exist yet' if target is None else _counted(target)}")
    for mark in [*found.marks, *(() if target is None else target.marks)]:
        screen.text(f"{mark.role} of a move, {'from' if mark.role == 'target' else 'to'} {mark.other}")


def _counted(found: Contents) -> str:
    tasks = ", ".join(f"{n:,} {status}" for status, n in found.tasks.items()) or "none"
    records = sum(found.collections.values())
    return (
        f"tasks: {tasks}; {sum(found.rows.values()):,} rows, {records:,} vectors in {len(found.collections)} "
        f"collections, {found.blobs:,} blobs"
    )


def _named(found: Contents) -> str:
    return ", ".join(f"{name} (pid {pid} on {host})" for name, pid, host in found.workers)


def _tell(screen: Screen, report: Report, took_s: float) -> None:
    if screen.as_json:
        screen.document({**msgspec.structs.asdict(report), "seconds": round(took_s, 3)})
        return
    if report.was_over:
        screen.text(f"{report.source} was moved to {report.target} before; nothing was left to do")
        return
    for fault in report.broken:
        screen.note(f"as in the source: {fault}")
    tasks = ", ".join(f"{n:,} {status}" for status, n in report.tasks.items()) or "no tasks"
    screen.text(
        f"{report.target}: {tasks}; {report.rows:,} rows, {report.records:,} vectors, {report.blobs:,} blobs, "
        f"compared, in {took_s:.1f} s"
    )
    screen.text(f"{report.source} says where its tasks are now, and no engine opens it any more")


__all__ = ["migrate"]
