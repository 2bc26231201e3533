"""Texts that rows are found by: what every kind of store can hold, so that each can be moved into every other."""

from __future__ import annotations

from typing import Any

from mainspring.errors import invalid


def check_text(field: str, value: Any) -> None:
    """Raises InvalidInput: it is no text, or one that not every store can look for."""
    if not isinstance(value, str):
        raise invalid(field, value, "is no text", "pass a str")
    if "\0" in value:
        raise invalid(field, value, "holds the character 0", "use other characters")
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise invalid(field, value, "is no valid Unicode", "use other characters") from exc
