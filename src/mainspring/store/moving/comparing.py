"""Comparing: what both ends hold, read anew and added up to numbers that are equal when every value is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import msgspec

from mainspring.blobs.local import LocalBlobStore
from mainspring.store.moving.copying import Progress
from mainspring.store.moving.end import End
from mainspring.store.moving.tables import Table
from mainspring.tasks import VectorRecord

_PAGE: Final = 500
_ROUND: Final = 1 << 128


class Content(NamedTuple):
    """Equal for equal rows, in whatever order a store gives them."""

    rows: int
    sum: int


def differences(source: End, target: End, tables: Sequence[Table], progress: Progress) -> Iterator[str]:
    """Yield each table and collection that is not the same on both sides, with how many rows each has."""
    total = 2 * sum(source.count(table.name) for table in tables)
    done = 0

    def tell(rows: int) -> None:
        nonlocal done
        done += rows
        progress(done, total)

    for table in tables:
        ours, theirs = (_content(_rows(end, table), tell) for end in (source, target))
        if ours != theirs:
            yield f"table {table.name}: {ours.rows:,} rows there, {theirs.rows:,} here"
    if source.statuses() != target.statuses():
        yield f"tasks by status: {source.statuses()} there, {target.statuses()} here"
    given, taken = source.numbers(), target.numbers()
    for name in ("task", "worker"):
        if given[name] != taken[name]:
            yield f"numbers of {name}: given up to {given[name]} there, {taken[name]} here"
    if source.collections() != target.collections():
        yield f"collections: {source.collections()} there, {target.collections()} here"
    for name, *_ in source.collections():
        ours, theirs = (_content(_records(end, name), lambda rows: None) for end in (source, target))
        if ours != theirs:
            yield f"collection {name}: {ours.rows:,} records there, {theirs.rows:,} here"


def missing_blobs(
    digests: Sequence[str], source: LocalBlobStore, target: LocalBlobStore, progress: Progress
) -> Iterator[str]:
    """Yield what is wrong with blobs here and was not there."""
    for n, digest in enumerate(digests, 1):
        fault = target.fault(digest)
        if fault is not None and source.fault(digest) is None:
            yield fault
        progress(n, len(digests))


def _content(rows: Iterable[Sequence[Any]], tell: Callable[[int], None]) -> Content:
    count = total = 0
    for row in rows:
        count += 1
        total += int.from_bytes(blake2b(msgspec.msgpack.encode(row), digest_size=16).digest(), "big")
        if count % _PAGE == 0:
            tell(_PAGE)
    tell(count % _PAGE)
    return Content(count, total % _ROUND)


def _rows(end: End, table: Table) -> Iterator[Sequence[Any]]:
    for page in end.pages(table):
        yield from page


def _records(end: End, collection: str) -> Iterator[Sequence[Any]]:
    after = ""
    while page := end.vectors.page(collection, after=after, limit=_PAGE):
        yield from map(_told, page)
        after = page[-1].id


def _told(record: VectorRecord) -> Sequence[Any]:
    metadata = msgspec.json.encode(record.metadata, order="deterministic")
    return record.id, record.vector.tobytes(), record.text, metadata
