"""Text processing: steps, pipelines, documents."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mainspring.errors import InvalidInput
from mainspring.processors.base import Item
from mainspring.processors.context import Context
from mainspring.processors.text import STEPS, TextProcessor, extract
from mainspring.tasks.effects import Done, Failed, Outcome
from mainspring.tasks.identity import TaskId
from mainspring.tasks.payloads import Binary, Chunk, Custom, Ref, Text, TextOutput

GERMAN = "Schöne Grüße aus Köln, es ist überall schön."
SENTENCES = (
    "Tokens come from a vocabulary. It was trained on this very text, which is short and repeats tokens. Was it?"
)


class TrainedModel:
    """The tokenizer's half of an embedding model: byte-level BPE trained here, which may split one character."""

    def __init__(self) -> None:
        from tokenizers import ByteLevelBPETokenizer

        self.tokenizer = ByteLevelBPETokenizer()
        self.tokenizer.train_from_iterator([SENTENCES] * 3, vocab_size=330, show_progress=False)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(self.tokenizer.encode(text).ids) for text in texts]

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        return list(self.tokenizer.encode(text).offsets)


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    return TrainedModel()


@pytest.fixture
def processor(model: TrainedModel) -> TextProcessor:
    return TextProcessor(lambda model_id: model)  # type: ignore[arg-type, return-value]


def item(input: Any, steps: Sequence[Any] | None) -> Item:
    id = TaskId()
    params = {} if steps is None else {"steps": list(steps)}
    return Item(input=input, params=params, context=Context(id=id.bytes, attempt=1, send=lambda _: None))


def value(outcome: Outcome) -> Any:
    assert isinstance(outcome, Done), outcome
    assert isinstance(outcome.output, TextOutput)
    return outcome.output.value


def error(outcome: Outcome) -> str:
    assert isinstance(outcome, Failed), outcome
    assert outcome.error.type == "InvalidInput"
    assert not outcome.retryable
    return outcome.error.message


def run(processor: TextProcessor, input: Any, *steps: Any) -> Outcome:
    if isinstance(input, (str, list)):
        input = Text(input)
    elif isinstance(input, bytes):
        input = Binary(input)
    return processor.process([item(input, steps or None)])[0]


