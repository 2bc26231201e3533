"""Whether the store agrees with what handlers and submitters noted, once all is quiet.

What holds for any store is checked by `check_history`; what is checked beside it needs to know the handlers.
Kinds of findings: history, lost, twice, other attempt, order, key, effect, children, error, process.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import apsw
import msgspec
import numpy as np
from numpy.typing import NDArray

from mainspring.blobs.local import LocalBlobStore
from mainspring.config import is_server
from mainspring.store.base import CRASHED, RELEASED
from mainspring.store.postgres.looking import look
from mainspring.store.postgres.session import Session
from mainspring.tasks import Custom, CustomOutput, ErrorInfo, TaskId, TaskStatus
from mainspring.tasks.codec import decode_input, decode_output
from mainspring.tasks.lifecycle import CANCELLED, COMPLETED, FAILED, STATUS_OF
from mainspring.testing import check_history
from mainspring.testing.events import (
    Acknowledged,
    CancelAnswered,
    Ended,
    Event,
    Refused,
    ResultSeen,
    Started,
    Submitted,
)
from proof.copied import copied
from proof.figures import Finding
from proof.kills.ledger import Line, Word, read

Vector: TypeAlias = NDArray[np.floating[Any]]
_VECTORS = "SELECT id, vector FROM vector_record"
_MISTAKES = ("Traceback (most recent call last)", "please report this")


class Row(NamedTuple):
    seq: int
    status: int
    attempt: int
    type: str
    output: bytes | None
    error: bytes | None
    flags: int
    input: bytes


class Evidence(NamedTuple):
    """All there is to judge by."""

    rows: dict[str, Row]  # by task id
    lines: dict[str, list[Line]]  # by task id, in the order of time
    words: list[Word]
    connection: apsw.Connection  # to all rows, on a server to a copy of them
    judged: str | apsw.Connection  # what is held against the invariants
    vectors: dict[str, Vector]  # by the id of their record

    @property
    def figures(self) -> dict[str, int]:
        said = Counter(word.event for word in self.words)
        status = Counter(STATUS_OF[row.status].value for row in self.rows.values())
        starts = sum(line.event == "start" for lines in self.lines.values() for line in lines)
        outcomes = Counter(code for (code,) in self.connection.execute("SELECT outcome FROM attempt"))
        return {
            "tasks": len(self.rows),
            "accepted": said["accepted"],
            "in doubt or refused": said["in_doubt"] + said["refused"],
            "records with vectors": len(self.vectors),
            "starts of handlers": starts,
            "starts beyond the first": starts - len(self.lines),
            "attempts that crashed": outcomes[CRASHED],
            "attempts handed back or taken back": outcomes[RELEASED],
            **dict(status),
        }


async def evidence(store: str, ledger: Path) -> Evidence:
    if is_server(store):
        connection = await copied(store)
        vectors = look(store, _vectors_on_server)
    else:
        connection = apsw.Connection(store, flags=apsw.SQLITE_OPEN_READONLY)
        vectors = {id: np.frombuffer(raw, "<f4") for id, raw in connection.execute(_VECTORS)}
    found = connection.execute(
        "SELECT task.id, seq, status, attempt, type, output, error, flags, input "
        "FROM task JOIN class ON class.id = class"
    )
    rows = {str(TaskId(id)): Row(*values) for id, *values in found}
    lines: dict[str, list[Line]] = defaultdict(list)
    for line in read(ledger, "ledger", Line):
        lines[line.task].append(line)
    return Evidence(rows, dict(lines), read(ledger, "words", Word), connection, store, vectors)


def _vectors_on_server(session: Session) -> dict[str, Vector]:
    if session.execute("SELECT to_regclass('vector_record')::text")[0][0] is None:  # the first upsert makes it
        return {}
    found = session.execute("SELECT convert_from(id, 'UTF8'), vector::text FROM vector_record")
    return {id: np.array(msgspec.json.decode(shown), "<f4") for id, shown in found}


def check(seen: Evidence, blobs: Path) -> list[Finding]:
    """Return all that must not be."""
    history = check_history(seen.judged, history=_events(seen), blobs=LocalBlobStore(blobs))
    return [
        *(Finding("history", str(violation)) for violation in history),
        *_lost(seen),
        *_recorded(seen),
        *_order(seen),
        *_keys(seen),
        *_effects(seen),
        *_children(seen),
        *_errors(seen),
    ]


def mistakes(logs: Iterable[Path]) -> Iterator[Finding]:
    """What processes say of themselves that nothing from outside explains."""
    for path in logs:
        text = path.read_text(encoding="utf-8", errors="replace")
        places = [text.index(words) for words in _MISTAKES if words in text]
        if places:
            yield Finding("process", f"{path.name} says: {text[max(0, min(places) - 200) :][:1_000]}")


def _events(seen: Evidence) -> list[Event]:
    events: list[Event] = []
    for word in seen.words:
        if word.event == "asked":
            events.append(Submitted(word.task, word.at))
        elif word.event == "accepted":
            events.append(Acknowledged(word.task, word.at))
        elif word.event == "refused":
            events.append(Refused(word.task, word.at))
        elif word.event == "cancel":
            events.append(CancelAnswered(word.task, word.at, word.answer))
        elif word.event == "seen":
            events.append(ResultSeen(word.task, word.at, TaskStatus(word.answer)))
    for lines in seen.lines.values():
        events += [(Started if line.event == "start" else Ended)(line.task, line.at, line.attempt) for line in lines]
    return events


def _lost(seen: Evidence) -> Iterator[Finding]:
    """Every task has ended."""
    for id, row in seen.rows.items():
        if row.status < COMPLETED:
            yield Finding("lost", f"task {id} ({row.type}) has not ended")


def _recorded(seen: Evidence) -> Iterator[Finding]:
    """What is recorded of a task was made by its last attempt, and no other is recorded."""
    recorded: dict[int, list[int]] = defaultdict(list)
    for seq, number in seen.connection.execute("SELECT task, number FROM attempt WHERE outcome = 0"):
        recorded[seq].append(number)
    for id, row in seen.rows.items():
        numbers = recorded[row.seq]
        if len(numbers) > 1:
            yield Finding("twice", f"task {id} has its completion recorded by attempts {numbers}")
        lines = seen.lines.get(id, [])
        if row.status == COMPLETED and row.type.startswith("custom:"):
            yield from _made_by_last(id, row, lines)


def _made_by_last(id: str, row: Row, lines: Sequence[Line]) -> Iterator[Finding]:
    ends = [line for line in lines if line.event == "end" and line.attempt == row.attempt]
    latest = max((line.attempt for line in lines), default=0)
    if len(ends) != 1 or latest > row.attempt:
        yield Finding("other attempt", f"task {id} completed with attempt {row.attempt}; ledger: {_told(lines)}")
        return
    made = _value(row)
    if isinstance(made, dict) and (made["task"], made["attempt"], made["pid"]) != (id, row.attempt, ends[0].pid):
        yield Finding("other attempt", f"task {id} completed with attempt {row.attempt}, its result says {made}")


def _value(row: Row) -> Any:
    """The recorded value, where it lies in the row and stands for no other task's."""
    output = decode_output(row.output) if row.output is not None and not row.flags else None
    return output.value if isinstance(output, CustomOutput) else None


