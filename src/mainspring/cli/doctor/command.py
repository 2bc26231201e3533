"""`doctor`: what is wrong with a store and those who work on it, and what to do. Nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mainspring.cli.doctor.finding import Report
from mainspring.cli.doctor.looking import examine_file, examine_server
from mainspring.cli.options import DEFAULT_STORE, AsJson, StorePath
from mainspring.cli.screen import Screen, printable, size
from mainspring.config import is_server
from mainspring.store.sqlite.inspection import FileFacts
from mainspring.testing import ROWS

if TYPE_CHECKING:
    from rich.table import Table

    from mainspring.store.sql.inspection import Facts


def doctor(
    check: Annotated[
        bool, typer.Option("--check", help="Also check every invariant, index and blob: reads the whole store.")
    ] = False,
    blobs: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of large payloads, where an engine names one (StoreConfig.blobs)."),
    ] = None,
    store: StorePath = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Say what is wrong with a store, its workers and its queue, with a remedy for each. Changes nothing.

    Exit codes: 0 nothing to attend to, 1 warnings, 4 something is broken or the store can't be used.
    """
    report = (examine_server if is_server(store) else examine_file)(store, blobs, is_thorough=check)
    screen = Screen(as_json)
    if as_json:
        screen.document(_document(report))
    else:
        _show(report, screen)
    raise typer.Exit(report.exit_code)


def _document(report: Report) -> dict[str, Any]:
    return {
        "store": report.store,
        "versions": report.versions,
        "checks": report.checks,
        "blobs": {"count": report.blobs, "bytes": report.blob_bytes},
        "facts": report.facts,
        "findings": report.findings,
        "exit_code": report.exit_code,
    }


def _show(report: Report, screen: Screen) -> None:
    screen.draw(_overview(report))
    for finding in report.findings:
        screen.text(f"\n{finding.level}, {finding.about}: {finding.what}\n  {finding.remedy}")
    if not report.findings:
        screen.text("\nnothing to attend to")


def _overview(report: Report) -> Table:
    from rich.table import Table

    drawn = Table.grid(padding=(0, 2))
    drawn.add_column(no_wrap=True, style="bold")
    drawn.add_column(overflow="fold")
    for name, value in _lines(report):
        drawn.add_row(name, printable(value))
    return drawn


def _lines(report: Report) -> Iterator[tuple[str, str]]:
    yield "store", report.store
    if (facts := report.facts) is not None:
        yield from _of_file(facts) if isinstance(facts, FileFacts) else _of_server(facts)
        alive = [worker for worker in facts.workers if worker.is_alive]
        working = sum(1 for worker in alive if worker.types)
        failed = sum(ends.failed for ends in facts.ends)
        yield "tasks", f"{facts.unfinished:,} unfinished, {failed:,} failed"
        yield "alive", f"{working} workers, {len(alive) - working} other processes"
    yield "blobs", f"{report.blobs:,}, {size(report.blob_bytes)}"
    yield "versions", ", ".join(f"{name} {number}" for name, number in report.versions.items())
    broken = any(finding.level == "problem" for finding in report.findings)
    yield "checked", f"{_checked(report)}: {'problems, see below' if broken else 'sound'}"


def _of_file(facts: FileFacts) -> Iterator[tuple[str, str]]:
    file = facts.file
    free = file.free_pages / max(1, file.pages)
    yield "file", f"{size(file.bytes)}, {free:.0%} of it free inside, schema {file.schema}"
    yield "log", size(file.log_bytes)
    yield "disk", f"{file.filesystem or 'unknown kind'}, {size(file.disk_free_bytes)} free"


def _of_server(facts: Facts) -> Iterator[tuple[str, str]]:
    from mainspring.store.postgres.inspection import ServerFacts

    assert isinstance(facts, ServerFacts)
    server = facts.server
    role = "a replica" if server.is_replica else "primary"
    through = "" if facts.pooler is None else ", through a pooler"
    used = f"{server.connections} of {server.max_connections} connections"
    yield "server", f"Postgres {server.version}, {role}{through}, {used}"
    dead, rows = (sum(getattr(table, name) for table in facts.tables) for name in ("dead", "rows"))
    total = sum(table.bytes for table in facts.tables)
    yield "tables", f"{size(total)}, schema {server.schema}, {rows:,} rows, {dead:,} dead ones"
    oldest = next((holder for holder in facts.holders if holder.age_s is not None), None)
    yield "oldest", "no transaction is open" if oldest is None else f"a transaction is open for {oldest.age_s:.0f} s"
    yield "vectors", f"pgvector {server.pgvector}" if server.pgvector else "no pgvector in this database"


def _checked(report: Report) -> str:
    names = {
        "quick_check": "quick check of the file",
        "integrity_check": "integrity",
        "invariants": f"{len(ROWS)} invariants",
        "blobs": "blobs",
    }
    return ", ".join(names[check] for check in report.checks) or "server and tables, from outside"


__all__ = ["doctor"]
