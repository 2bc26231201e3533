"""What must hold when a simulated world has come to rest: in its store, and against what was seen."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import apsw
import msgspec

from mainspring.blobs.local import LocalBlobStore
from mainspring.store.base import BLOB_INPUT, BLOB_OUTPUT, SHARED, STANDS_FOR, WANTS_KEPT
from mainspring.tasks import ErrorInfo, Ref, TaskId
from mainspring.tasks.codec import decode_input, decode_output
from mainspring.tasks.lifecycle import COMPLETED, FAILED, TIMEOUT
from mainspring.testing.events import Started
from mainspring.testing.history import check_history
from mainspring.testing.simulator.clients import Known
from mainspring.testing.simulator.handlers import KEEP_S
from mainspring.testing.simulator.plans import action_of, origin
from mainspring.testing.simulator.world import World
from mainspring.testing.violation import Violation

_ENDS_WELL: Final = frozenset(("quick", "sleep", "stubborn", "progress", "hop", "memory"))
_TASKS = """SELECT seq, task.id, status, attempt, flags, crashes, retry_count, max_retries, input, output, error,
    ready_ms - max(not_before_ms, submitted_ms), ended_ms, type FROM task JOIN class ON class.id = class"""
_LATE_MS = 200
"""How late a delay may end where nothing goes wrong, beside what threads are waited for: well before a heartbeat."""


class Row(msgspec.Struct, array_like=True):
    seq: int
    id: bytes
    status: int
    attempt: int
    flags: int
    crashes: int
    retry_count: int
    max_retries: int
    input: bytes
    output: bytes | None
    error: bytes | None
    late_ms: int | None  # how long after its delay it became ready
    ended_ms: int | None
    type: str
    plan: dict[str, Any] = {}
    inputs: list[Any] = []
    value: Any = None  # where it completed with one of its own or of equal work

    @property
    def is_shared(self) -> bool:
        return bool(self.flags & SHARED)


class Verdict:
    def __init__(self, world: World, known: Known) -> None:
        self._world = world
        self._known = known
        self._blobs = LocalBlobStore(world.path.with_name(world.path.name + "-blobs"))

    def violations(self) -> list[Violation]:
        """Return what was seen and what is found now; nobody looks at the store's rows afterwards."""
        witness = self._world.witness
        assert witness.rows is not None
        found = [*witness.violations]
        found += check_history(
            witness.rows, history=witness.events, blobs=self._blobs, slack_ms=self._world.latest_start_ms
        )
        witness.violations.clear()
        if witness.rations is not None:
            begun = {(event.task, event.attempt) for event in witness.events if isinstance(event, Started)}
            witness.rations.judge_rates(begun, self._world.lives)
        self._check(witness.rows)
        witness.rows.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # the file is over too
        witness.rows.close()
        return found + witness.violations

    def _check(self, connection: apsw.Connection) -> None:
        rows = {row[1]: self._whole(Row(*row)) for row in connection.execute(_TASKS)}
        gone = {row[0] for row in connection.execute("SELECT id FROM tombstone")}
        renewed = {row[0] for row in connection.execute("SELECT id FROM retried JOIN task ON seq = retried.task")}
        children = {row[0] for row in connection.execute("SELECT child FROM edge")}
        for row in rows.values():
            if row.is_shared:
                self._check_shared(row, rows, gone)
            else:
                self._check_end(row)
                self._check_blame(row)
            self._check_inputs(row, rows)
            if not self._world.shape.faults and not self._world.shape.sleeps_s:
                self._check_delay(row, row.seq in children)
            self._check_kid(row, rows, gone)
        for row in rows.values():
            self._check_kids_are_there(row, rows, gone, renewed)
        for key, ids in self._known.by_key.items():
            if len([id for id in ids if id.bytes in rows and id.bytes not in renewed]) > 1:
                self._accuse("keys", None, "one key is several tasks", key=key, ids=sorted(str(id) for id in ids))

    def _accuse(self, invariant: str, row: Row | None, what: str, **figures: Any) -> None:
        task = None if row is None else str(TaskId(row.id))
        self._world.witness.accuse(invariant, task, what, **figures)

    def _whole(self, row: Row) -> Row:
        """Fetch what lives in blobs, and read the plan."""
        if row.flags & BLOB_INPUT:
            row.input = self._blobs.get(row.input.decode())
        if row.flags & BLOB_OUTPUT and row.output is not None:
            row.output = self._blobs.get(row.output.decode())
        arguments = decode_input(row.input).value  # type: ignore[union-attr]
        row.plan, row.inputs = arguments["plan"], arguments["inputs"]
        if row.output is not None and not row.flags & STANDS_FOR:
            row.value = getattr(decode_output(row.output), "value", None)
            if not isinstance(row.value, dict) or {"n", "id", "attempt", "got", "code"} - row.value.keys():
                self._accuse("one_outcome", row, "has a result that no handler makes", value=row.value)
                row.value = None
        return row

    def _check_end(self, row: Row) -> None:
        """It ended as its plan says for its last attempt."""
        action = action_of(row.plan, row.attempt)[0] if row.attempt else None
        if row.status == COMPLETED:
            if action not in _ENDS_WELL:
                self._accuse("one_outcome", row, "completed by what does not complete", action=action)
            if row.value is not None and origin(row.value) != [str(TaskId(row.id)), row.attempt]:
                self._accuse("fencing", row, "holds another attempt's result", attempt=row.attempt, value=row.value)
        elif row.status == FAILED and (str(TaskId(row.id)), row.attempt) in self._world.witness.spoilt:
            return
        elif row.status == FAILED and self._must_complete(row, action):
            self._accuse("one_outcome", row, "failed by what does not fail", action=action, error=_error(row))
        elif row.status == FAILED and action == "raise" and row.retry_count < row.max_retries:
            self._accuse(
                "charges", row, "failed with retries left", retries=row.retry_count, limit=row.max_retries,
                error=_error(row),
            )  # fmt: skip

    def _check_shared(self, row: Row, rows: dict[bytes, Row], gone: set[bytes]) -> None:
        """It ended as equal work did: whose result or failure this is did the same, and came to that by itself."""
        if row.status != COMPLETED:
            self._check_shared_failure(row, rows, gone)
            return
        if row.value is None:
            return
        id, attempt = origin(row.value)
        source = rows.get(TaskId(id).bytes)
        if source is None:
            if TaskId(id).bytes not in gone:
                self._accuse("cache", row, "has the result of a task that is not there", of=id)
            return
        if (source.type, source.plan, source.status, source.attempt, source.is_shared) != (
            row.type, row.plan, COMPLETED, attempt, False
        ):  # fmt: skip
            self._accuse("cache", row, "has a result that no equal work came to", of=id, attempt=attempt)
        code = row.value["code"]
        if code is not None and code not in self._world.witness.codes.get(str(TaskId(row.id)), ()):
            self._accuse("cache", row, "has a result of code that nobody asked for", of=id, code=code)
        self._check_age(row, source)

    def _check_shared_failure(self, row: Row, rows: dict[bytes, Row], gone: set[bytes]) -> None:
        equals = [one for one in rows.values() if one.type == row.type and one.plan == row.plan]
        by_itself = [one for one in equals if not one.is_shared and one.attempt and one.status == row.status]
        if row.status not in (FAILED, TIMEOUT):
            self._accuse("cache", row, "ended as nothing ends for others", status=row.status)
        if not gone and row.error not in [one.error for one in by_itself]:
            self._accuse("cache", row, "has the failure of no equal work", status=row.status, error=_error(row))
        if "deadline" in _error(row):
            self._accuse("cache", row, "has a failure that was not the work's", error=_error(row))

    def _check_age(self, row: Row, source: Row) -> None:
        """It was young enough for whoever took it; where something goes wrong nobody can say when it became known."""
        if {*self._world.shape.faults} - {"kill", "untold", "restart", "bells"}:
            return
        assert row.ended_ms is not None
        assert source.ended_ms is not None
        age_ms, limit_s = row.ended_ms - source.ended_ms, self._known.keep_s.get(TaskId(row.id), KEEP_S)
        if age_ms > limit_s * 1000 + self._late_ms:
            self._accuse("cache", row, "has a result that is too old", of=source.seq, age_ms=age_ms, limit_s=limit_s)

    def _check_inputs(self, row: Row, rows: dict[bytes, Row]) -> None:
        """A result was made of what the inputs stand for."""
        if row.value is None:
            return
        if len(row.inputs) != len(row.value["got"]):
            self._accuse("cache", row, "has a result of other inputs", got=row.value["got"])
            return
        for ref, got in zip(row.inputs, row.value["got"], strict=True):
            parent = rows.get(ref.id.bytes) if isinstance(ref, Ref) else None
            if parent is not None and parent.value is not None and got != origin(parent.value):
                self._accuse("cache", row, "has a result of other inputs", got=got, wants=origin(parent.value))

    def _must_complete(self, row: Row, action: str | None) -> bool:
        """Whether nothing but its plan can have ended it. Children that are to be stored at once may be refused."""
        blamed = _died(row) or "handed back unfinished" in _error(row)
        return action in _ENDS_WELL and not blamed and row.plan.get("how") != "now"

    def _check_delay(self, row: Row, has_parents: bool) -> None:
        """Its delay ended when it was to end, unless something else kept it."""
        if row.flags & WANTS_KEPT:  # it may have waited for equal work
            return
        if row.late_ms is not None and row.late_ms > self._late_ms and not has_parents and not row.retry_count:
            self._accuse("times", row, "its delay ended late", late_ms=row.late_ms)

    @property
    def _late_ms(self) -> int:
        return _LATE_MS + int(2_000 * self._world.machine.longest_lag_s)

    def _check_blame(self, row: Row) -> None:
        charged = row.crashes + (row.status == FAILED and _died(row))
        deaths = self._world.witness.lonely_deaths
        if charged > deaths.get(str(TaskId(row.id)), 0):
            self._accuse("blame", row, "was charged more crashes than it can have caused", charged=charged)

    def _check_kid(self, kid: Row, rows: dict[bytes, Row], gone: set[bytes]) -> None:
        """A child is there only with the outcome of the attempt that made it."""
        if "of" not in kid.plan:
            return
        parent, attempt = kid.plan["of"]
        row = rows.get(TaskId(parent).bytes)
        if row is None:
            if TaskId(parent).bytes not in gone:
                self._accuse("effects", kid, "its parent is not there", parent=parent)
        elif attempt and (row.status != COMPLETED or row.attempt != attempt):
            self._accuse(
                "effects", kid, "is the child of an attempt that did not complete", parent=parent, attempt=attempt,
                status=row.status, recorded=row.attempt,
            )  # fmt: skip

    def _check_kids_are_there(self, parent: Row, rows: dict[bytes, Row], gone: set[bytes], renewed: set[bytes]) -> None:
        """A parent that completed has all its children, each once."""
        if parent.status != COMPLETED or "kids" not in parent.plan or gone:
            return
        name = str(TaskId(parent.id))
        there = Counter(
            row.plan["n"] for row in rows.values() if row.plan.get("of", [None])[0] == name and row.id not in renewed
        )
        wanted = Counter(kid["n"] for kid in parent.plan["kids"])
        if there != wanted:
            self._accuse("effects", parent, "has other children than it made", has=dict(there), made=dict(wanted))


def _died(row: Row) -> bool:
    return "died while it ran alone" in _error(row)


def _error(row: Row) -> str:
    return "" if row.error is None else msgspec.msgpack.decode(row.error, type=ErrorInfo).message
