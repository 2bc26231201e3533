"""`doctor`: what is wrong with a store and those who work on it, and what to do. Nothing is changed."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import apsw
import msgspec
import typer

from mainspring.blobs.local import LocalBlobStore
from mainspring.cli import exits
from mainspring.cli.app import version
from mainspring.cli.findings import GRACE_S, TURN_S, Finding, broken, damage, findings, moves
from mainspring.cli.opening import existing
from mainspring.cli.options import DEFAULT_STORE, AsJson, StorePath
from mainspring.cli.screen import Screen, printable, size
from mainspring.store.moving.marks import READ, Mark
from mainspring.store.sqlite.connection import look
from mainspring.store.sqlite.inspection import Facts, inspect, integrity
from mainspring.testing import ROWS, check_history

if TYPE_CHECKING:
    from rich.table import Table

_ORDER = ("problem", "warning", "note")


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that one look found; facts are missing where damage kept them from being read."""

    facts: Facts | None
    blobs: int
    blob_bytes: int
    is_thorough: bool
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        levels = {finding.level for finding in self.findings}
        return exits.STORE if "problem" in levels else exits.NOT_COMPLETED if "warning" in levels else exits.OK


def doctor(
    check: Annotated[
        bool, typer.Option("--check", help="Also check every invariant, index and blob: reads the whole file.")
    ] = False,
    store: StorePath = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Say what is wrong with a store, its workers and its queue, with a remedy for each. Changes nothing.

    Exit codes: 0 nothing to attend to, 1 warnings, 4 something is broken or the file can't be used.
    """
    path = existing(store)
    report = look(path, lambda connection: examine(connection, path, is_thorough=check))
    screen = Screen(as_json)
    if as_json:
        screen.document(_document(path, report))
    else:
        _show(path, report, screen)
    raise typer.Exit(report.exit_code)


def examine(connection: apsw.Connection, path: Path, *, is_thorough: bool) -> Report:
    """Look at a store whose file is fit to be read."""
    blobs = LocalBlobStore(path.with_name(path.name + "-blobs"), make=False)
    found = list(damage(integrity(connection, is_thorough=is_thorough)))
    facts = None
    if not found:
        facts = inspect(connection, path, grace_s=GRACE_S, turn_s=TURN_S)
        found += list(_moves(connection)) or findings(facts, versions())
        if is_thorough:
            found += broken(check_history(connection, blobs=blobs))
    sizes = [info.size for digest, _ in blobs.digests() if (info := blobs.info(digest)) is not None]
    ordered = sorted(found, key=lambda finding: _ORDER.index(finding.level))
    return Report(
        facts=facts, blobs=len(sizes), blob_bytes=sum(sizes), is_thorough=is_thorough, findings=tuple(ordered)
    )


def _moves(connection: apsw.Connection) -> Iterator[Finding]:
    if connection.table_exists("main", "migration"):
        yield from moves([Mark(*row) for row in connection.execute(READ)])


def versions() -> dict[str, str]:
    """Return what is running here."""
    return {
        "mainspring": version(),
        "sqlite": apsw.sqlite_lib_version(),
        "apsw": apsw.apsw_version(),
        "python": platform.python_version(),
    }


def _document(path: Path, report: Report) -> dict[str, Any]:
    return {
        "store": str(path),
        "versions": versions(),
        "checks": ["integrity_check", "invariants", "blobs"] if report.is_thorough else ["quick_check"],
        "blobs": {"count": report.blobs, "bytes": report.blob_bytes},
        "facts": report.facts,
        "findings": report.findings,
        "exit_code": report.exit_code,
    }


def _show(path: Path, report: Report, screen: Screen) -> None:
    screen.draw(_overview(path, report))
    for finding in report.findings:
        screen.text(f"\n{finding.level}, {finding.about}: {finding.what}\n  {finding.remedy}")
    if not report.findings:
        screen.text("\nnothing to attend to")


def _overview(path: Path, report: Report) -> Table:
    from rich.table import Table

    drawn = Table.grid(padding=(0, 2))
    drawn.add_column(no_wrap=True, style="bold")
    drawn.add_column(overflow="fold")
    for name, value in _lines(path, report):
        drawn.add_row(name, printable(value))
    return drawn


def _lines(path: Path, report: Report) -> Iterator[tuple[str, str]]:
    yield "store", str(path)
    if (facts := report.facts) is not None:
        file = facts.file
        free = file.free_pages / max(1, file.pages)
        alive = [worker for worker in facts.workers if worker.is_alive]
        working = sum(1 for worker in alive if worker.types)
        yield "file", f"{size(file.bytes)}, {free:.0%} of it free inside, schema {file.schema}"
        yield "log", size(file.log_bytes)
        yield "disk", f"{file.filesystem or 'unknown kind'}, {size(file.disk_free_bytes)} free"
        yield "tasks", f"{facts.unfinished:,} unfinished"
        yield "alive", f"{working} workers, {len(alive) - working} other processes"
    yield "blobs", f"{report.blobs:,}, {size(report.blob_bytes)}"
    yield "versions", ", ".join(f"{name} {number}" for name, number in versions().items())
    checks = f"integrity, {len(ROWS)} invariants, blobs" if report.is_thorough else "quick check of the file"
    broken = any(finding.level == "problem" for finding in report.findings)
    yield "checked", f"{checks}: {'problems, see below' if broken else 'sound'}"


__all__ = ["doctor"]
