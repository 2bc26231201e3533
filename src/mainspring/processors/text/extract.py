"""Documents' bytes to text: encodings, HTML, Markdown, PDF."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

from mainspring.environment import Lock
from mainspring.errors import InvalidInput, invalid
from mainspring.processors.text.html import html_to_text
from mainspring.processors.text.library import library

Kind: TypeAlias = Literal["text", "html", "markdown", "pdf"]

_SUFFIXES: Final[dict[str, Kind]] = {
    "htm": "html",
    "html": "html",
    "xhtml": "html",
    "md": "markdown",
    "markdown": "markdown",
    "pdf": "pdf",
}
_MARKS: Final = (  # the longer ones first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE_BYTES = 65_536
_HTML_HEAD = re.compile(
    r"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL
)
_CHARSET = re.compile(rb"<(?:meta[^>]+charset|\?xml[^>]+encoding)\s*=\s*[\"']?\s*([A-Za-z0-9_.:\-]+)", re.IGNORECASE)
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n.*?\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_NOT_TEXT = re.compile(r"[\x00-\x06\x0e-\x1a\x1c-\x1f]")
_pdfium = Lock()
"""PDFium is not thread-safe: one call at a time in a process."""


def extract(document: bytes | str, kind: Kind | None, name: str | None, look: Callable[[], None]) -> str:
    """Return a document's text; without `kind` it is told from the content, else from the end of `name`.

    `look` is called between pages and may raise.

    Raises: InvalidInput: damaged, encrypted, or no document at all; the message has `name`.
    """
    kind = kind or sniff(document, name)
    if kind == "pdf":
        return _pdf(document, name, look)
    text = document if isinstance(document, str) else decode(document, name)
    if kind == "html":
        return html_to_text(text)
    return _markdown(text) if kind == "markdown" else text


def sniff(document: bytes | str, name: str | None = None) -> Kind:
    head = document[:1024]
    if isinstance(head, bytes):
        if b"%PDF-" in head:
            return "pdf"
        head = head.decode("latin-1").lstrip("ï»¿")
    if _HTML_HEAD.match(head):
        return "html"
    return _SUFFIXES.get((name or "").rpartition(".")[2].lower(), "text")


def decode(data: bytes, name: str | None = None) -> str:
    """Return the text of bytes: by byte order mark, by what an HTML or XML head declares, as UTF-8, else as detected.

    Bytes that the detected encoding does not know become U+FFFD.

    Raises: InvalidInput: no text in any encoding.
    """
    text = _decoded(data, name)
    if _NOT_TEXT.search(text):
        raise _bad(name, data, "is no text but a binary file", "leave it out, or give the kind of the document")
    return text


def _decoded(data: bytes, name: str | None) -> str:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data.decode(encoding, "replace")
    try:
        return data.decode()
    except UnicodeDecodeError:
        pass
    declared = _CHARSET.search(data, 0, 1024)
    if declared is not None:
        try:
            return data.decode(declared[1].decode())
        except (LookupError, UnicodeDecodeError):  # declared wrongly: as if not at all
            pass
    encoding = library("chardet", "extract").detect(data[:_SAMPLE_BYTES])["encoding"]
    if encoding is None:
        raise _bad(name, data, "is no text but a binary file", "leave it out, or convert it to UTF-8")
    return data.decode(encoding, "replace")


def _markdown(text: str) -> str:
    parser = library("markdown_it", "extract").MarkdownIt("commonmark").enable("table")
    return html_to_text(parser.render(_FRONT_MATTER.sub("", text, count=1)))


def _pdf(document: bytes | str, name: str | None, look: Callable[[], None]) -> str:
    if isinstance(document, str):
        raise _bad(name, document, "is text, and a PDF is bytes", "pass Binary(data=...)")
    pdfium = library("pypdfium2", "extract")
    pages: list[str] = []
    with _pdfium:
        try:
            pdf = pdfium.PdfDocument(document)
        except pdfium.PdfiumError as exc:
            raise _bad(name, document, f"is no readable PDF ({exc})", "repair it or take its password off") from exc
        try:
            for number in range(len(pdf)):
                look()
                pages.append(_page(pdf, number))
        except pdfium.PdfiumError as exc:
            raise _bad(name, document, f"page {len(pages) + 1} can't be read ({exc})", "repair the file") from exc
        finally:
            pdf.close()
    return "\n\n".join(pages)


def _page(pdf: object, number: int) -> str:
    page = pdf[number]  # type: ignore[index]
    try:
        content = page.get_textpage()
        try:
            return str(content.get_text_bounded()).replace("\r\n", "\n").strip()
        finally:
            content.close()
    finally:
        page.close()


def _bad(name: str | None, document: bytes | str, why: str, remedy: str) -> InvalidInput:
    shown = name or f"{type(document).__name__} of length {len(document)}, beginning {document[:16]!r}"
    return invalid("document", shown, why, remedy)
