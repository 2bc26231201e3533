"""Cutting texts into chunks."""

from __future__ import annotations

from bisect import bisect_left

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mainspring.errors import TaskCancelled
from mainspring.processors.text import split
from mainspring.processors.text.split import chunks, token_starts, word_starts
from mainspring.tasks.payloads import Chunk

PIECES = st.sampled_from(
    ["word", "a", "Long-winded", ". ", "! ", "\n", "\n\n", " ", "   ", "é", "世界。", "\U0001f600", "\t"]
)
TEXTS = st.lists(PIECES, max_size=120).map("".join)


class WordModel:
    """A tokenizer that anyone can check: a token is a word, and markers stand before and behind the text."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        self.calls.append(text)
        starts = word_starts(text)
        return [(0, 0), *((start, start + 1) for start in starts), (0, 0)]


def cut(text: str, size: int, overlap: int = 0) -> list[Chunk]:
    return chunks(text, word_starts(text), size, overlap, counted=True)


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, size=st.integers(1, 12), share=st.integers(0, 6), characters=st.booleans())
@example(text="a    bcdefgh", size=4, share=2, characters=True)
def test_every_text_is_covered_exactly(text: str, size: int, share: int, characters: bool) -> None:
    """Chunks stand where they say, hold every visible character, go forward and keep size and overlap."""
    overlap = min(share, size // 2)
    starts = range(len(text)) if characters else word_starts(text)
    found = chunks(text, starts, size, overlap, counted=True)
    covered: set[int] = set()
    for n, chunk in enumerate(found):
        assert text[chunk.start : chunk.end] == chunk.text == chunk.text.strip() != ""
        assert chunk.tokens is not None
        assert bisect_left(starts, chunk.end) - bisect_left(starts, chunk.start) <= chunk.tokens <= size
        covered.update(range(chunk.start, chunk.end))
        if n:
            before = found[n - 1]
            assert before.start < chunk.start
            assert before.end < chunk.end
            assert bisect_left(starts, before.end) - bisect_left(starts, chunk.start) <= overlap
    assert all(place in covered for place, char in enumerate(text) if not char.isspace())


def test_best_places_first() -> None:
    """A paragraph's end wins over a sentence's, that over a line's, that over a word's; only in the second half."""
    assert cut("a b. c\n\nd e f g h", 5)[0].text == "a b. c"
    assert cut("a b c. d\ne f g h", 5)[0].text == "a b c."
    assert cut("a b c\nd e f g h", 5)[0].text == "a b c"
    assert cut("a.\n\nb c d e f g h", 5)[0].text == "a.\n\nb c d e"
    assert [chunk.text for chunk in chunks("x" * 25, range(25), 10, 0, counted=False)] == ["x" * 10, "x" * 10, "x" * 5]


def test_overlap_begins_at_a_word() -> None:
    """Repeated text begins at a whole word; without overlap nothing is repeated."""
    text = "alpha beta gamma delta epsilon zeta eta theta"
    found = chunks(text, range(len(text)), 20, 8, counted=False)
    assert all(chunk.start == 0 or text[chunk.start - 1] == " " for chunk in found)
    assert any(found[n].end > found[n + 1].start for n in range(len(found) - 1))
    plain = cut(text, 3)
    assert " ".join(chunk.text for chunk in plain) == text


@pytest.mark.parametrize("text", ["", " \n\t ", "\n\n\n"])
def test_nothing_gives_nothing(text: str) -> None:
    """A text without a visible character has no chunks."""
    assert cut(text, 5) == []
    assert chunks(text, range(len(text)), 5, 2, counted=False) == []


def test_a_character_of_many_tokens_stands_alone() -> None:
    """Where a single character has more tokens than a chunk may, cutting goes on behind it."""
    text = "ab\U0001f600cd"
    starts = [0, 1, 2, 2, 2, 2, 3, 4]
    found = chunks(text, starts, 2, 0, counted=True)
    assert [(chunk.text, chunk.tokens) for chunk in found] == [("ab", 2), ("\U0001f600", 4), ("cd", 2)]


def test_long_texts_are_read_in_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer sees bounded pieces, cut at spaces; the answer is that for the whole, without markers."""
    text = "some words of a text that is read in parts " * 20
    model = WordModel()
    monkeypatch.setattr(split, "SEGMENT_CHARS", 50)
    assert token_starts(text, model, lambda: None) == word_starts(text)  # type: ignore[arg-type]
    assert max(map(len, model.calls)) <= 50
    assert "".join(model.calls) == text
    unbroken = "x" * 500
    assert len(token_starts(unbroken, model, lambda: None)) == 10  # type: ignore[arg-type]


def test_a_stop_is_noticed_between_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cutting a long text ends soon after its task was asked to stop."""
    model = WordModel()
    monkeypatch.setattr(split, "SEGMENT_CHARS", 50)

    def look() -> None:
        if len(model.calls) == 2:
            raise TaskCancelled("stop")

    with pytest.raises(TaskCancelled):
        token_starts("word " * 1000, model, look)  # type: ignore[arg-type]
    assert len(model.calls) == 2