def _told(lines: Sequence[Line]) -> str:
    return ", ".join(f"{line.event} {line.attempt} in {line.pid}" for line in lines)


def _order(seen: Evidence) -> Iterator[Finding]:
    """A child's attempts begin after its parents ended, and get what those made."""
    ids = {row.seq: id for id, row in seen.rows.items()}
    for child, parent in seen.connection.execute("SELECT child, parent FROM edge"):
        if child not in ids or parent not in ids:
            continue  # it was lost, which is told elsewhere
        begun = [line.at for line in seen.lines.get(ids[child], ()) if line.event == "start"]
        row = seen.rows[ids[parent]]
        ended = [line.at for line in seen.lines.get(ids[parent], ()) if line.attempt == row.attempt]
        if begun and ended and min(begun) < max(ended):
            yield Finding("order", f"task {ids[child]} began before its parent {ids[parent]} ended")
        made, got = _value(row), _value(seen.rows[ids[child]])
        if isinstance(made, dict) and isinstance(got, dict):
            parents = got["parents"] if isinstance(got["parents"], list) else [got["parents"]]
            if parents != [None] and not any(_is_of(part, made) for part in parents):
                yield Finding("order", f"task {ids[child]} got {parents}, its parent {ids[parent]} made {made}")


def _is_of(part: Any, made: dict[str, Any]) -> bool:
    return part == made or (isinstance(part, list) and any(_is_of(one, made) for one in part))


