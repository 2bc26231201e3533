"""HTML to readable text."""

from __future__ import annotations

import re
from typing import Final

from mainspring.errors import invalid
from mainspring.processors.text.library import library

_PARAGRAPHS: Final = (
    "address,article,aside,blockquote,dl,fieldset,figure,footer,form,h1,h2,h3,h4,h5,h6,"
    "header,hr,main,nav,ol,p,section,table,ul"
)
_LINES: Final = "br,caption,dd,details,div,dt,figcaption,legend,li,option,summary,tr"
_CELLS: Final = "td,th"
_UNSEEN: Final = ["script", "style", "noscript", "template", "head", "iframe", "object", "svg"]

# Marks that stand in the tree for breaks until white space is collapsed; HTML itself allows none of these characters.
_CELL, _KEPT_LINE, _LINE, _PARAGRAPH, _KEPT_SPACE = "\x1b\x1c\x1d\x1e\x1f"
_WHITE = re.compile(r"[ \t\r\n\f]+")
_BREAK = re.compile(f" ?[{_CELL}{_LINE}{_PARAGRAPH}][ {_CELL}{_LINE}{_PARAGRAPH}]*")
_KEEP = str.maketrans({" ": _KEPT_SPACE, "\n": _KEPT_LINE, "\t": _KEPT_SPACE * 4})
_RESTORE = str.maketrans({_KEPT_SPACE: " ", _KEPT_LINE: "\n"})


def html_to_text(html: str) -> str:
    """Return what a reader sees: blocks apart by an empty line, lines and list items by a line end, cells by a tab.

    Scripts, styles and the head are gone; text in `pre` keeps its spaces and line ends.
    """
    lexbor = library("selectolax.lexbor", "strip_html")
    try:
        tree = lexbor.LexborHTMLParser(html)
    except (ValueError, lexbor.SelectolaxError) as exc:
        raise invalid("input", html, f"can't be parsed as HTML ({exc})", "pass a smaller or a valid page") from exc
    tree.strip_tags(_UNSEEN)
    for node in tree.css("pre,textarea"):
        node.replace_with(_PARAGRAPH + node.text().translate(_KEEP) + _PARAGRAPH)
    for selector, mark in ((_PARAGRAPHS, _PARAGRAPH), (_LINES, _LINE), (_CELLS, _CELL)):
        for node in tree.css(selector):
            node.insert_before(mark)
            node.insert_after(mark)
    text = _WHITE.sub(" ", tree.root.text() if tree.root is not None else "")
    return _BREAK.sub(_spaced, text).strip(" \n\t").translate(_RESTORE).strip("\n")


def _spaced(match: re.Match[str]) -> str:
    marks = match[0]
    return "\n\n" if _PARAGRAPH in marks else "\n" if _LINE in marks else "\t"
