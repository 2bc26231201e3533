"""Files of older versions become files of this one when they are opened, with all that is in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import apsw
import pytest
from tests.conformance.kit import Port, SqliteFactory, error, new, opened

from mainspring.store.sqlite.connection import APPLICATION_ID, SCHEMA_VERSION
from mainspring.store.sqlite.statements import MIGRATIONS, SCHEMA, schema_of
from mainspring.testing import check_history

pytestmark = pytest.mark.anyio
VERSION_1 = schema_of(1)


def shape(connection: apsw.Connection) -> dict[str, Any]:
    """What tables, columns and indexes there are, however they came about."""
    found: dict[str, Any] = {}
    for name, kind, sql in connection.execute("SELECT name, type, sql FROM sqlite_schema WHERE sql IS NOT NULL"):
        if kind == "table":
            found[name] = connection.execute(
                'SELECT name, type, "notnull", dflt_value, pk FROM pragma_table_xinfo(?)', (name,)
            ).fetchall()
        else:
            found[name] = re.sub(r"\s+", " ", sql)
    return found


def test_a_migrated_file_is_like_a_new_one() -> None:
    """Every step from version 1 on is there, and what they make is what new files get."""
    old, fresh = apsw.Connection(":memory:"), apsw.Connection(":memory:")
    old.execute(VERSION_1)
    fresh.execute(SCHEMA)
    assert shape(old) != shape(fresh)
    for version in range(2, SCHEMA_VERSION + 1):
        old.execute(MIGRATIONS[f"to_{version}"])
    assert shape(old) == shape(fresh)
    assert len(MIGRATIONS) == SCHEMA_VERSION - 1


async def test_work_goes_on_in_an_older_file(tmp_path: Path) -> None:
    """A file of version 1 is opened, its tasks run, and an end that was still travelling arrives."""
    factory = SqliteFactory(tmp_path)
    connection = apsw.Connection(str(factory.path))
    connection.execute(VERSION_1)
    connection.pragma("application_id", APPLICATION_ID)
    connection.pragma("user_version", 1)
    connection.execute("INSERT INTO class VALUES (1, 'default', 'custom:work', '')")
    task = new("old")
    insert = """INSERT INTO task (seq, id, class, rank, status, reason, attempt, priority, max_retries, submitted_ms,
        ready_ms, ended_ms, waits_for, waits_at, input) VALUES (?, ?, 1, 0, ?, ?, ?, 1, 3, 0, 0, ?, ?, ?, ?)"""
    connection.executemany(
        insert,
        [
            (1, task.id, 0, 0, 0, None, None, None, task.input),
            (2, new().id, 3, None, 1, 5, None, None, task.input),
            (3, new().id, 0, 1, 0, None, 2, 0, task.input),
        ],
    )
    connection.execute("INSERT INTO edge VALUES (3, 0, 2, 1); INSERT INTO cascade VALUES (2)")
    connection.execute("UPDATE task SET error = ? WHERE seq = 2", (error(),))
    connection.execute(
        "INSERT INTO attempt (task, number, outcome, ended_ms, error) VALUES (2, 1, 1, 5, ?)", (error(),)
    )
    connection.execute("INSERT INTO tally VALUES (1, 0, 2), (1, 3, 1), (0, 0, 2), (0, 3, 1)")
    connection.close()
    async with opened(factory.make()) as store:
        port = Port(store, 5)
        await port.serve()
        await port.until(lambda: len(port.held) == 2)
        await port.run_all()
        assert (await store.stats())["completed"] == 2
    assert check_history(factory.path) == []
