"""The demo from end to end, on a few modules of the running Python and the real model."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.indexed import need_model

from mainspring.cli.demo import corpus, library, run
from mainspring.cli.demo.quality import load_questions
from mainspring.cli.demo.report import show
from mainspring.cli.demo.run import Demo, DemoReport
from mainspring.cli.screen import Screen

pytestmark = pytest.mark.anyio
MODULES = ("csv", "glob", "textwrap", "heapq")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few modules instead of a hundred, and the questions about them."""
    need_model()
    monkeypatch.setattr(library, "MODULES", MODULES)
    monkeypatch.setattr(corpus, "_topics", lambda *, full: iter(()))
    fitting = [one for one in load_questions() if any(name.startswith(MODULES) for name in one.answers)]
    monkeypatch.setattr(run, "load_questions", lambda: fitting)


async def run_demo(folder: Path) -> DemoReport:
    return await Demo(folder, full=False, screen=Screen(as_json=True)).run()


async def test_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first run indexes all, asks meanwhile and measures; the second computes no document and measures the same."""
    first = await run_demo(tmp_path / "demo")
    n = first.index.documents
    assert n > 20
    assert (first.index.indexed, first.index.unchanged, first.index.failed) == (n, 0, [])
    assert {one.type: one.completed for one in first.tasks if one.type != "vector_search"} == dict.fromkeys(
        ("data_retrieval", "text_processing", "embedding_generation", "data_storage"), n
    )
    assert first.meanwhile
    assert all(one.seconds > 0 for one in first.meanwhile)
    for figures in first.tasks:
        assert figures.duration_p50 is not None
        assert figures.duration_p95 is not None
        assert 0 < figures.duration_p50 <= figures.duration_p95 < first.seconds
        assert (figures.failed, figures.retries) == (0, 0)
    assert first.quality is not None
    assert first.baseline is not None
    assert first.quality.recall_at_5 > 0

    second = await run_demo(tmp_path / "demo")
    assert (second.index.indexed, second.index.unchanged, second.meanwhile) == (0, n, [])
    assert [one.type for one in second.tasks] == ["vector_search"]
    assert second.quality == first.quality

    capsys.readouterr()
    show(first, Screen(as_json=False))
    show(second, Screen(as_json=False))
    text = capsys.readouterr().out
    assert f"{n} documents: {n} computed" in text
    assert f"0 computed, {n} reused" in text
    assert "keyword search (BM25)" in text
