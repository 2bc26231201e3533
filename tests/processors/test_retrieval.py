"""Data retrieval: values, keys, records, files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import pytest

from mainspring.blobs import BlobKeys, LocalBlobStore
from mainspring.blobs.keys import SCHEMA, apply_ref
from mainspring.config import RetrievalConfig
from mainspring.errors import InvalidInput
from mainspring.processors.base import Item
from mainspring.processors.context import Context
from mainspring.processors.retrieval import RetrievalProcessor
from mainspring.tasks.effects import BlobRef, Done, Failed, Outcome, VectorRecord, VectorUpsert
from mainspring.tasks.identity import TaskId
from mainspring.tasks.payloads import Binary, Custom, Ref, Text
from mainspring.vectors import SqliteVectorStore


class Place:
    """Real parts, as an engine puts them together, and a folder that may be read."""

    def __init__(self, folder: Path, max_bytes: int = 1000) -> None:
        path = folder / "work.db"
        self.vectors = SqliteVectorStore(path)
        self.writer = apsw.Connection(str(path))
        self.writer.execute(SCHEMA)
        self.blobs = LocalBlobStore(folder / "blobs")
        self.keys = BlobKeys(path)
        self.files = folder / "docs"
        self.files.mkdir()
        config = RetrievalConfig(allowed_roots=(self.files,), max_bytes=max_bytes)
        self.processor = RetrievalProcessor(self.blobs, self.keys, self.vectors, config)

    def store(self, key: str, data: bytes, namespace: str = "default") -> None:
        blob = self.blobs.put(data)
        apply_ref(self.writer.cursor(), BlobRef(key, blob.digest, blob.size), namespace, 7)

    def file(self, name: str, data: bytes = b"content") -> str:
        path = self.files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path.as_uri()

    def run(self, input: Any, **params: Any) -> Outcome:
        id = TaskId()
        input = input if isinstance(input, (Text, Binary)) else Custom(input)
        context = Context(id=id.bytes, attempt=1, send=lambda _: None)
        item = Item(input=input, params=params, context=context)
        return self.processor.process([item])[0]

    def get(self, input: Any, **params: Any) -> Any:
        outcome = self.run(input, **params)
        assert isinstance(outcome, Done), outcome
        return outcome.output.value

    def refused(self, input: Any, **params: Any) -> str:
        outcome = self.run(input, **params)
        assert isinstance(outcome, Failed), outcome
        assert (outcome.error.type, outcome.retryable) == ("InvalidInput", False)
        return outcome.error.message


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.keys.close()
    place.vectors.close()
    place.writer.close()


def test_values_in_each_form(place: Place) -> None:
    """A stored value comes as bytes, text, parsed JSON or records."""
    place.store("a", "schön".encode())
    assert place.get(Text("a")) == place.get({"key": "a"}) == "schön".encode()
    assert place.get(Text("a"), **{"as": "text"}) == "schön"
    place.store("j", b'{"x": [1, 2]}')
    assert place.get(Text("j"), **{"as": "json"}) == {"x": [1, 2]}
    assert place.get(Text("j"), **{"as": "records"}) == [{"x": [1, 2]}]
    place.store("l", b'{"n": 1}\n\n{"n": 2}\n')
    assert place.get(Text("l"), **{"as": "records"}) == [{"n": 1}, {"n": 2}]
    place.store("bad", b'{"n": 1}\nnonsense\n')
    assert "bad line 2" in place.refused(Text("bad"), **{"as": "records"})


def test_ranges(place: Place) -> None:
    """Bytes [start, end) of a value or a file, shortened at its end."""
    place.store("a", b"0123456789")
    url = place.file("a.txt", b"0123456789")
    for source in ({"key": "a"}, {"url": url}):
        assert place.get({**source, "start": 2, "end": 5}) == b"234"
        assert place.get({**source, "start": 8, "end": 99}) == b"89"
        assert place.get({**source, "start": 20}) == b""
        assert "end" in place.refused({**source, "start": 3, "end": 2})
        assert "start" in place.refused({**source, "start": -1})


def test_a_missing_key_is_named(place: Place) -> None:
    """A key that names nothing, or only in another namespace, fails for good."""
    place.store("a", b"x", namespace="other")
    assert "'a'" in place.refused(Text("a"))


def test_sizes_are_bounded(place: Place) -> None:
    """A value or file above max_bytes is refused before it is read; a range of it is fine."""
    place.store("big", b"x" * 1001)
    url = place.file("big", b"x" * 1001)
    for source in ({"key": "big"}, {"url": url}):
        assert "max_bytes" in place.refused(source)
        assert len(place.get({**source, "end": 1000})) == 1000


def test_keys_by_prefix(place: Place) -> None:
    """Keys come in order and in pages."""
    for key in ("b/2", "b/1", "c", "b/3"):
        place.store(key, b"x")
    page = place.get({"prefix": "b/", "limit": 2})
    assert [(found["key"], found["size"], found["updated_ms"]) for found in page] == [("b/1", 1, 7), ("b/2", 1, 7)]
    assert [found["key"] for found in place.get({"prefix": "b/", "after": "b/2"})] == ["b/3"]
    assert place.get({"prefix": "z"}) == []


def test_records_by_id(place: Place) -> None:
    """Records come in the order of the ids, None where there is none; an unknown collection is refused."""
    record = VectorRecord("a", np.array([3.0, 4.0], dtype=np.float32), "text", {"n": 1})
    place.vectors.write(VectorUpsert("docs", (record,)))
    missing, found = place.get({"collection": "docs", "ids": ["b", "a"]})
    assert missing is None
    assert (found["id"], found["text"], found["metadata"]) == ("a", "text", {"n": 1})
    np.testing.assert_allclose(found["vector"], [0.6, 0.8])
    assert "nothing" in place.refused({"collection": "nothing", "ids": ["a"]})


def test_files(place: Place) -> None:
    """A file below an allowed folder is read, whatever characters are in its name."""
    assert place.get({"url": place.file("a b?#%.txt", b"1")}) == b"1"
    assert place.get({"url": place.file("deep/er/é.txt", b"2")}, **{"as": "text"}) == "2"
    assert place.get({"url": place.file("a").replace("file://", "file://localhost")}) == b"content"


def test_links_inside_are_followed(place: Place) -> None:
    """A symbolic link that stays below the folder is as good as the file."""
    place.file("real.txt", b"inside")
    (place.files / "link.txt").symlink_to(place.files / "real.txt")
    assert place.get({"url": (place.files / "link.txt").as_uri()}) == b"inside"


def test_nothing_outside_is_read(place: Place, tmp_path: Path) -> None:
    """Dots, encoded dots, links to files and folders, neighbours and other schemes all end outside: refused alike,
    whether the file exists or not."""
    secret = tmp_path / "secret.txt"
    secret.write_bytes(b"secret")
    (tmp_path / "docs-other").mkdir()
    (tmp_path / "docs-other" / "x").write_bytes(b"secret")
    (place.files / "link").symlink_to(secret)
    (place.files / "folder").symlink_to(tmp_path)
    base = place.files.as_uri()
    outside = [
        secret.as_uri(),
        f"{base}/../secret.txt",
        f"{base}/%2e%2e/secret.txt",
        f"{base}/link",
        f"{base}/folder/secret.txt",
        f"{tmp_path.as_uri()}/docs-other/x",
        f"{tmp_path.as_uri()}/not-there",
    ]
    for url in outside:
        assert "lies outside" in place.refused({"url": url})
    assert "lies outside" in place.refused({"url": f"{base}/folder", "pattern": "*"})
    for url in (
        "http://example.org/x",
        "/etc/passwd",
        "file://server/x",
        "file:relative",
        f"{base}/a%00b",
        f"{base}/a?b",
    ):
        assert "input.url" in place.refused({"url": url})


def test_no_roots_no_files(place: Place) -> None:
    """Without allowed folders no file can be read."""
    closed = RetrievalProcessor(place.blobs, place.keys, place.vectors, RetrievalConfig())
    place.processor = closed
    assert "allowed_roots" in place.refused({"url": place.file("a")})


def test_a_link_put_in_between_is_not_followed(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Swapping a file, or a folder above it, for a link after the look does not lead out."""
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "x.txt").write_bytes(b"secret")
    url = place.file("sub/x.txt", b"inside")
    real_open = os.open

    def swap(path: Any, *args: Any, **options: Any) -> int:
        if path == "sub":
            (place.files / "sub").rename(place.files / "was")
            (place.files / "sub").symlink_to(tmp_path / "away")
        return real_open(path, *args, **options)

    monkeypatch.setattr(os, "open", swap)
    place.refused({"url": url})


