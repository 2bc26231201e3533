"""Names of blobs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apsw
import pytest

from mainspring.blobs import BlobKeys
from mainspring.blobs.keys import SCHEMA, apply_delete, apply_ref
from mainspring.errors import Conflict, StoreUnavailable
from mainspring.tasks.effects import BlobDelete, BlobRef

ONE, TWO = "1" * 64, "2" * 64


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[apsw.Cursor]:
    connection = apsw.Connection(str(tmp_path / "work.db"))
    connection.pragma("journal_mode", "wal")
    connection.execute(SCHEMA)
    connection.execute(SCHEMA)  # safe to run again
    yield connection.cursor()
    connection.close()


@pytest.fixture
def keys(tmp_path: Path, writer: apsw.Cursor) -> Iterator[BlobKeys]:
    reader = BlobKeys(tmp_path / "work.db")
    yield reader
    reader.close()


def ref(key: str, digest: str = ONE, *, if_absent: bool = False) -> BlobRef:
    return BlobRef(key, digest, 5, if_absent=if_absent)


def test_a_name_appears_with_its_transaction(writer: apsw.Cursor, keys: BlobKeys) -> None:
    """A reader sees a name once it is committed, and never when the transaction is rolled back."""
    writer.execute("begin immediate")
    apply_ref(writer, ref("a"), "default", 1)
    assert keys.get("default", "a") is None
    writer.execute("rollback")
    assert keys.get("default", "a") is None
    apply_ref(writer, ref("a"), "default", 2)
    found = keys.get("default", "a")
    assert found is not None
    assert (found.key, found.digest, found.size, found.updated_ms) == ("a", ONE, 5, 2)


def test_put_replaces_and_delete_removes(writer: apsw.Cursor, keys: BlobKeys) -> None:
    """A later put under the same key wins; a delete takes the name away and may be repeated."""
    apply_ref(writer, ref("a"), "default", 1)
    apply_ref(writer, ref("a", TWO), "default", 2)
    found = keys.get("default", "a")
    assert found is not None
    assert found.digest == TWO
    for _ in range(2):
        apply_delete(writer, BlobDelete("a"), "default", 3)
    assert keys.get("default", "a") is None


def test_if_absent(writer: apsw.Cursor, keys: BlobKeys) -> None:
    """A conditional put creates, is content with the same content, and refuses to replace other content."""
    apply_ref(writer, ref("a", if_absent=True), "default", 1)
    apply_ref(writer, ref("a", if_absent=True), "default", 2)
    with pytest.raises(Conflict, match="'a'"):
        apply_ref(writer, ref("a", TWO, if_absent=True), "default", 3)
    found = keys.get("default", "a")
    assert found is not None
    assert found.digest == ONE
    apply_ref(writer, ref("a", TWO, if_absent=True), "other", 3)


def test_namespaces_do_not_see_each_other(writer: apsw.Cursor, keys: BlobKeys) -> None:
    """The same key means another thing in another namespace."""
    apply_ref(writer, ref("a"), "one", 1)
    assert keys.get("two", "a") is None
    assert keys.list("two") == []
    apply_delete(writer, BlobDelete("a"), "two", 2)
    assert keys.get("one", "a") is not None


def test_listing_goes_by_prefix_in_pages(writer: apsw.Cursor, keys: BlobKeys) -> None:
    """Pages follow each other without gap or repeat, end with the prefix, and take any characters."""
    names = ["a", "b/", "b/1", "b/2", "b/\U0010ffff", "b/é", "b0", "%", "b_1"]
    for name in names:
        apply_ref(writer, ref(name), "default", 1)
    expected = sorted((name for name in names if name.startswith("b/")), key=str.encode)
    assert [found.key for found in keys.list("default", "b/")] == expected
    pages, after = [], ""
    while page := keys.list("default", "b/", 2, after):
        pages += [found.key for found in page]
        after = page[-1].key
    assert pages == expected
    assert [found.key for found in keys.list("default")] == sorted(names, key=str.encode)


def test_many_threads_read(writer: apsw.Cursor, keys: BlobKeys) -> None:
    """Readers in several threads at once get their own answers."""
    for n in range(50):
        apply_ref(writer, ref(f"k{n}", f"{n:064x}"), "default", n)

    def digest(n: int) -> str:
        found = keys.get("default", f"k{n}")
        assert found is not None
        return found.digest

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(digest, list(range(50)) * 8)) == [f"{n:064x}" for n in range(50)] * 8


def test_a_missing_file_is_unavailable(tmp_path: Path) -> None:
    """Reading does not make a file; it says that there is none."""
    with pytest.raises(StoreUnavailable, match="nowhere"):
        BlobKeys(tmp_path / "nowhere.db").get("default", "a")
    assert list(tmp_path.iterdir()) == []