def _keys(seen: Evidence) -> Iterator[Finding]:
    """All that were accepted under one key are one task."""
    ids: dict[str, set[str]] = defaultdict(set)
    for word in seen.words:
        if word.event == "accepted" and word.key:
            ids[word.key].add(word.task)
    for key, found in ids.items():
        if len(found) > 1:
            yield Finding("key", f"key {key} was answered with {len(found)} tasks: {sorted(found)}")


def _effects(seen: Evidence) -> Iterator[Finding]:
    """What a task stores is there when it completed, and not at all when it did not."""
    ask = seen.connection.execute
    keys = {key for (key,) in ask("SELECT key FROM blob_key")}
    wanted = 0
    records: dict[str, Vector] = {}
    for id, row in seen.rows.items():
        if row.type != "data_storage" or row.status != COMPLETED:
            continue
        assert row.output is not None
        stored = decode_output(row.output)
        if stored.digest is not None:  # type: ignore[union-attr]
            wanted += 1
            if stored.key not in keys:  # type: ignore[union-attr]
                yield Finding("effect", f"task {id} completed, and its key is not there")
        else:
            records |= _records_of(row)
    if wanted != len(keys):
        yield Finding("effect", f"{wanted} tasks stored a key, {len(keys)} keys are there")
    for id in records.keys() | seen.vectors.keys():
        if id not in seen.vectors:
            yield Finding("effect", f"a task completed that stored record {id}, which is not there")
        elif id not in records:
            yield Finding("effect", f"record {id} is there, and no task completed that stored it")
        elif not np.allclose(records[id], seen.vectors[id], atol=1e-6):
            yield Finding("effect", f"record {id} has another vector than its task stored")


def _records_of(row: Row) -> dict[str, Vector]:
    """Return the records that an upsert stores, by id: vectors are kept with the length of 1."""
    given = _arguments(row)
    vectors = np.asarray(given["vectors"], np.float64)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return {f"{given['id_prefix']}#{n}": unit for n, unit in enumerate(units)}


def _children(seen: Evidence) -> Iterator[Finding]:
    """A completed parent has each of its children once; one that did not complete has only those stored at once."""
    wanted: dict[str, int] = {}
    for id, row in seen.rows.items():
        if row.type == "custom:has_children":
            wanted[id] = _arguments(row)["children"] if row.status == COMPLETED else 0
    numbers: dict[str, list[int]] = defaultdict(list)
    for row in seen.rows.values():
        if row.type == "custom:waits" and isinstance(parent := _arguments(row).get("parents"), str):
            numbers[parent].append(_arguments(row)["n"])
    for parent, n in wanted.items():
        found = sorted(numbers[parent])
        if found != list(range(n)) and (n or len(set(found)) < len(found) or any(child % 2 == 0 for child in found)):
            yield Finding("children", f"task {parent} made {n} children for good, those with numbers {found} are there")


def _arguments(row: Row) -> dict[str, Any]:
    stored = decode_input(row.input)
    assert isinstance(stored, Custom)
    value: dict[str, Any] = stored.value
    return value


def _errors(seen: Evidence) -> Iterator[Finding]:
    """Nothing fails for a reason that neither its handler nor the killer gave."""
    for id, row in seen.rows.items():
        if row.status not in (FAILED, CANCELLED) or row.error is None:
            continue
        error = msgspec.msgpack.decode(row.error, type=ErrorInfo)
        if error.type in ("InternalError", "InvalidInput") and "handed back" not in error.message:
            yield Finding("error", f"task {id} ({row.type}) ended with {error.type}: {error.message}")
