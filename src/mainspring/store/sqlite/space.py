"""What is free inside the file, and giving it back."""

from __future__ import annotations

import apsw

from mainspring.store.sql.transaction import Transaction
from mainspring.store.sql.upkeep import STEP

SPARE_PAGES = 16_384
"""Free pages that a file keeps in any case: 64 MiB."""


def can_shrink(connection: apsw.Connection) -> bool:
    """Whether more is free inside the file than a store of its size soon needs again."""
    free, pages = (int(connection.pragma(name) or 0) for name in ("freelist_count", "page_count"))
    return free > SPARE_PAGES and free * 4 > pages


def shrink(tx: Transaction) -> None:
    """Give some of what is free inside the file back to the disk. A file made before that was possible stays."""
    tx.cursor.execute(f"PRAGMA incremental_vacuum({STEP})").fetchall()
