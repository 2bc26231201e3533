"""What code of users gives back for several items at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any


def in_order(values: Any) -> list[Any] | None:
    """Return one value for each item; None: nothing in there tells whose is whose, as in a set, a mapping or a text."""
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes, bytearray, memoryview, Mapping, Set)):
        return None
    return list(values)