def test_default_needs_no_library() -> None:
    """Without params a text is normalized, by the standard library alone."""
    program = (
        "import sys\n"
        "for name in ('ftfy', 'selectolax', 'chardet', 'numpy', 'tokenizers'): sys.modules[name] = None\n"
        "from mainspring.processors.text import TextProcessor\n"
        "from mainspring.processors.base import Item\n"
        "from mainspring.processors.context import Context\n"
        "from mainspring.tasks.payloads import Text\n"
        "from mainspring.tasks.identity import TaskId\n"
        "id = TaskId()\n"
        "context = Context(id=id.bytes, attempt=1, send=print)\n"
        "item = Item(input=Text(' Te\\u0301st '), context=context)\n"
        "assert TextProcessor().process([item])[0].output.value == 'T\\xe9st'\n"
        "item.params['steps'] = ['fix']\n"
        "failed = TextProcessor().process([item])[0]\n"
        "assert 'mainspring[text]' in failed.error.message and not failed.retryable, failed\n"
        "item.params['steps'] = ['tokens']\n"
        "assert 'mainspring[onnx]' in TextProcessor().process([item])[0].error.message\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_items_and_texts_keep_their_order(processor: TextProcessor) -> None:
    """One outcome for each item, in order; a list gives a list; a bad item fails alone."""
    batch = [item(Text("a "), None), item(Text([" b", Chunk("c ", 0, 2), {"text": "d"}]), None), item(Text(3), None)]
    first, second, third = processor.process(batch)
    assert value(first) == "a"
    assert value(second) == ["b", "c", "d"]
    assert "input.text" in error(third)


def test_bytes_that_came_as_text(processor: TextProcessor) -> None:
    """Another task's result may be a document's bytes, alone or in a list: `extract` reads them, nothing else does."""
    assert value(run(processor, Text(b"a"), "extract")) == "a"
    assert value(run(processor, Text([b"a", "b"]), "extract")) == ["a", "b"]
    for bad in (Text(b"a"), Text([b"a", "b"])):
        assert "'extract' the first step" in error(run(processor, bad, "normalize"))
        with pytest.raises(InvalidInput, match="'extract' the first step"):
            processor.check(bad, None, {"steps": ["normalize"]})


def test_normalize(processor: TextProcessor) -> None:
    """One form of characters, single spaces, plain line ends, at most one empty line, no control characters."""
    assert (
        value(run(processor, "\ufeffe\u0301\x00\t x\r\n\r\n\r\n\r\n y \u2028z\xa0\xa0", "normalize")) == "é x\n\ny\nz"
    )
    assert value(run(processor, "ﬁ²", "normalize")) == "ﬁ²"
    assert value(run(processor, "ﬁ²", {"step": "normalize", "form": "NFKC"})) == "fi2"


def test_steps_follow_each_other(processor: TextProcessor) -> None:
    """Each step gets what the one before gave."""
    html = "<p>schÃ¶n  ist</p><p>die Welt</p>"
    assert value(run(processor, html, "strip_html", "fix", "normalize")) == "schön ist\n\ndie Welt"


def test_strip_html(processor: TextProcessor) -> None:
    """Blocks, lines, cells and pre keep their shape; inline marks don't break words; scripts are gone."""
    html = (
        "<html><head><title>T</title><style>x{}</style></head><body><h1>Ti<b>t</b>le</h1><script>bad()</script>"
        "<p>One\n two &amp; <a>three</a>.</p><ul><li>a<li>b</ul><pre>if x:\n    y\n\n\nz</pre>"
        "<table><tr><th>h<th>k<tr><td>1<td>2</table>tail<br>end"
    )
    wanted = "Title\n\nOne two & three.\n\na\nb\n\nif x:\n    y\n\n\nz\n\nh\tk\n1\t2\n\ntail\nend"
    assert value(run(processor, html, "strip_html")) == wanted
    assert [value(run(processor, text, "strip_html")) for text in ("", "plain", "a < b", "<p")] == [
        "",
        "plain",
        "a < b",
        "",
    ]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (GERMAN.encode(), GERMAN),
        (GERMAN.encode("utf-8-sig"), GERMAN),
        (GERMAN.encode("utf-16"), GERMAN),
        (GERMAN.encode("utf-32"), GERMAN),
        (GERMAN.encode("latin-1"), GERMAN),
        ("Привет, как дела? Сегодня хорошая погода.".encode("koi8-r"), "Привет, как дела? Сегодня хорошая погода."),
        ("今日は良い天気ですね。東京に行きます。".encode("shift_jis"), "今日は良い天気ですね。東京に行きます。"),
        (b'<html><meta charset="iso-8859-7"><p>\xea\xe1\xeb\xe7', "καλη"),
        (b"", ""),
    ],
)
def test_encodings(processor: TextProcessor, data: bytes, text: str) -> None:
    """Byte order marks, declared and undeclared encodings are understood."""
    assert value(run(processor, data, "extract")) == text


@pytest.mark.parametrize("data", [b"\x7fELF\x02\x01\x01\0\0", b"PK\x03\x04\x14\0\x06\0", bytes(range(256)) * 4])
def test_a_binary_file_is_named(processor: TextProcessor, data: bytes) -> None:
    """A file that is no text fails by its name, and no other."""
    good, bad = processor.process(
        [item(Binary(b"good"), ["extract"]), item(Binary(data), [{"step": "extract", "name": "tool.bin"}])]
    )
    assert value(good) == "good"
    assert "tool.bin" in error(bad)


def test_markdown(processor: TextProcessor) -> None:
    """Markdown loses its marks and front matter; the name's end tells the kind."""
    data = b"---\ntitle: x\n---\n# Head\n\nText *em* [link](u).\n\n- one\n- two\n\n```\ncode  x\n```\n"
    steps = {"step": "extract", "name": "notes/readme.MD"}
    assert value(run(processor, data, steps)) == "Head\n\nText em link.\n\none\ntwo\n\ncode  x"
    assert value(run(processor, "**b**", {"step": "extract", "kind": "markdown"})) == "b"


def test_kinds_are_told_from_content() -> None:
    """Content goes before name; a text that only mentions tags stays a text."""
    assert extract.sniff(b"%PDF-1.7 ...", "a.txt") == "pdf"
    assert extract.sniff(b"\xef\xbb\xbf <!-- c --><!DOCTYPE html>") == "html"
    assert extract.sniff('<?xml version="1.0"?><html>') == "html"
    assert extract.sniff("Use <html> and <body>.") == "text"
    assert extract.sniff(b"", "page.htm") == "html"


