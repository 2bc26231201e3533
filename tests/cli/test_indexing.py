"""A folder and its collection: what is indexed, what is left alone, what fails alone."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from tests.cli.indexed import ask, config_for, need_model, records

from mainspring.cli.folder import Changes, Document, Failure, Listing, compare, look
from mainspring.cli.indexing import Indexer, IndexReport
from mainspring.cli.indexing_command import parse_filter, search, source_of
from mainspring.cli.pipeline import Pipeline
from mainspring.cli.progress import Quiet
from mainspring.engine import Engine
from mainspring.errors import InvalidInput, StoreUnavailable
from mainspring.tasks import SearchHit, TaskStatus

TEXTS = {
    "cats.txt": "Cats are small carnivorous mammals that people keep at home.",
    "rust.md": "# Iron\n\nIron *rusts* when water and oxygen touch it.",
    "sun.html": "<html><body><h1>The Sun</h1><p>It is a star made of hydrogen.</p></body></html>",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    need_model()
    made = tmp_path / "files"
    made.mkdir()
    for name, text in TEXTS.items():
        (made / name).write_text(text)
    return made


async def run_in(engine: Engine, folder: Path) -> IndexReport:
    indexer = Indexer(engine, look(folder, engine.path), "docs", Quiet())
    await indexer.run()
    return indexer.report()


async def index(folder: Path) -> IndexReport:
    async with Engine(folder.parent / "store.db", config_for(folder)) as engine:
        return await run_in(engine, folder)


def indexed(folder: Path) -> dict[str, str]:
    rows = ask(folder.parent / "store.db", "SELECT json_extract(metadata, '$.source'), text FROM vector_record")
    return {Path(source).name: text for source, text in rows}


def attempts(folder: Path) -> int:
    return int(ask(folder.parent / "store.db", "SELECT count(*) FROM attempt")[0][0])


@pytest.mark.anyio
async def test_only_what_changed(folder: Path) -> None:
    """A second run computes nothing; later ones only what is new, changed or gone, and a touched file is neither."""
    first = await index(folder)
    assert (first.indexed, first.chunks, first.failed) == (3, 3, [])
    done = attempts(folder)
    assert (await index(folder)).unchanged == 3
    assert attempts(folder) == done

    (folder / "cats.txt").write_text("Dogs bark.")
    (folder / "rust.md").unlink()
    (folder / "moon.txt").write_text("The Moon circles the Earth.")
    os.utime(folder / "sun.html", (1, 1))
    report = await index(folder)
    assert (report.indexed, report.unchanged, report.removed) == (2, 1, 1)
    sun = "The Sun\n\nIt is a star made of hydrogen."
    assert indexed(folder) == {"cats.txt": "Dogs bark.", "moon.txt": "The Moon circles the Earth.", "sun.html": sun}


@pytest.mark.anyio
async def test_edited_back(folder: Path) -> None:
    """A file that is again as it was is indexed so, and nothing is left of what it was in between."""
    await index(folder)
    was = (folder / "cats.txt").stat()
    (folder / "cats.txt").write_text("Dogs bark. " * 300)
    assert (await index(folder)).chunks > 1
    (folder / "cats.txt").write_text(TEXTS["cats.txt"])
    os.utime(folder / "cats.txt", ns=(was.st_atime_ns, was.st_mtime_ns))
    assert (await index(folder)).indexed == 1
    assert indexed(folder)["cats.txt"] == TEXTS["cats.txt"]
    assert len(records(folder.parent / "store.db")) == 3


class Told(Quiet):
    """Says when the run knows what is to be done."""

    def __init__(self) -> None:
        super().__init__()
        self.knows = asyncio.Event()

    def planned(self, changes: Changes) -> None:
        super().planned(changes)
        self.knows.set()


@pytest.mark.anyio
async def test_left_behind_for_old_content(folder: Path) -> None:
    """Steps that an earlier run left for content that the file no longer has are ended before they can overwrite it."""
    store, pipeline = folder.parent / "store.db", Pipeline(collection="docs", model_id="all-MiniLM-L6-v2")
    old = next(document for document in look(folder, store).documents if document.source.endswith("cats.txt"))
    async with Engine(store, config_for(folder), worker=False) as submitter:
        await submitter.manager.pause(type="data_storage")
        left = await submitter.submit_all(pipeline.tasks(old, 0))
    (folder / "cats.txt").write_text("Dogs bark.")
    async with Engine(store, config_for(folder)) as engine:
        told = Told()
        indexer = Indexer(engine, look(folder, engine.path), "docs", told)
        run = asyncio.ensure_future(indexer.run())
        await told.knows.wait()
        assert (await engine.handle(left[-1].id).info()).status in (TaskStatus.CANCELLED, TaskStatus.FAILED)
        await engine.manager.resume(type="data_storage")
        await run
    assert indexer.report().indexed == 3
    assert indexed(folder)["cats.txt"] == "Dogs bark."


@pytest.mark.anyio
async def test_goes_on_with_what_was_submitted(folder: Path) -> None:
    """Steps that an earlier run submitted and nobody began are found again, not doubled; a touched file begins anew."""
    store = folder.parent / "store.db"
    pipeline = Pipeline(collection="docs", model_id="all-MiniLM-L6-v2")
    changes = compare(look(folder, store), {}, pipeline.version)
    async with Engine(store, config_for(folder), worker=False) as submitter:
        for document in changes.todo:
            await submitter.submit_all(pipeline.tasks(document, 0))
    os.utime(folder / "sun.html", (1, 1))
    report = await index(folder)
    assert (report.indexed, report.failed) == (3, [])
    assert ask(store, "SELECT count(*) FROM task") == [(16,)]


@pytest.mark.anyio
async def test_bad_files_fail_alone(folder: Path) -> None:
    """What can't be read is listed with its reason and changes nothing for the others; it is tried again next time."""
    (folder / "noise.txt").write_bytes(bytes(range(256)) * 8)
    (folder / "torn.pdf").write_bytes(b"%PDF-1.7 torn")
    (folder / "blank.txt").write_text(" \n")
    (folder / "gone.txt").symlink_to(folder / "nowhere")
    (folder / "outside.txt").symlink_to("/etc/hostname")
    report = await index(folder)
    assert report.indexed == 3
    failed = {Path(failure.source).name: failure for failure in report.failed}
    assert {name: failure.step for name, failure in failed.items()} == {
        "noise.txt": "chunk",
        "torn.pdf": "chunk",
        "blank.txt": "chunk",
        "gone.txt": "look",
        "outside.txt": "retrieve",
    }
    assert "binary" in failed["noise.txt"].reason
    assert "PDF" in failed["torn.pdf"].reason
    (folder / "noise.txt").write_text("Silence.")
    again = await index(folder)
    assert (again.indexed, again.unchanged, len(again.failed)) == (1, 3, 4)


