"""The named statements of the .sql files beside this one."""

from __future__ import annotations

import re

from mainspring.store.sql.statements import named, read

_ROW = re.compile(r"(?<=VALUES )\([?, 0-9]+\)")
_WIDTHS = (128, 32, 8, 1)


def widened(name: str) -> tuple[tuple[int, str], ...]:
    """Return a statement over one row of values as statements over many, widest first.

    One step of a wide statement leaves the interpreter to other threads for as long as many steps of a narrow one,
    which would each have to win it back: beside a busy event loop that is twice as fast.
    """
    return tuple((n, _with_rows(SQL[name], n)) for n in _WIDTHS)


def _with_rows(sql: str, n: int) -> str:
    return _ROW.sub(lambda match: ", ".join([match[0]] * n), sql)


SCHEMA = read(__package__, "schema.sql")
SQL = named(__package__, "queries.sql")
MIGRATIONS = named(__package__, "migrations.sql")


def schema_of(version: int) -> str:
    """Return what makes the tables that files of a version have."""
    steps = (f"{MIGRATIONS[f'to_{n}']};\n" for n in range(2, version + 1))
    return read(__package__, "schema_1.sql") + "".join(steps)


WIDE = {
    name: widened(name)
    for name in (
        "insert_task",
        "insert_done",
        "complete_many",
        "again_many",
        "end_many",
        "hand_back",
        "insert_attempt",
        "insert_edge",
        "add_tally",
        "add_news",
        "add_tombstone",
        "join_flight",
        "keep",
    )
}
