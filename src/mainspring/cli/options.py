"""Arguments and options that several commands take, and the values that people write."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Final

import typer

from mainspring.config import seconds
from mainspring.errors import InvalidInput, invalid

DEFAULT_STORE = "mainspring.db"

StorePath = Annotated[
    str, typer.Option("--store", envvar="MAINSPRING_STORE", metavar="PATH", help="File that holds the tasks.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs, and nothing else.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="A task's id, or at least its last 6 characters.")]
Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="Tasks' ids, or at least their last 6 characters.")]
Type = Annotated[
    str | None,
    typer.Option(
        "--type",
        metavar="TYPE",
        help="Only this type: a handler's name, as `resize` or `custom:resize`, or a built-in type's.",
    ),
]
Limit = Annotated[int, typer.Option(min=1, metavar="N", help="How many to list at most, newest first.")]
WaitLimit = Annotated[
    str | None,
    typer.Option("--timeout", metavar="DURATION", help='How long to wait, as "30s" or "2h"; default: for ever.'),
]

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]iB|B)?")
_UNITS: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def size_of(text: str, field: str) -> int:
    """Return bytes from a number or from text such as "512MiB", as `screen.size` writes it. Raises InvalidInput."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise invalid(field, text, "is no size", 'use bytes, or text such as "512MiB" or "2GiB"')
    return round(float(match[1]) * _UNITS[match[2] or "B"])


def duration(text: str | None, field: str) -> float | None:
    """Return seconds from a number or from text such as "30s"; None stays None. Raises InvalidInput."""
    if text is None:
        return None
    try:
        return seconds(float(text), field)
    except ValueError:
        return seconds(text, field)


_AHEAD: Final = '"2030-01-31T18:00", or "30s" for 30 s from now'


def moment(text: str | None, field: str, example: str = _AHEAD) -> datetime | float | None:
    """Return a time with its zone, the local one where none is named, or a duration in seconds, from now or back.

    Raises: InvalidInput: it is neither; the remedy has the example.
    """
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        pass
    try:
        return duration(text, field)
    except InvalidInput:
        raise invalid(field, text, "is neither a time nor a duration", f"use {example}") from None
