"""Cutting a text into pieces of bounded size at the best places, with exact positions."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from mainspring.tasks import Chunk

if TYPE_CHECKING:
    from mainspring.models.base import EmbeddingModel

SEGMENT_CHARS = 16_384
"""A tokenizer sees this much at once: its memory is many times its input."""

_SENTENCE_END = re.compile(r"[.!?][)\]\"'\u2019\u201d\u00bb]*\s|[\u3002\uff01\uff1f]")
_SPACE = re.compile(r"\s+")
_VISIBLE = re.compile(r"\S")
_WORD = re.compile(r"\S+")


def word_starts(text: str) -> list[int]:
    return [match.start() for match in _WORD.finditer(text)]


def token_starts(text: str, model: EmbeddingModel, look: Callable[[], None]) -> list[int]:
    """Return where each token of the model begins, in characters; `look` is called from time to time and may raise."""
    starts: list[int] = []
    position = 0
    while position < len(text):
        look()
        end = min(position + SEGMENT_CHARS, len(text))
        if end < len(text):  # before a space, where no tokenizer joins what stands on both sides
            space = max(text.rfind(" ", position + 1, end), text.rfind("\n", position + 1, end))
            end = space if space > 0 else end
        offsets = model.token_offsets(text[position:end])
        starts.extend(position + start for start, stop in offsets if stop > start)  # markers stand for no character
        position = end
    return starts


def split(text: str, starts: Sequence[int], size: int, overlap: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, end, units) of pieces of at most `size` units; unit n begins at character `starts[n]`.

    A piece ends after a paragraph, else a sentence, a line or a word, where one ends in its second half; only a text
    without any is cut inside a word. It begins at a word, up to `overlap` (at most size / 2) units before the end of
    the last one. A single character of more than `size` units is a piece of its own.
    """
    stop = len(text.rstrip())
    begin = fresh = _visible(text, 0)  # what lies before `fresh` is in a piece already
    while fresh < stop:
        first = bisect_left(starts, begin)
        last = first + size
        if last < len(starts) and starts[last] <= fresh:  # nothing new would fit behind what is repeated
            begin, first = fresh, bisect_left(starts, fresh)
            last = max(first + size, bisect_right(starts, fresh))
        more = last < len(starts) and starts[last] < stop
        end = _cut(text, max(starts[first + size // 2], fresh), starts[last]) if more else stop
        end = begin + len(text[begin:end].rstrip())
        after = bisect_left(starts, end)
        yield begin, end, after - first
        before, begin = begin, _visible(text, end)
        fresh = begin
        if overlap and fresh < stop:
            word = _word_start(text, starts[max(after - overlap, first)], end)
            begin = word if word > before else fresh


def _cut(text: str, low: int, high: int) -> int:
    paragraph = text.rfind("\n\n", low, high)
    if paragraph >= 0:
        return paragraph + 2
    end = 0
    for match in _SENTENCE_END.finditer(text, low, high):
        end = match.end()
    return end or text.rfind("\n", low, high) + 1 or text.rfind(" ", low, high) + 1 or high


def _word_start(text: str, position: int, end: int) -> int:
    """Return the first start of a word at or after `position`; `position` itself where none begins before `end`."""
    if position > 0 and not text[position - 1].isspace():
        space = _SPACE.search(text, position, end)
        position = position if space is None or space.end() >= end else space.end()
    return _visible(text, position)


def _visible(text: str, position: int) -> int:
    """Return where the first character at or after `position` stands that is no white space."""
    found = _VISIBLE.search(text, position)
    return len(text) if found is None else found.start()


def chunks(text: str, starts: Sequence[int], size: int, overlap: int, *, counted: bool) -> list[Chunk]:
    """Return the pieces; `tokens` is filled where units are tokens (`counted`)."""
    pieces = split(text, starts, size, overlap)
    pieces = split(text, starts, size, overlap)
    return [Chunk(text[start:end], start, end, units if counted else None) for start, end, units in pieces]
