"""The write-ahead log: folded into the file as it grows, and cut off before readers let it grow without end.

A log begins anew only in a moment when nobody reads from it. Many short reads that overlap leave no such moment, though
none of them lasts: above the limit the writer holds back its next commit until one has come.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import apsw

from mainspring.store.sqlite.connection import patience, write_log_anew

logger = logging.getLogger("mainspring.store")

FOLD_BYTES = 16 << 20
"""Size of the log after which the writer copies it into the file."""
_WAIT_S = 0.1
"""How long a commit may be held back for readers to leave the log: the moments that one snapshot is read."""


class Log:
    """One connection's view of the log, which all processes on the file share."""

    def __init__(self, path: Path, limit_bytes: int, lock_timeout_s: float) -> None:
        self._path = path
        self._limit_bytes = limit_bytes
        self._lock_timeout_s = lock_timeout_s
        self._page_size = 4096
        self._pages = 0
        self._fold_above = 0  # pages; after a failure it is tried again only when as much more has come
        self._cut_above = 0  # pages; after a reader that did not leave, it is tried again only when more has come

    def watch(self, connection: apsw.Connection) -> None:
        """Learn from each commit how long the log is."""
        self._page_size = int(connection.pragma("page_size") or 4096)
        connection.set_wal_hook(self._note)

    def _note(self, connection: apsw.Connection, name: str, pages: int) -> int:
        self._pages = pages
        return 0

    def fold(self, connection: apsw.Connection) -> bool:
        """Called after a commit. What can't be done now is tried after one of the next: all is safe in the log.

        Returns: whether the connection is good for more; after a failure nobody knows what it takes to be on the disk.
        """
        fold_pages = min(FOLD_BYTES, self._limit_bytes) // self._page_size
        if self._pages <= max(fold_pages, self._fold_above):
            return True
        try:
            pages, _ = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            self._pages = self._fold_above = 0
            if pages * self._page_size <= self._limit_bytes:
                self._cut_above = 0
            elif pages > self._cut_above:
                self._cut_above = 0 if self._cut(connection) else pages + fold_pages
        except apsw.BusyError:  # another process is at it
            pass
        except apsw.Error as exc:
            logger.warning("checkpoint failed: %s", exc)
            self._fold_above = self._pages + fold_pages
            return False
        return True

    def make_room(self) -> bool:
        """Fold a log that can't grow, on a full disk: it begins anew then, in the room that it has already.

        On a connection of its own: one that writes commits when it is opened. Returns whether all could be folded; not
        where the file would have to grow for it.
        """
        try:
            connection = apsw.Connection(os.fspath(self._path))
            try:
                connection.execute("BEGIN IMMEDIATE")  # only a look at the file tells it that there is a log
                write_log_anew(self._path)
                connection.execute("COMMIT")
                pages, folded = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
                return 0 < pages == folded
            finally:
                connection.close()
        except apsw.Error as exc:
            logger.warning("the log on a full disk could not be folded: %s", exc)
            return False

    def _cut(self, connection: apsw.Connection) -> bool:
        """Wait for a moment without readers and empty the log. False when somebody reads for longer than that."""
        connection.set_busy_handler(patience(_WAIT_S))
        try:
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except apsw.BusyError:
            return False
        finally:
            connection.set_busy_handler(patience(self._lock_timeout_s))
        return True
