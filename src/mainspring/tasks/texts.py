"""Texts that rows are found by: what every kind of store can hold, so that each can be moved into every other."""

from __future__ import annotations

from typing import Any, Final

from mainspring.errors import invalid

MAX_KEY_BYTES: Final = 2_048
"""Of a key or an id. With the longest namespace beside it, it still fits into an entry of an index of Postgres."""


def check_text(field: str, value: Any) -> None:
    """Raises InvalidInput: it is no text, or one that not every store can look for."""
    if not isinstance(value, str):
        raise invalid(field, value, "is no text", "pass a str")
    if "\0" in value:
        raise invalid(field, value, "holds the character 0", "use other characters")
    check_unicode(field, value)


def check_unicode(field: str, value: str) -> None:
    """Raises InvalidInput: it can't be written as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise invalid(field, value, "is no valid Unicode", "use other characters") from exc


def check_key(field: str, value: str) -> None:
    """Raises InvalidInput: it is too long to be looked up by."""
    size = len(value.encode("utf-8", "surrogatepass"))
    if size > MAX_KEY_BYTES:
        why = f"has {size:,} bytes as UTF-8, and {MAX_KEY_BYTES:,} are the most"
        raise invalid(field, value, why, "use a shorter one, or a hash")
