"""What a file of each version is made of, and where one differs: tables and columns, indexes, triggers, CHECKs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import Final, Literal, NamedTuple

import apsw

from mainspring.store.moving.marks import SCHEMA as MOVES
from mainspring.store.sqlite.connection import SCHEMA_VERSION
from mainspring.store.sqlite.statements import schema_of

_COLUMNS: Final = """SELECT item.name, info.name, info.type, info."notnull", info.dflt_value, info.pk
FROM sqlite_schema AS item JOIN pragma_table_xinfo(item.name) AS info
WHERE item.type IN ('table', 'view') AND item.name NOT LIKE 'sqlite~_%' ESCAPE '~'"""
_MADE: Final = "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE sql IS NOT NULL"
_COMMENT: Final = re.compile(r"--[^\n]*")
_CHECK: Final = re.compile(r"\bCHECK\b", re.IGNORECASE)


class Difference(NamedTuple):
    """`lost`: statements of ours fail; `changed`: they do something else or cost more; `foreign`: beside our tables."""

    kind: Literal["lost", "changed", "foreign"]
    what: str
    mend: str = ""  # the statement that does, where there is one


class _Made(NamedTuple):
    table: str
    sql: str


class _Shape(NamedTuple):
    columns: dict[str, dict[str, tuple[object, ...]]]  # of each table
    checks: dict[str, int]  # how many each table has
    rest: dict[tuple[str, str], _Made]  # indexes and triggers, by (type, name)


def differences(connection: apsw.Connection, extra_schema: str) -> list[Difference]:
    """Return where a file differs from what the version that it says makes.

    The tables of `extra_schema` are there together, or none of them is.
    """
    version = int(connection.pragma("user_version") or 0)
    here, wanted, extra = (
        _shape(connection),
        _shape_of(schema_of(version) + extra_schema + MOVES),
        _shape_of(extra_schema),
    )
    optional = set(_shape_of(MOVES).columns)
    if not extra.columns.keys() & here.columns.keys():
        optional |= extra.columns.keys()
    later = _shape_of(schema_of(SCHEMA_VERSION)).columns.keys() - wanted.columns.keys()
    return [*_tables(here, wanted, optional), *_foreign(here, wanted, later), *_rest(here, wanted)]


def _tables(here: _Shape, wanted: _Shape, optional: set[str]) -> Iterator[Difference]:
    for table, columns in wanted.columns.items():
        found = here.columns.get(table)
        if found is None:
            if table not in optional:
                yield Difference("lost", f"table {table} is missing")
            continue
        for name in columns.keys() - found.keys():
            yield Difference("lost", f"column {table}.{name} is missing")
        for name in found.keys() - columns.keys():
            yield Difference(
                "changed", f"column {table}.{name} is none of ours", f"ALTER TABLE {table} DROP COLUMN {name}"
            )
        for name in columns.keys() & found.keys():
            if columns[name] != found[name]:
                yield Difference("changed", f"column {table}.{name} is declared otherwise")
        if here.checks[table] != wanted.checks[table]:
            yield Difference("changed", f"table {table} has {here.checks[table]} CHECKs, not {wanted.checks[table]}")


def _foreign(here: _Shape, wanted: _Shape, later: AbstractSet[str]) -> Iterator[Difference]:
    for table in here.columns.keys() - wanted.columns.keys():
        if table in later:  # the step that makes it would fail
            yield Difference("changed", f"table {table} is one of a later version")
        else:
            yield Difference("foreign", f"table {table} is none of ours")


def _rest(here: _Shape, wanted: _Shape) -> Iterator[Difference]:
    for (kind, name), made in wanted.rest.items():
        found = here.rest.get((kind, name))
        if found is None:
            if made.table in here.columns:
                yield Difference("changed", f"{kind} {name} is missing", made.sql)
        elif found != made:
            yield Difference(
                "changed", f"{kind} {name} is another than ours", f"DROP {kind.upper()} {name}; {made.sql}"
            )
    for (kind, name), made in here.rest.items():
        if (kind, name) not in wanted.rest and made.table in wanted.columns:
            what = f"{kind} {name} on table {made.table} is none of ours"
            yield Difference("changed", what, f"DROP {kind.upper()} {name}")


@lru_cache
def _shape_of(schema: str) -> _Shape:
    with contextlib.closing(apsw.Connection(":memory:")) as connection:
        connection.execute(schema)
        return _shape(connection)


def _shape(connection: apsw.Connection) -> _Shape:
    columns: dict[str, dict[str, tuple[object, ...]]] = {}
    for table, name, *declared in connection.execute(_COLUMNS):
        columns.setdefault(str(table), {})[str(name)] = tuple(declared)
    checks: dict[str, int] = {}
    rest: dict[tuple[str, str], _Made] = {}
    for kind, name, table, sql in connection.execute(_MADE):
        text = " ".join(_COMMENT.sub("", str(sql)).split())
        if kind in ("index", "trigger"):
            rest[str(kind), str(name)] = _Made(str(table), text)
        else:
            checks[str(name)] = len(_CHECK.findall(text))
    return _Shape(columns, checks, rest)