@pytest.mark.anyio
async def test_collection_of_another_model(folder: Path) -> None:
    """A collection whose vectors come from another model is refused before anything is computed."""
    async with Engine(folder.parent / "store.db", config_for(folder)) as engine:
        await engine.upsert("docs", [[1.0, 0.0]], ids=["a"], model_id="other")
        with pytest.raises(InvalidInput, match="holds vectors of other"):
            await run_in(engine, folder)


def test_look(tmp_path: Path) -> None:
    """Documents come in order; hidden files, the store's own and what is no document by its name are left out."""
    folder = tmp_path / "folder"
    (folder / "deep" / ".git").mkdir(parents=True)
    for name in ("b.txt", "a.md", "README", "deep/c.html", ".hidden.txt", "deep/.git/config", "work.db", "work.db-wal"):
        (folder / name).write_text(name)
    (folder / "photo.png").write_bytes(b"")
    (folder / "pages.tar.gz").write_bytes(b"")
    os.mkfifo(folder / "pipe")
    listing = look(folder, folder / "work.db")
    names = [Path(document.source).relative_to(folder).as_posix() for document in listing.documents]
    assert names == ["README", "a.md", "b.txt", "deep/c.html"]
    assert (listing.skipped, listing.failures) == (2, [])


def test_nothing_to_read(tmp_path: Path) -> None:
    """A folder without documents, and no folder, are refused: an unmounted disk must not empty a collection."""
    (tmp_path / "photo.png").write_bytes(b"")
    with pytest.raises(InvalidInput, match="holds no readable documents"):
        look(tmp_path, tmp_path / "work.db")
    with pytest.raises(InvalidInput, match="is no folder"):
        look(tmp_path / "missing", tmp_path / "work.db")


def test_not_gone_but_unseen(tmp_path: Path) -> None:
    """What lies in a folder that can't be listed now, or elsewhere, is not taken out of the collection."""
    locked = Failure(source=str(tmp_path / "locked"), step="look", reason="Permission denied")
    there = Document(source=str(tmp_path / "a.txt"), size=1, modified_ns=1)
    listing = Listing(folder=tmp_path, documents=[there], skipped=0, failures=[locked])
    known: dict[str, dict[str, Any]] = {str(tmp_path / name): {} for name in ("locked/b.txt", "c.txt")}
    known["/elsewhere/d.txt"] = {}
    assert compare(listing, known, "1").removed == [str(tmp_path / "c.txt")]


def test_step_ids() -> None:
    """A step's id is the same for the same work only."""
    pipeline = Pipeline(collection="docs", model_id="m")
    document = Document(source="/a", size=1, modified_ns=1, digest="d")
    ids = pipeline.step_ids(document, 0)
    assert ids == pipeline.step_ids(Document(source="/a", size=1, modified_ns=1, digest="d"), 0)
    others = [
        pipeline.step_ids(document, 1),
        pipeline.step_ids(Document(source="/a", size=1, modified_ns=1, digest="e"), 0),
        Pipeline(collection="other", model_id="m").step_ids(document, 0),
        Pipeline(collection="docs", model_id="n").step_ids(document, 0),
    ]
    assert len({id for some in (ids, *others) for id in some}) == 20


def test_filter() -> None:
    """Values that are JSON count as such; a repeated key means any of its values."""
    assert parse_filter(["size=12", "lang=en", "lang=de"]) == {"size": [12], "lang": ["en", "de"]}
    with pytest.raises(InvalidInput, match="is no KEY=VALUE"):
        parse_filter(["size"])


@pytest.mark.anyio
async def test_search_needs_no_worker(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A question is answered from the file alone, and leaves no task behind."""
    await index(folder)
    store, before = folder.parent / "store.db", attempts(folder)
    await asyncio.to_thread(search, "what makes metal decay?", store=str(store), top_k=1)
    assert "rust.md" in capsys.readouterr().out
    assert attempts(folder) == before
    assert ask(store, "SELECT count(*) FROM task") == [(12,)]
    with pytest.raises(StoreUnavailable, match="there is no store"):
        await asyncio.to_thread(search, "x", store=str(store) + "x")
    with pytest.raises(InvalidInput, match="'dcos': does not exist; there are: docs"):
        await asyncio.to_thread(search, "x", collection="dcos", store=str(store))


def test_a_name_stays_in_its_line() -> None:
    """A file's name may hold anything; an answer is told in its own lines all the same."""
    hit = SearchHit("id", 0.5, "text", {"source": "a\n9. 1.000  b\x1b[2J\u2028.md"})
    assert source_of(hit) == "a\\n9. 1.000  b\\x1b[2J\\u2028.md"
