"""How processes on one file hear what became ready: a transaction leaves word of it, as part of its commit."""

from __future__ import annotations

from mainspring.store.sql.claims import hear, look_everywhere
from mainspring.store.sql.transaction import Transaction

_KEPT_NEWS = 10_000
"""Who missed more than these looks through everything."""


def look(tx: Transaction, *, everywhere: bool) -> None:
    """Find the classes in which other processes made tasks ready since the last look; at first, all that have some."""
    memory = tx.memory
    oldest, newest = tx.one("span_of_news")
    if everywhere or (oldest is not None and oldest > memory.seen_news + 1):
        look_everywhere(tx)
    else:
        for class_id, rank in set(tx.run("news_after", memory.seen_news).fetchall()):
            hear(tx, class_id, (rank, 0))
    memory.seen_news = newest or 0
    memory.has_peers = tx.one("another_worker", memory.owner) is not None


def tell(tx: Transaction) -> None:
    """Leave word for other processes of the classes that got ready tasks."""
    memory = tx.memory
    if not tx.ready or not memory.has_peers:
        return
    rows = tx.ready.told()
    tx.run_wide("add_news", rows)
    newest = tx.cursor.connection.last_insert_rowid()
    if newest % _KEPT_NEWS < len(rows):
        tx.run("drop_news", newest - _KEPT_NEWS)
    memory.seen_news = newest
