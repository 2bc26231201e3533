"""Whether what a store keeps as bytes or text can be read: payloads, errors, kept results, what processes tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any, Final

import msgspec

from mainspring.errors import InvalidInput
from mainspring.resources.monitor import ResourceUsage
from mainspring.store.base import BLOB_INPUT, BLOB_OUTPUT, Spec
from mainspring.tasks import ErrorInfo, TaskId, TaskType
from mainspring.tasks.codec import UNREADABLE, decode_input, decode_output
from mainspring.testing.rows import Row, Rows
from mainspring.testing.violation import Violation

Decode = Callable[[Any], Any]

_spec: Final = msgspec.msgpack.Decoder(Spec).decode
_error: Final = msgspec.msgpack.Decoder(ErrorInfo).decode
_object: Final = msgspec.json.Decoder(dict[str, Any]).decode
_slots: Final = msgspec.json.Decoder(dict[str, int]).decode
_figures: Final = msgspec.json.Decoder(ResourceUsage).decode
_TASKS: Final = """SELECT seq, id, flags, input, spec, output, error FROM task WHERE seq > $1 ORDER BY seq LIMIT 1000"""
_ATTEMPTS: Final = """SELECT attempt.task, number, id, attempt.error FROM attempt JOIN task ON seq = attempt.task
WHERE attempt.error IS NOT NULL AND (attempt.task, number) > ($1, $2) ORDER BY attempt.task, number LIMIT 1000"""
_KEPT: Final = "SELECT key, type, flags, output FROM cache WHERE key > $1 ORDER BY key LIMIT 1000"


def unreadable(rows: Rows, limit: int) -> Iterator[Violation]:
    """Yield what can't be read, at most so many of each kind."""
    kinds = [_tasks(rows), _attempts(rows), _handlers(rows), _classes(rows)]
    if "cache" in rows.tables:
        kinds.append(_kept(rows))
    if "usage" in rows.tables:  # came with what workers tell of their slots
        kinds.append(_told(rows))
    return chain.from_iterable(islice(kind, limit) for kind in kinds)


def _tasks(rows: Rows) -> Iterator[Violation]:
    for _, id, flags, input, spec, output, error in _pages(rows, _TASKS, (0,)):
        fields: tuple[tuple[str, Decode, Any], ...] = (
            ("input", decode_input, None if flags & BLOB_INPUT else input),
            ("spec", _spec, spec),
            ("output", decode_output, None if flags & BLOB_OUTPUT else output),
            ("error", _error, error),
        )
        for field, decode, raw in fields:
            yield from _fault(decode, raw, id, f"its {field}", field=field)


def _attempts(rows: Rows) -> Iterator[Violation]:
    for _, number, id, error in _pages(rows, _ATTEMPTS, (0, 0)):
        yield from _fault(_error, error, id, "the error of an attempt", attempt=number)


def _kept(rows: Rows) -> Iterator[Violation]:
    for key, kind, flags, output in _pages(rows, _KEPT, (b"",)):
        if not flags & BLOB_OUTPUT:
            what = f"a kept result of type {kind}"
            yield from _fault(decode_output, output, None, what, key=bytes(key).hex())


def _handlers(rows: Rows) -> Iterator[Violation]:
    for kind, version, options, schema in rows.ask("SELECT type, version, options, schema FROM handler"):
        for field, raw in (("options", options), ("schema", schema)):
            yield from _fault(_object, raw, None, f"what handler {kind} has declared", field=field, version=version)


def _classes(rows: Rows) -> Iterator[Violation]:
    for number, kind in rows.ask("SELECT id, type FROM class ORDER BY id"):
        yield from _fault(TaskType, kind, None, f"the type of class {number}", type=kind)


def _told(rows: Rows) -> Iterator[Violation]:
    for sql, decode in (
        ("SELECT id, slots FROM worker WHERE ended_ms IS NULL", _slots),
        ("SELECT worker, figures FROM usage", _figures),
        ("SELECT worker, state FROM offer", _object),
    ):
        for worker, raw in rows.ask(sql):
            yield from _fault(decode, raw, None, "what a process tells", worker=worker)


def _pages(rows: Rows, sql: str, after: Row) -> Iterator[Row]:
    while page := list(rows.ask(sql, *after)):
        yield from page
        after = page[-1][: len(after)]


def _fault(decode: Decode, raw: Any, id: bytes | None, what: str, **figures: Any) -> Iterator[Violation]:
    try:
        if raw is not None:
            decode(raw)
    except (*UNREADABLE, InvalidInput) as exc:
        task = None if id is None else str(TaskId(id))
        figures["why"] = str(exc)
        yield Violation(invariant="readable", task=task, what=f"{what} can't be read", figures=figures)