def test_what_is_no_regular_file(place: Place) -> None:
    """Folders, pipes and missing files are refused at once; a pipe does not block."""
    os.mkfifo(place.files / "pipe")
    for name in ("pipe", ".", "missing", "missing/x"):
        place.refused({"url": f"{place.files.as_uri()}/{name}"})


def test_listing_a_folder(place: Place, tmp_path: Path) -> None:
    """Matching files come in order of address and in pages, without folders and links that lead out."""
    urls = sorted(place.file(name) for name in ("b.md", "a.md", "sub/c.md", "sub/d.txt"))
    (tmp_path / "out.md").write_bytes(b"secret")
    (place.files / "out.md").symlink_to(tmp_path / "out.md")
    (place.files / "folder.md").mkdir()
    url = place.files.as_uri()
    found = place.get({"url": url, "pattern": "**/*.md"})
    assert [entry["url"] for entry in found] == urls[:3]
    assert all(entry["size"] == 7 and entry["modified_ms"] > 0 for entry in found)
    assert [place.get({"url": entry["url"]}) for entry in found] == [b"content"] * 3
    page = place.get({"url": url, "pattern": "**/*.md", "limit": 1, "after": urls[0]})
    assert [entry["url"] for entry in page] == urls[1:2]
    assert place.get({"url": url + "/sub/", "pattern": "*.md"})[0]["url"] == urls[2]
    for pattern in ("../*", "/etc/*", "a/../../*", ""):
        assert "pattern" in place.refused({"url": url, "pattern": pattern})
    assert "no folder" in place.refused({"url": urls[0], "pattern": "*"})


@pytest.mark.parametrize(
    ("input", "params", "says"),
    [
        (Custom({}), {}, "key, prefix, collection, url"),
        (Custom({"key": "a", "url": "file:///x"}), {}, "key"),
        (Custom({"key": 3}), {}, "key"),
        (Custom({"key": "a", "limit": 3}), {}, "limit"),
        (Custom({"prefix": "a", "limit": 0}), {}, "limit"),
        (Custom({"prefix": "a"}), {"as": "text"}, "as"),
        (Custom("a"), {}, "input"),
        (Binary(b"a"), {}, "input"),
        (Text(["a", "b"]), {}, "one key"),
        (Text("a"), {"as": "xml"}, "as"),
        (Text("a"), {"form": "text"}, "form"),
    ],
)
def test_refused_at_submit(place: Place, input: Any, params: dict[str, Any], says: str) -> None:
    """What says not clearly what to retrieve does not become a task."""
    with pytest.raises(InvalidInput, match=says):
        place.processor.check(input, None, params)


def test_parents_results_are_looked_at_later(place: Place) -> None:
    """A key that another task will give passes the check at submit."""
    place.processor.check(Text(Ref(TaskId())), None, {})
    place.processor.check(Custom({"key": Ref(TaskId())}), None, {})
