"""Copying: a page of rows and the note of how far it is go into one transaction of the target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from mainspring.blobs.local import LocalBlobStore
from mainspring.errors import TaskNotFound
from mainspring.store.moving.end import End, Row
from mainspring.store.moving.marks import Mark, Place, places_of
from mainspring.store.moving.tables import Table
from mainspring.vectors.copying import Copied, copy_collection

PAGE_ROWS: Final = 1_000
_PAGE_BYTES: Final = 8 << 20
"""About as much as one transaction of the target should take."""
Progress = Callable[[int, int], None]
"""Told how much is done, of how much."""


def copy_rows(source: End, target: End, tables: Sequence[Table], mark: Mark, progress: Progress) -> int:
    """Copy what the mark says is not there yet; returns how many rows are there."""
    places = places_of(mark)
    total = sum(source.count(table.name) for table in tables)
    done = sum(place.rows for place in places.values())
    for table in tables:
        limit = PAGE_ROWS
        while not (place := places.get(table.name, Place())).is_done:
            page = source.page(table, place.after, limit)
            places[table.name] = _beyond(table, place, page, limit)
            with target.transaction():
                target.put(table, page)
                target.turn_page(mark.id, places)
            done += len(page)
            progress(done, total)
            limit = _fitting(page, limit)
    return done


def _beyond(table: Table, place: Place, page: Sequence[Row], limit: int) -> Place:
    after = tuple(page[-1][at] for at in table.key) if page else place.after
    return Place(place.rows + len(page), after, len(page) < limit)


def _fitting(page: Sequence[Row], limit: int) -> int:
    """Return how many rows the next page may have, by the size of this one's."""
    size = sum(len(value) for row in page for value in row if isinstance(value, (bytes, str)))
    return max(1, min(PAGE_ROWS, limit * _PAGE_BYTES // size)) if size > _PAGE_BYTES else min(PAGE_ROWS, limit * 2)


def copy_blobs(digests: Sequence[str], source: LocalBlobStore, target: LocalBlobStore, progress: Progress) -> int:
    """Bring blobs over, as links where both folders lie on one file system; returns how many the source lacks."""
    lacking = 0
    for n, digest in enumerate(digests, 1):
        try:
            target.take(digest, source)
        except TaskNotFound:
            lacking += 1
        progress(n, len(digests))
    return lacking


def copy_vectors(source: End, target: End, progress: Progress) -> int:
    """Copy all collections; returns how many records there are."""
    collections = source.collections()
    total, before = sum(row[-1] for row in collections), 0

    def tell(copied: Copied) -> None:
        progress(before + copied.records, total)

    for collection in collections:
        if collection[-1]:
            before += copy_collection(source.vectors, target.vectors, collection[0], progress=tell).records
        target.set_collection(collection)
    return before
