"""Blobs that nothing refers to go, all others stay; and the credibility of that: one safeguard taken out at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from tests.conformance.kit import Factory, Port, SqliteFactory, new, opened

from mainspring.store.base import BLOB_INPUT, BLOB_OUTPUT, WANTS_KEPT, WorkName
from mainspring.store.sql import caretaker, reads
from mainspring.store.sqlite.statements import SQL
from mainspring.store.sqlite.store import SqliteStore
from mainspring.tasks import BlobRef

pytestmark = pytest.mark.anyio
HOUR_S = 3_600.0


async def left_after_a_collection(factory: Factory, *others: str, **config: Any) -> set[str]:
    """Return which blobs are there after one: four were a day and an hour old, and one an hour less than a day."""
    async with opened(factory.make(keep_completed_s=HOUR_S, **config)) as store:
        await factory.hold_upkeep(store)
        port = Port(store)
        await port.serve()
        names = ("payload", "named", "kept", "unused", "young")
        digests = {store.blobs.put(name.encode() * 1_000).digest: name for name in names[:4]}
        of = {name: digest for digest, name in digests.items()}
        kept = new(work=b"k" * 20, keep_ms=10**9, flags=WANTS_KEPT)
        await store.submit([kept, new()])
        for claim in await port.room(2):
            if claim.id == kept.id:
                claim.work = WorkName(b"k" * 20, "1")
                await port.finish(claim, output=of["kept"].encode(), flags=BLOB_OUTPUT, blobs=(of["kept"],))
            else:
                await port.finish(claim, effects=(BlobRef("name", of["named"], 5_000),))
        waiting = new(type="custom:unserved")
        waiting.input, waiting.flags = of["payload"].encode(), BLOB_INPUT
        await store.submit([waiting])
        factory.clock.advance(2 * HOUR_S)
        digests[store.blobs.put(b"young" * 1_000).digest] = "young"
        factory.clock.advance(23 * HOUR_S)
        await factory.prune(store)
        assert set(factory.states()) == {waiting.id}  # what is kept of the other ones is not in their rows
        for other in others:
            store.blobs.note_user(other)
        store._caretaker._ticks = caretaker._COLLECT_TICKS
        await store._caretaker._keep()
        return {digests[digest] for digest, _ in store.blobs.digests()}


async def test_only_old_blobs_that_nothing_refers_to_go(factory: Factory) -> None:
    """A payload, a name or a kept result keeps its blob; so does youth: whose task is being stored is not known."""
    assert await left_after_a_collection(factory) == {"payload", "named", "kept", "young"}


async def test_in_a_folder_that_is_named_as_well(factory: Factory, tmp_path: Path) -> None:
    """A store that keeps its blobs in a folder of its own, wherever that is, collects them."""
    assert await left_after_a_collection(factory, blobs=tmp_path / "named") == {"payload", "named", "kept", "young"}


async def test_stores_that_name_one_folder(factory: Factory, tmp_path: Path) -> None:
    """A file and another store, a file or on a server: neither takes what only the other one needs."""
    (tmp_path / "beside").mkdir()
    file, blobs = SqliteFactory(tmp_path / "beside"), tmp_path / "shared"
    async with opened(factory.make(blobs=blobs)) as store, opened(file.make(blobs=blobs)) as beside:
        for n, one in enumerate((store, beside)):
            task = new(type="custom:unserved")
            task.input, task.flags = one.blobs.put(b"%d" % n * 5_000).digest.encode(), BLOB_INPUT
            await one.submit([task])
        factory.clock.advance(25 * HOUR_S)
        file.clock.advance(25 * HOUR_S)
        for one in (store, beside):
            await one._caretaker._collect_blobs()
        assert len(list(store.blobs.digests())) == 2


async def test_all_stay_beside_those_of_another_store(factory: Factory) -> None:
    """Two stores of one name, on two servers, keep theirs in the folder of that name: neither knows what is needed."""
    assert await left_after_a_collection(factory, "another") == {"payload", "named", "kept", "unused", "young"}


def in_use(without: str) -> AbstractContextManager[Any]:
    text = SQL["blob_in_use"]
    assert f"FROM {without} WHERE" in text
    return mock.patch.dict(SQL, {"blob_in_use": text.replace(f"FROM {without} WHERE", f"FROM {without} WHERE 0 AND")})


ABLATIONS: dict[str, tuple[Callable[[], AbstractContextManager[Any]], set[str]]] = {
    "payloads": (lambda: in_use("payload_blob"), {"named", "kept", "young"}),
    "kept results": (lambda: in_use("cache"), {"payload", "named", "young"}),
    "names": (lambda: mock.patch("tests.conformance.kit.keys.named", return_value=set()), {"payload", "kept", "young"}),
    "age": (lambda: mock.patch.object(caretaker, "_BLOB_AGE_S", 3_600.0), {"payload", "named", "kept"}),
    "all rows": (lambda: mock.patch.object(reads, "without_payload", lambda _, digests: digests), {"named", "young"}),
    "collection": (
        lambda: mock.patch.object(SqliteStore, "unused_blobs", return_value=[]),
        {"payload", "named", "kept", "unused", "young"},
    ),
}


@pytest.mark.parametrize("name", ABLATIONS)
async def test_a_safeguard_is_missed(name: str, tmp_path: Path) -> None:
    """Without it another blob is lost, or none ever goes."""
    without, left = ABLATIONS[name]
    with without():
        assert await left_after_a_collection(SqliteFactory(tmp_path)) == left
