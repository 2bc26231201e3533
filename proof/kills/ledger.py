"""What handlers and submitters note: a file for each process, a line at a time, on the disk before anything goes on.

`at` is `time.monotonic_ns()`: one clock for all processes of a machine.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from mainspring import Context

FOLDER = "PROOF_LEDGER"
"""The environment's variable that names the folder, for processes and for those that they start."""


class Line(msgspec.Struct, frozen=True):
    """A handler began or ended with an attempt."""

    task: str
    attempt: int
    pid: int
    event: str  # start or end
    at: int


class Word(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a submitter was told, written after it was told, or what it is about to ask."""

    event: str  # asked, accepted, refused, in_doubt, cancel, seen, unanswered
    task: str  # unanswered: who asked
    at: int
    key: str = ""  # of idempotency
    answer: str = ""  # to a cancel; the status that was seen


T = TypeVar("T", Line, Word)
_encode = msgspec.json.Encoder().encode


class Book:
    """An append-only file: a line is either there or not, whatever happens to the process."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._pid, self._fd = 0, -1

    def write(self, line: Line | Word) -> None:
        if self._pid != os.getpid():  # also after a fork
            self._pid = os.getpid()
            path = Path(os.environ[FOLDER], f"{self._pid}-{time.monotonic_ns()}.{self._suffix}")
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_SYNC, 0o600)
        os.write(self._fd, _encode(line) + b"\n")


LEDGER = Book("ledger")
WORDS = Book("words")


@contextlib.contextmanager
def noted(ctx: Context) -> Iterator[None]:
    """Note when the handler's work begins and ends, however it ends."""
    LEDGER.write(Line(str(ctx.id), ctx.attempt, os.getpid(), "start", time.monotonic_ns()))
    try:
        yield
    finally:
        LEDGER.write(Line(str(ctx.id), ctx.attempt, os.getpid(), "end", time.monotonic_ns()))


def say(event: str, task: object, *, key: str = "", answer: str = "") -> None:
    WORDS.write(Word(event, str(task), time.monotonic_ns(), key, answer))


def read(folder: Path, suffix: str, kind: type[T]) -> list[T]:
    """Return all lines of a kind in the order of time; what a death cut off at the end of a file is none."""
    lines: list[T] = []
    for path in folder.glob(f"*.{suffix}"):
        *whole, _ = path.read_bytes().split(b"\n")
        lines += [msgspec.json.decode(line, type=kind) for line in whole]
    return sorted(lines, key=lambda line: line.at)