def pdf(*pages: str) -> bytes:
    """Return a real PDF file with these one-line pages."""
    fonts = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", fonts]
    kids = []
    for text in pages:
        content = b"BT /F1 12 Tf 72 720 Td (" + text.encode("latin-1") + b") Tj ET"
        objects.append(b"<< /Length %d >>\nstream\n" % len(content) + content + b"\nendstream")
        resources = b"/Resources << /Font << /F1 3 0 R >> >>"
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R " % len(objects)
            + resources
            + b" >>"
        )
        kids.append(b"%d 0 R" % len(objects))
    objects[1] = b"<< /Type /Pages /Kids [" + b" ".join(kids) + b"] /Count %d >>" % len(kids)
    data, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n" % number + body + b"\nendobj\n"
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    trailer = b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, len(data))
    return data + head + table + trailer


def test_pdf(processor: TextProcessor) -> None:
    """A PDF gives its pages' text in order."""
    assert value(run(processor, pdf("First page", "Second page"), "extract")) == "First page\n\nSecond page"


def test_a_corrupt_pdf_is_named(processor: TextProcessor) -> None:
    """A damaged PDF fails by its name, and so does text that is called a PDF."""
    assert "report.pdf" in error(run(processor, b"%PDF-1.4 cut off", {"step": "extract", "name": "report.pdf"}))
    assert "Binary" in error(run(processor, "text", {"step": "extract", "kind": "pdf"}))


def test_a_stop_is_noticed_between_pages(processor: TextProcessor) -> None:
    """A task that was asked to stop ends as cancelled, and is not tried again."""
    stopped = item(Binary(pdf("page")), ["extract"])
    stopped.context.cancel()
    outcome = processor.process([stopped])[0]
    assert isinstance(outcome, Failed)
    assert outcome.error.type == "TaskCancelled"


@pytest.mark.parametrize("text", [SENTENCES, "Émigré \U0001f600\U0001f600 naïve 世界。" * 9, "x" * 99])
def test_chunks_by_tokens(processor: TextProcessor, model: TrainedModel, text: str) -> None:
    """Chunks of a real tokenizer stand where they say and hold no more tokens than asked for."""
    found = value(run(processor, text, {"step": "chunk", "size": 12, "overlap": 4}))
    assert len(found) > 1
    for chunk in found:
        assert text[chunk.start : chunk.end] == chunk.text
        assert chunk.tokens <= 12
    covered = {place for chunk in found for place in range(chunk.start, chunk.end)}
    assert all(place in covered for place, char in enumerate(text) if not char.isspace())


def test_chunks_without_a_tokenizer() -> None:
    """Words and characters need no model, and then no tokens are claimed."""
    bare = TextProcessor()
    words = value(run(bare, "a b c d", {"step": "chunk", "size": 2, "overlap": 0, "unit": "words"}))
    assert words == [Chunk("a b", 0, 3), Chunk("c d", 4, 7)]
    assert value(run(bare, "abcd", {"step": "chunk", "size": 3, "overlap": 0, "unit": "characters"}))[0] == Chunk(
        "abc", 0, 3
    )


def test_counting(processor: TextProcessor, model: TrainedModel) -> None:
    """Tokens are those of the model, for each text of a list."""
    assert value(run(processor, [SENTENCES, ""], "tokens")) == [len(model.token_offsets(SENTENCES)), 0]


def test_language_and_sentences(processor: TextProcessor) -> None:
    """The language comes with its score, or None where there are no letters; sentences keep abbreviations whole."""
    found = value(run(processor, [GERMAN, "This is an English sentence.\nIt goes on.", "123 !"], "language"))
    assert [answer["language"] for answer in found] == ["de", "en", None]
    assert all(0 <= answer["score"] <= 1 for answer in found)
    assert value(run(processor, "Dr. Smith came. He left!\n\nWhy?", "sentences")) == [
        "Dr. Smith came.",
        "He left!",
        "Why?",
    ]


def test_redact(processor: TextProcessor) -> None:
    """What has a form and right check digits is replaced by its kind; look-alikes stay."""
    found = {
        "mail a.b+c@mail.example.org.": "mail [EMAIL].",
        "call +49 30 1234567, or (555) 123-4567": "call [PHONE], or [PHONE]",
        "pay DE89 3704 0044 0532 0130 00 AND GB82WEST12345698765432": "pay [IBAN] AND [IBAN]",
        "card 4111 1111 1111 1111!": "card [CARD]!",
        "from 10.0.0.1. and 2001:db8::1": "from [IP]. and [IP]",
    }
    assert [value(run(processor, text, "redact")) for text in found] == list(found.values())
    stay = [
        "card 4111 1111 1111 1112",
        "DE88370400440532013000",
        "std::vector at 12:30",
        "2024-01-02 and 3.11",
        "300.1.2.3",
    ]
    assert [value(run(processor, text, "redact")) for text in stay] == stay
    assert value(run(processor, "a@b.org 10.0.0.1", {"step": "redact", "kinds": ["ip"]})) == "a@b.org [IP]"


