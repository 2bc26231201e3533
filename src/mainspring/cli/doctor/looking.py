"""One look at a store: its facts, and what the rules make of them."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import apsw

from mainspring.blobs.local import LocalBlobStore
from mainspring.cli.app import version
from mainspring.cli.doctor import file
from mainspring.cli.doctor.finding import Finding, Report, broken, in_order, moves, shared_folder
from mainspring.cli.doctor.work import GRACE_S, TURN_S
from mainspring.cli.opening import existing, server_of
from mainspring.dispatch.parts import FILE_SCHEMA, blob_folder, server_schema
from mainspring.store.moving.marks import READ, Mark
from mainspring.store.sqlite import connection as files
from mainspring.store.sqlite.backup import blobs_beside
from mainspring.store.sqlite.inspection import inspect, integrity
from mainspring.store.sqlite.shape import differences
from mainspring.testing import check_history
from mainspring.testing.history import referred
from mainspring.testing.rows import FileRows, ServerRows

if TYPE_CHECKING:
    from mainspring.store.postgres.address import Server
    from mainspring.store.postgres.session import Session


def examine_file(name: str, folder: Path | None, *, is_thorough: bool) -> Report:
    """Look at a store in a file. Raises: what opening one raises."""
    path = existing(name)
    blobs = LocalBlobStore(folder, make=False) if folder is not None else blobs_beside(path)
    return files.look(path, lambda connection: _file(connection, path, blobs, is_thorough=is_thorough))


def _file(connection: apsw.Connection, path: Path, blobs: LocalBlobStore, *, is_thorough: bool) -> Report:
    versions = {"mainspring": version(), "sqlite": apsw.sqlite_lib_version(), "apsw": apsw.apsw_version(), **_here()}
    damage = integrity(connection, is_thorough=is_thorough)
    made_otherwise = [] if damage else differences(connection, FILE_SCHEMA)
    found = [*file.damage(damage), *file.shape(made_otherwise)]
    facts, has_blobs = None, blobs.folder.is_dir()
    if not damage and not any(item.kind == "lost" for item in made_otherwise):
        facts = inspect(connection, path, grace_s=GRACE_S, turn_s=TURN_S)
        found += list(_moves(connection)) or file.findings(facts, versions)
        found += shared_folder(blobs, _identity(connection))
        if is_thorough:
            found += broken(check_history(connection, blobs=blobs if has_blobs else None))
            found += [] if has_blobs else file.no_folder(blobs.folder, referred(FileRows(connection)))
    n, n_bytes = _count(blobs)
    return Report(
        store=str(path),
        versions=versions,
        checks=("integrity_check", "invariants", "blobs") if is_thorough else ("quick_check",),
        facts=facts,
        blobs=n,
        blob_bytes=n_bytes,
        findings=in_order(found),
    )


def _identity(connection: apsw.Connection) -> str:
    """Return what tells a file's store from all others; a file of an older version has nothing."""
    has_one = connection.execute("SELECT 1 FROM pragma_table_info('store') WHERE name = 'identity'").get
    return str(connection.execute("SELECT identity FROM store").get) if has_one else ""


def _moves(connection: apsw.Connection) -> Iterator[Finding]:
    if connection.table_exists("main", "migration"):
        yield from moves([Mark(*row) for row in connection.execute(READ)])


def examine_server(address: str, folder: Path | None, *, is_thorough: bool) -> Report:
    """Look at a store on a server. Raises: what opening one raises."""
    server = server_of(address)
    from mainspring.store.postgres.looking import look

    blobs = LocalBlobStore(folder or blob_folder(server), make=False)
    return look(server, lambda session: _on_server(session, server, blobs, is_thorough=is_thorough))


def _on_server(session: Session, server: Server, blobs: LocalBlobStore, *, is_thorough: bool) -> Report:
    from mainspring.cli.doctor.server import elsewhere, findings, no_folder
    from mainspring.store.postgres.inspection import inspect, is_led_elsewhere, marks
    from mainspring.store.postgres.wanted import wanted_of

    versions = {"mainspring": version(), "asyncpg": metadata.version("asyncpg"), **_here()}
    has_blobs = blobs.folder.is_dir()
    facts, found = None, [elsewhere(server)] if is_led_elsewhere(session, server) else []
    if not found:
        facts = inspect(session, server, grace_s=GRACE_S, turn_s=TURN_S)
        versions["postgres"] = facts.server.version
        found += list(moves(marks(session))) or findings(facts, server, wanted_of(facts.server.schema, server_schema()))
        found += shared_folder(blobs, facts.server.identity)
        if is_thorough:
            with session.snapshot() as moment:
                found += broken(check_history(moment, blobs=blobs if has_blobs else None))
                found += [] if has_blobs else no_folder(blobs.folder, referred(ServerRows(moment)))
    n, n_bytes = _count(blobs)
    return Report(
        store=server.named,
        versions=versions,
        checks=("invariants", "blobs") if is_thorough and has_blobs else ("invariants",) if is_thorough else (),
        facts=facts,
        blobs=n,
        blob_bytes=n_bytes,
        findings=in_order(found),
    )


def _here() -> dict[str, str]:
    return {"python": platform.python_version()}


def _count(blobs: LocalBlobStore) -> tuple[int, int]:
    sizes = [info.size for digest, _ in blobs.digests() if (info := blobs.info(digest)) is not None]
    return len(sizes), sum(sizes)
