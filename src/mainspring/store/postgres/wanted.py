"""What the tables of a version should look like on a server, read from the text that makes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from mainspring.store.postgres.connection import SCHEMA_VERSION
from mainspring.store.postgres.statements import MIGRATIONS, SCHEMA

_TABLE: Final = re.compile(r"^CREATE TABLE (\w+) \(\n.*?^\)(?: WITH \(([^)]*)\))?;", re.MULTILINE | re.DOTALL)
_INDEX: Final = re.compile(r"^CREATE (UNIQUE )?INDEX (\w+) ON (\w+)[^;]*;", re.MULTILINE)


class WantedIndex(NamedTuple):
    table: str
    is_unique: bool
    sql: str  # that makes it


class Wanted(NamedTuple):
    settings: Mapping[str, Mapping[str, str]]  # of each table
    indexes: Mapping[str, WantedIndex]  # beside those that constraints stand on


def wanted(schema: str) -> Wanted:
    """Return what a text of CREATE statements makes."""
    return Wanted(
        {table: as_settings((given or "").split(",")) for table, given in _TABLE.findall(schema)},
        {m[2]: WantedIndex(m[3], m[1] is not None, " ".join(m[0].split())) for m in _INDEX.finditer(schema)},
    )


def wanted_of(version: int, extra_schema: str) -> Wanted:
    """Return what a store of a version has: what this version makes, but for what later steps brought."""
    now = wanted(SCHEMA + extra_schema)
    later = wanted("".join(f"{MIGRATIONS[f'to_{n}']};\n" for n in range(version + 1, SCHEMA_VERSION + 1)))
    return Wanted(
        {table: settings for table, settings in now.settings.items() if table not in later.settings},
        {name: index for name, index in now.indexes.items() if name not in later.indexes},
    )


def as_settings(options: list[str]) -> dict[str, str]:
    """Return what stands in `name = value` and `name=value`."""
    pairs = (option.partition("=") for option in options if option.strip())
    return {name.strip(): value.strip() for name, _, value in pairs}
