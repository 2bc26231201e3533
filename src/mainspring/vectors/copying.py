"""Copying a collection from one store into another, of whatever kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from mainspring.errors import InvalidInput, StoreRefused, shown
from mainspring.tasks import VectorRecord
from mainspring.vectors.base import VectorStore
from mainspring.vectors.checks import check_record, unknown

BATCH = 500


class Copied(msgspec.Struct, frozen=True):
    """What a copy has done so far."""

    records: int = 0  # looked at in the source
    written: int = 0  # the others were in the target already, the same to the last bit


def copy_collection(
    source: VectorStore,
    target: VectorStore,
    name: str,
    *,
    into: str | None = None,
    batch: int = BATCH,
    progress: Callable[[Copied], None] = lambda copied: None,
) -> Copied:
    """Bring every record of a collection into a collection of another store, `into` or of the same name.

    Each batch is a transaction of the target, and records that are there already are left alone: a copy that was
    interrupted goes on when it is called again, and one of a collection that has changed since brings the changes.
    What the target has beside them stays there. Blocks: call it from a thread.

    Not promised: one moment. A record that is written into the source meanwhile is copied or not.

    Raises: InvalidInput: no such collection, or the target's holds records of another model or dimension.
        StoreRefused: a record in a file of long ago is larger than stores take.
    """
    known = {collection.name: collection for collection in source.collections()}
    if name not in known:
        raise unknown(name, list(known))
    there, done = into or name, Copied()
    for page in _pages(source, name, batch):
        missing = _differing(page, _found(target, there, page))
        for record in missing:
            _refuse_large(name, record)
        if missing:
            target.upsert(there, missing, model_id=known[name].model_id)
        done = Copied(done.records + len(page), done.written + len(missing))
        progress(done)
    return done


def _refuse_large(name: str, record: VectorRecord) -> None:
    try:
        check_record(record)
    except InvalidInput as exc:
        raise StoreRefused(
            f"record {shown(record.id)} of collection {name!r} can't be copied ({exc}); in the source write it anew or "
            "delete it"
        ) from exc


def _pages(source: VectorStore, name: str, batch: int) -> Iterator[list[VectorRecord]]:
    after = ""
    while page := source.page(name, after=after, limit=batch):
        yield page
        after = page[-1].id


def _found(target: VectorStore, name: str, page: list[VectorRecord]) -> list[VectorRecord]:
    if name not in {collection.name for collection in target.collections()}:
        return []
    return target.get(name, [record.id for record in page])


def _differing(page: list[VectorRecord], found: list[VectorRecord]) -> list[VectorRecord]:
    same = {record.id: _content(record) for record in found}
    return [record for record in page if same.get(record.id) != _content(record)]


def _content(record: VectorRecord) -> tuple[bytes, str | None, bytes]:
    return record.vector.tobytes(), record.text, msgspec.json.encode(record.metadata, order="deterministic")
