"""Names for blobs in the tables of a server, beside the tasks'. The blobs lie where all machines reach them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from mainspring.blobs.base import BlobKey
from mainspring.errors import Conflict
from mainspring.tasks import BlobDelete, BlobRef

SCHEMA: Final = """
CREATE TABLE blob_key (
    namespace  text COLLATE "C" NOT NULL,
    key        text COLLATE "C" NOT NULL,
    digest     text NOT NULL,
    size       bigint NOT NULL,
    updated_ms bigint NOT NULL,
    PRIMARY KEY (namespace, key)
);
CREATE INDEX blob_key_digest ON blob_key (digest);
"""
"""Made once, with the other tables."""

_SET = """
INSERT INTO blob_key (namespace, key, digest, size, updated_ms) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (namespace, key) DO UPDATE
SET digest = excluded.digest, size = excluded.size, updated_ms = excluded.updated_ms
WHERE NOT $6::boolean OR blob_key.digest = excluded.digest
RETURNING 1
"""
_NAMED = "SELECT DISTINCT digest FROM blob_key WHERE digest = ANY ($1::text[])"
_DELETE = "DELETE FROM blob_key WHERE namespace = $1 AND key = $2"
_GET = "SELECT key, digest, size, updated_ms FROM blob_key WHERE namespace = $1 AND key = $2"
_LIST = """
SELECT key, digest, size, updated_ms FROM blob_key
WHERE namespace = $1 AND key >= $2 AND starts_with(key, $2) AND key > $3 ORDER BY key LIMIT $4
"""


class Cursor(Protocol):
    def execute(self, sql: str, values: Sequence[Any] = ()) -> Sequence[tuple[Any, ...]]: ...


def apply_ref(cursor: Cursor, effect: BlobRef, namespace: str, now_ms: int) -> None:
    """Give a blob its name, within the caller's transaction.

    With `if_absent`, a name that stands for other content is left alone; the same content again is no conflict, so
    that a repeated task ends as the first one did.

    Raises: Conflict: `if_absent`, and the name is taken.
    """
    values = (namespace, effect.key, effect.digest, effect.size, now_ms, effect.if_absent)
    if not cursor.execute(_SET, values):
        raise Conflict(f"key {effect.key!r} names other content already; delete it first, or put without if_absent")


def apply_delete(cursor: Cursor, effect: BlobDelete, namespace: str, now_ms: int) -> None:
    """Take a name away, within the caller's transaction; an unknown name is no error."""
    cursor.execute(_DELETE, (namespace, effect.key))


def named(cursor: Cursor, digests: Sequence[str]) -> set[str]:
    """Return those digests that some name stands for: their blobs must stay."""
    return {row[0] for row in cursor.execute(_NAMED, (list(digests),))}


Names = list[BlobKey]


class ServerBlobKeys:
    """Reads names; sees what was committed before a call. All methods block and may be called from any thread.

    Args:
        look: runs a function of a reading cursor and returns what it returns.
    """

    def __init__(self, look: Callable[[Callable[[Cursor], Any]], Any]) -> None:
        self._look = look

    def get(self, namespace: str, key: str) -> BlobKey | None:
        found = self._look(lambda cursor: cursor.execute(_GET, (namespace, key)))
        return BlobKey(*found[0]) if found else None

    def list(self, namespace: str, prefix: str = "", limit: int = 1000, after: str = "") -> Names:
        """Return at most `limit` names that begin with `prefix` and come after `after`, in the order of their bytes."""
        found = self._look(lambda cursor: cursor.execute(_LIST, (namespace, prefix, after, limit)))
        return [BlobKey(*row) for row in found]

    def close(self) -> None:
        """The connection is the store's."""