def test_signature(processor: TextProcessor) -> None:
    """Near duplicates agree in most places, other texts in few, equal texts in all."""
    words = [f"word{n}" for n in range(200)]
    texts = [" ".join(words), " ".join([*words[:-1], "other"]), " ".join(reversed(words)), "", "one"]
    same, near, far, *_ = value(run(processor, texts, "signature"))

    def alike(other: list[int]) -> float:
        return [a == b for a, b in zip(same, other, strict=True)].count(True) / len(same)

    assert alike(near) > 0.9 > 0.2 > alike(far)
    assert value(run(processor, texts[0], "signature")) == same


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        (["nonsense"], "normalize"),
        ([{"size": 3}], "no step"),
        ([{"step": "chunk", "size": 0}], "size"),
        ([{"step": "chunk", "size": 10, "overlap": 6}], "overlap"),
        ([{"step": "chunk", "length": 10}], "length"),
        ([{"step": "normalize", "form": "NFX"}], "form"),
        (["chunk", "normalize"], "put it last"),
        (["normalize", "extract"], "first"),
        ("normalize", "steps"),
    ],
)
def test_wrong_params_are_refused_at_submit(processor: TextProcessor, steps: Any, says: str) -> None:
    """Unknown steps, options and values and impossible orders are named before anything runs."""
    with pytest.raises(InvalidInput, match=says):
        processor.check(Text("x"), None, {"steps": steps})


def test_wrong_inputs_are_refused_at_submit(processor: TextProcessor) -> None:
    """Bytes need extract, other inputs don't fit; what comes from a parent is looked at later."""
    for input in (Binary(b"x"), Custom({}), Text(3), Text(["a", 3])):
        with pytest.raises(InvalidInput):
            processor.check(input, None, {})
    processor.check(Binary(b"x"), None, {"steps": ["extract"]})
    processor.check(Text(Ref(TaskId())), None, {})
    processor.check(Text(["a", Ref(TaskId())]), None, {})


def test_tokens_that_the_model_adds_are_not_counted(model: TrainedModel) -> None:
    """A marker stands for nothing in the text, so an empty text has no tokens."""

    class Marking(TrainedModel):
        def count_tokens(self, texts: Sequence[str]) -> list[int]:
            return [count + 2 for count in model.count_tokens(texts)]

        def token_offsets(self, text: str) -> list[tuple[int, int]]:
            return [(0, 0), *model.token_offsets(text), (len(text), len(text))]

    processor = TextProcessor(lambda model_id: Marking())  # type: ignore[arg-type, return-value]
    assert value(run(processor, [SENTENCES, ""], "tokens")) == [len(model.token_offsets(SENTENCES)), 0]


def test_the_overlap_follows_the_size(processor: TextProcessor) -> None:
    """Without an overlap of one's own every size works; small pieces repeat a quarter, large ones 20 units."""
    text = " ".join(str(n) for n in range(1_000))
    for size, most in ((1, 0), (2, 0), (8, 2), (32, 8), (80, 20), (400, 20)):
        first, second = value(run(processor, text, {"step": "chunk", "size": size, "unit": "words"}))[:2]
        assert len(set(first.text.split()) & set(second.text.split())) == most
    assert "more than half" in error(run(processor, text, {"step": "chunk", "size": 32, "overlap": 20}))


def test_a_bad_text_of_several_is_named(model: TrainedModel) -> None:
    """The error of a list tells which text it was."""

    class Refusing(TrainedModel):
        def token_offsets(self, text: str) -> list[tuple[int, int]]:
            if text == "bad":
                raise InvalidInput("can't be read")
            return model.token_offsets(text)

    processor = TextProcessor(lambda model_id: Refusing())  # type: ignore[arg-type, return-value]
    assert error(run(processor, ["good", "bad"], "tokens")) == "input.text[1]: can't be read"


def test_every_step_is_documented() -> None:
    """Each step has a name and says what it gives."""
    assert set(STEPS) >= {"fix", "normalize", "strip_html", "extract", "chunk", "language", "sentences", "tokens"}
    assert all(kind.__doc__ for kind in STEPS.values())
    page = (Path(__file__).parents[2] / "docs" / "text.md").read_text(encoding="utf-8")
    rows = {row.split("`")[1]: row for row in page.splitlines() if row.startswith("| `")}
    assert list(rows) == list(STEPS)
    for name, kind in STEPS.items():
        assert all(f"`{option}" in rows[name] for option in kind.__struct_fields__), name
