"""Copying a collection: everything, to the last bit, and on from where it stopped."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import pytest
from tests.vectors.builders import record, search, upsert, vectors
from tests.vectors.homes import HOMES

from mainspring.errors import InvalidInput, StoreRefused
from mainspring.tasks import VectorDelete, texts
from mainspring.vectors import Copied, VectorStore, checks, copy_collection

N = 230
Pair = tuple[VectorStore, VectorStore]


@pytest.fixture(params=permutations(HOMES), ids="-to-".join)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    homes = [HOMES[kind](tmp_path) for kind in request.param]
    source, target = (home.open() for home in homes)
    upsert(
        source,
        *(record(f"r{n}", vector, f"text {n}", n=n, tags=["x"]) for n, vector in enumerate(vectors(N, dim=384))),
        model_id="mini",
    )
    yield source, target
    for home in homes:
        home.drop()


def test_a_copy_is_equal(pair: Pair) -> None:
    """Vectors, texts, metadata and the model; the answers are the same."""
    source, target = pair
    assert copy_collection(source, target, "docs", batch=100) == Copied(N, N)
    for one, other in zip(source.page("docs", limit=N), target.page("docs", limit=N), strict=True):
        assert (one.id, one.text, one.metadata, one.vector.tobytes()) == (
            other.id, other.text, other.metadata, other.vector.tobytes(),
        )  # fmt: skip
    ((kept, copied),) = zip(source.collections(), target.collections(), strict=True)
    assert (kept.name, kept.dim, kept.count, kept.model_id) == (copied.name, copied.dim, N, copied.model_id)
    (query,) = vectors(1, seed=1, dim=384)
    assert search(source, query, filter={"n": list(range(50))}) == search(target, query, filter={"n": list(range(50))})


def test_a_record_that_is_larger_than_stores_take(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of before there were limits is named; without it the rest is copied."""
    source, target = pair
    upsert(source, record("s" * 11, vectors(1, dim=384)[0]), model_id="mini")
    monkeypatch.setattr(texts, "MAX_KEY_BYTES", 10)
    with pytest.raises(StoreRefused, match=r"record 's{11}' of collection 'docs' can't be copied .*11 bytes"):
        copy_collection(source, target, "docs")
    source.write(VectorDelete("docs", ids=("s" * 11,)))
    assert copy_collection(source, target, "docs").records == N
    monkeypatch.setattr(checks, "MAX_DIMENSIONS", 383)
    with pytest.raises(StoreRefused, match=r"record 'r0' of collection 'docs' .*384 dimensions"):
        copy_collection(source, target, "docs", into="others")


class Stopped(Exception):
    pass


def test_a_copy_that_was_interrupted_goes_on(pair: Pair) -> None:
    """What is there is not written again; what has changed since is, and what else the target holds stays."""
    source, target = pair

    def stop(copied: Copied) -> None:
        if copied.records >= 100:
            raise Stopped

    with pytest.raises(Stopped):
        copy_collection(source, target, "docs", batch=50, progress=stop)
    assert len(target.metadata("docs")) == 100
    assert copy_collection(source, target, "docs", batch=50) == Copied(N, N - 100)
    upsert(source, record("r7", vectors(1, seed=2, dim=384)[0], "changed"), model_id="mini")
    upsert(target, record("own", vectors(1, seed=3, dim=384)[0]), model_id="mini")
    source.write(VectorDelete("docs", ("r8",)))
    assert copy_collection(source, target, "docs", batch=50) == Copied(N - 1, 1)
    assert [one.text for one in target.get("docs", ["r7", "r8", "own"])] == ["changed", "text 8", None]


def test_a_copy_under_another_name_and_what_does_not_fit(pair: Pair) -> None:
    source, target = pair
    assert copy_collection(source, source, "docs", into="twin").written == N
    upsert(target, record("a", [1, 0]))
    with pytest.raises(InvalidInput, match="'mini'"):
        copy_collection(source, target, "docs")
    with pytest.raises(InvalidInput, match="dcos"):
        copy_collection(source, target, "dcos")
