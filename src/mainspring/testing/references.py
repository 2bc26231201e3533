"""Whether tasks and rows agree on what tasks name: their idempotency keys, and the results of others.

What a task names stands in its bytes, what that leads to in rows. A row that is gone, or leads elsewhere, is seen
nowhere else: the same key would make a second task, and a result would be missing when somebody needs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, Final

import msgspec

from mainspring.store.base import Spec
from mainspring.tasks import TaskId
from mainspring.tasks.codec import refs_in
from mainspring.tasks.lifecycle import COMPLETED
from mainspring.testing.rows import Row, Rows
from mainspring.testing.violation import Violation

_spec: Final = msgspec.msgpack.Decoder(Spec).decode
_KEYED: Final = """SELECT seq, task.id, status, spec, class.namespace, key FROM task JOIN class ON class.id = task.class
LEFT JOIN idempotency ON idempotency.task = seq WHERE seq > $1 AND spec IS NOT NULL ORDER BY seq LIMIT 1000"""
_OWNER: Final = (
    "SELECT seq, id, spec FROM idempotency JOIN task ON seq = task WHERE idempotency.namespace = $1 AND key = $2"
)
_AGAIN: Final = "SELECT 1 FROM retried WHERE task = $1"
_STAND_IN: Final = "SELECT 1 FROM attempt WHERE task = $1 AND started_ms IS NULL AND outcome = 0"
_NEWER: Final = "SELECT count(*) FROM task WHERE seq > $1"
_MADE_OF: Final = """SELECT seq, id, input, flags & 4 FROM task WHERE seq > $1 AND status < 2 AND flags & 16 = 0
ORDER BY seq LIMIT 100"""
_PARENTS: Final = """SELECT child, parent.id FROM edge JOIN task ON task.seq = edge.child JOIN task AS parent
ON parent.seq = edge.parent WHERE edge.child BETWEEN $1 AND $2 AND task.status < 2"""
_STANDING: Final = """SELECT seq, id, output, 8 FROM task
WHERE seq > $1 AND status = 2 AND flags & 40 = 8 AND output IS NOT NULL ORDER BY seq LIMIT 100"""
_STOOD_FOR: Final = """SELECT stands_for.task, other.id FROM stands_for JOIN task AS other ON other.seq = ref
WHERE stands_for.task BETWEEN $1 AND $2"""


def contradicted(rows: Rows, limit: int) -> Iterator[Violation]:
    """Yield where they don't, at most so many of each kind."""
    kinds = [
        _keys(rows),
        _refs(rows, _MADE_OF, _PARENTS, "dependencies", "is made of a result that it does not depend on"),
        _refs(rows, _STANDING, _STOOD_FOR, "stands_for", "stands for a result that is not noted"),
    ]
    return chain.from_iterable(islice(kind, limit) for kind in kinds)


def _keys(rows: Rows) -> Iterator[Violation]:
    """Each task that was submitted with a key is the one that the key leads to, but for those that gave it away."""
    for seq, id, status, raw, namespace, held in _pages(rows, _KEYED, 0):
        key = _key_in(raw)
        if key is None or held == key:
            continue
        if held is not None:
            yield _violation("keys", id, "has the idempotency key of another task", key=key, held=held)
            continue
        owner = next(iter(rows.ask(_OWNER, namespace, key)), None)
        figures = {"seq": seq, "key": key, "namespace": namespace}
        if owner is not None and _key_in(owner[2]) != key:
            other = str(TaskId(owner[1]))
            yield _violation("keys", id, "has an idempotency key that leads to another task", **figures, leads_to=other)
        elif _must_own(rows, seq, status, is_owned=owner is not None):
            yield _violation("keys", id, "has an idempotency key that leads to no task, or to a later one", **figures)


def _must_own(rows: Rows, seq: int, status: int, *, is_owned: bool) -> bool:
    """Whether nothing explains that the key of a task does not lead to it.

    What completed, or goes on, has it: unless it was submitted within a user's transaction, and had to complete as what
    had the key by then. What ended otherwise was perhaps retried, and the key went to the new one; that may have been
    pruned since, and the key given to yet another one.
    """
    if status <= COMPLETED:
        return not list(rows.ask(_STAND_IN, seq))
    if is_owned or list(rows.ask(_AGAIN, seq)):
        return False
    ((newer,),) = rows.ask(_NEWER, seq)
    ((last,),) = rows.ask(f"SELECT {rows.words['last_number']}")
    return last is not None and newer == last - seq  # none that came later was pruned


def _key_in(spec: bytes | None) -> str | None:
    try:
        return None if spec is None else _spec(spec).idempotency_key
    except msgspec.DecodeError:  # told as unreadable
        return None


def _refs(rows: Rows, tasks: str, others: str, invariant: str, what: str) -> Iterator[Violation]:
    """What a task's bytes refer to is among what its rows name: else nobody waits for it, and nobody keeps it."""
    for page in _whole_pages(rows, tasks, 0):
        named = {(seq, bytes(id)) for seq, id in rows.ask(others, page[0][0], page[-1][0])}
        for seq, id, raw, flag in page:
            try:
                refs = refs_in(raw)
            except msgspec.DecodeError:  # told as unreadable
                continue
            if refs and not flag:
                yield _violation(invariant, id, "names results of others, and is not marked so", seq=seq)
            if missing := [ref for ref in refs if (seq, ref.bytes) not in named]:
                yield _violation(invariant, id, what, seq=seq, of=str(missing[0]), missing=len(missing))


def _pages(rows: Rows, sql: str, after: int) -> Iterator[Row]:
    return chain.from_iterable(_whole_pages(rows, sql, after))


def _whole_pages(rows: Rows, sql: str, after: int) -> Iterator[list[Row]]:
    while page := list(rows.ask(sql, after)):
        yield page
        after = page[-1][0]


def _violation(invariant: str, id: bytes, what: str, **figures: Any) -> Violation:
    return Violation(invariant=invariant, task=str(TaskId(id)), what=what, figures=figures)
