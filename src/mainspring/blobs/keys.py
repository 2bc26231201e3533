"""Names for blobs: rows in the same file as the tasks, so that a name appears exactly when its task completes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import apsw

from mainspring.blobs.base import BlobKey
from mainspring.errors import Conflict, StoreUnavailable
from mainspring.tasks import BlobDelete, BlobRef

SCHEMA = """
create table if not exists blob_key (
    namespace text not null,
    key text not null,
    digest text not null,
    size int not null,
    updated_ms int not null,
    primary key (namespace, key)
) strict, without rowid;
"""
"""Made by whoever opens the file for writing; safe to run again."""

_SET = """
insert into blob_key (namespace, key, digest, size, updated_ms)
values (:namespace, :key, :digest, :size, :now_ms)
on conflict (namespace, key) do update
set digest = excluded.digest, size = excluded.size, updated_ms = excluded.updated_ms
where not :if_absent or digest = excluded.digest
"""

_NAMED = "select 1 from blob_key where digest = ? limit 1"
_DELETE = "delete from blob_key where namespace = :namespace and key = :key"

_GET = "select key, digest, size, updated_ms from blob_key where namespace = :namespace and key = :key"

# Text compares byte by byte and no UTF-8 text holds the byte ff: the second bound ends exactly where the prefix does.
_LIST = """
select key, digest, size, updated_ms from blob_key
where namespace = :namespace and key >= :prefix and key < :prefix || cast(x'ff' as text) and key > :after
order by key limit :limit
"""


def apply_ref(cursor: apsw.Cursor, effect: BlobRef, namespace: str, now_ms: int) -> None:
    """Give a blob its name, within the caller's transaction.

    With `if_absent`, a name that stands for other content is left alone; the same content again is no conflict, so
    that a repeated task ends as the first one did.

    Raises: Conflict: `if_absent`, and the name is taken.
    """
    values = {
        "namespace": namespace,
        "key": effect.key,
        "digest": effect.digest,
        "size": effect.size,
        "now_ms": now_ms,
        "if_absent": effect.if_absent,
    }
    cursor.execute(_SET, values)
    if cursor.connection.changes() == 0:
        raise Conflict(f"key {effect.key!r} names other content already; delete it first, or put without if_absent")


def apply_delete(cursor: apsw.Cursor, effect: BlobDelete, namespace: str, now_ms: int) -> None:
    """Take a name away, within the caller's transaction; an unknown name is no error."""
    cursor.execute(_DELETE, {"namespace": namespace, "key": effect.key})


def named(connection: apsw.Connection, digests: Sequence[str]) -> set[str]:
    """Return those digests that some name stands for: their blobs must stay."""
    return {digest for digest in digests if connection.execute(_NAMED, (digest,)).fetchone() is not None}


Names: TypeAlias = list[BlobKey]
Connections: TypeAlias = list[apsw.Connection]


class BlobKeys:
    """Reads names from the file at `path`, which must hold `SCHEMA`; sees what was committed before a call.

    All methods block and may be called from any thread; each call under way has a connection of its own.
    """

    def __init__(self, path: str | Path, *, lock_timeout_s: float = 10.0) -> None:
        self._path = str(path)
        self._lock_timeout_ms = int(lock_timeout_s * 1000)
        self._idle: Connections = []

    def get(self, namespace: str, key: str) -> BlobKey | None:
        found = self._read(_GET, {"namespace": namespace, "key": key})
        return found[0] if found else None

    def list(self, namespace: str, prefix: str = "", limit: int = 1000, after: str = "") -> Names:
        """Return at most `limit` names that begin with `prefix` and come after `after`, in the order of their bytes."""
        return self._read(_LIST, {"namespace": namespace, "prefix": prefix, "limit": limit, "after": after})

    def close(self) -> None:
        """Close the connections. No call may be under way."""
        while self._idle:
            self._idle.pop().close()

    def _read(self, statement: str, values: dict[str, str | int]) -> Names:
        try:
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = self._connect()
            try:
                return [BlobKey(*row) for row in connection.execute(statement, values)]
            finally:
                self._idle.append(connection)
        except apsw.Error as exc:
            raise StoreUnavailable(f"names of blobs in {self._path} can't be read now: {exc}") from exc

    def _connect(self) -> apsw.Connection:
        connection = apsw.Connection(self._path, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        connection.set_busy_timeout(self._lock_timeout_ms)
        return connection
