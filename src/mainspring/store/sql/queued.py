"""What is ready, by priority: a look that costs the same however many tasks wait."""

from __future__ import annotations

from mainspring.store.base import Queued
from mainspring.store.sql.reads import View

_CLASSES = 100


def queued(view: View, most: int) -> Queued:
    """Return ready tasks by priority, from a bounded number of rows however many wait."""
    with view.snapshot():
        classes: list[int] = []
        while len(classes) < _CLASSES and (row := view.one("ready_class_after", classes[-1] if classes else -1)):
            classes.append(row[0])
        found: dict[int, tuple[int, int]] = {}
        is_whole, share = len(classes) < _CLASSES, max(1, most // max(1, len(classes)))
        for class_id in classes:
            seen = 0
            for priority, n, oldest_ms in view.rows("first_of_class", class_id, share):
                known, since_ms = found.get(priority, (0, oldest_ms))
                found[priority] = (known + n, min(since_ms, oldest_ms))
                seen += n
            is_whole = is_whole and seen < share
    return Queued(found, is_whole)
