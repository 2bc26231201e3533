"""Signals: messages from a running handler. Droppable, except started and item_done."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from mainspring.tasks.work import Report


class Started(msgspec.Struct, frozen=True, tag="started"):
    """The handler's code begins now: from here a crash is the attempt's own."""


class ItemDone(msgspec.Struct, frozen=True, tag="item_done"):
    """One item of a batch has its outcome, while others of it go on."""

    report: Report


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    done: float
    total: float


class Log(msgspec.Struct, frozen=True, tag="log"):
    """A line that a handler wrote to `ctx.log` where its log can't be reached."""

    level: int
    message: str
    fields: dict[str, Any] = {}  # its `extra`
    exception: str | None = None  # the traceback, as text
    path: str = ""  # of the code that wrote it
    line: int = 0
    function: str = ""


class OutputChunk(msgspec.Struct, frozen=True, tag="chunk"):
    """A part of a streamed output."""

    data: Any


class UsageSample(msgspec.Struct, frozen=True, tag="usage"):
    memory_bytes: int


Signal: TypeAlias = Started | ItemDone | Progress | Log | OutputChunk | UsageSample
