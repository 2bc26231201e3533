"""The SQL itself: it parses, the hot part stands on indexes, and illegal rows are refused by the file."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

import mainspring
from mainspring.store.sqlite.statements import SCHEMA, SQL
from mainspring.tasks.lifecycle import (
    ALLOWED,
    CANCELLED,
    CLAIMED,
    COMPLETED,
    DELAYED,
    FAILED,
    PARENTS,
    REASON_CODE,
    RETRY,
    RUNNING,
    STATUS_CODE,
    STATUS_OF,
    STORED_REASONS,
    TIMEOUT,
    TRANSITIONS,
    State,
)

HOT = (
    "insert_task last_seq task_by_id insert_edge find_class task_by_key add_key add_tally unfinished heads "
    "next_ready_class ready_class_after claim claim_of_class start complete complete_many held end end_many again "
    "again_many again_after_crash give_back hand_back insert_attempt any_waiting waiting_on edge_of wait_on "
    "release_children delay_children children_after fail_children awaited having_children all_children_of raise_ranks "
    "parents_of_all hasten parents_of parent_results stood_for promote next_due overdue next_deadline heirs_results "
    "lacks_parent state_by_id outcome_by_id held_by put_progress with_live_child stand_for_these prune_tasks prunable "
    "old_tombstone prune_attempts prune_edges prune_keys prune_progress prune_stands_for prune_payload_blobs "
    "prune_retried blob_in_use whole_task attempts_of parents_ids retry_links depends_on next_cascade add_news "
    "span_of_news news_after drop_news another_worker status_and_id class_and_id retried_as edges_of known_id "
    "asked_to_stop timeouts_of note_cancel to_renew copy_payload_blobs insert_done kept use_kept keep kept_bytes "
    "drop_expired leaders leaders_of leader_of join_flight leave_flights awaited_work held_in_group newest_limit "
    "limits_after rate_used use_rate costs_of cost_used use_cost lead_flight followers follow take_lead add_flags "
    "put_spec urgent_follower share share_failure heads_to_weigh still_ready"
).split()


@pytest.fixture
def connection() -> Iterator[apsw.Connection]:
    connection = apsw.Connection(":memory:")
    connection.execute(SCHEMA)
    yield connection
    connection.close()


def plan(connection: apsw.Connection, name: str) -> list[str]:
    sql = SQL[name]
    numbers = {int(n) for n in re.findall(r"\?(\d+)", sql)}
    count = max(numbers) if numbers else sql.count("?")
    return [row[3] for row in connection.execute("EXPLAIN QUERY PLAN " + sql, (None,) * count)]


@pytest.mark.parametrize("name", SQL)
def test_every_statement_fits_the_schema(connection: apsw.Connection, name: str) -> None:
    """Each named statement compiles against the schema that new files get."""
    plan(connection, name)


@pytest.mark.parametrize("name", [name for name in HOT if name in SQL])
def test_hot_statements_stand_on_indexes(connection: apsw.Connection, name: str) -> None:
    """Nothing that runs for each task, claim or end looks at all rows or sorts: its cost doesn't grow with the
    queue."""
    steps = plan(connection, name)
    big = r"\bSCAN (task|edge|attempt|idempotency|tombstone|stands_for|retried|payload_blob|news|worker|cache|flight)\b"
    whole = [step for step in steps if re.search(big, step) and not re.search(r"USING (COVERING )?INDEX", step)]
    assert whole == []
    assert not [step for step in steps if "TEMP B-TREE" in step and "json_each" not in SQL[name]]


def test_the_hot_list_is_current() -> None:
    """It names statements that exist."""
    assert set(HOT) - set(SQL) == set()


def test_claims_and_looks_use_partial_indexes(connection: apsw.Connection) -> None:
    """The ready index serves the claim, the due and deadline indexes the clock, the waiting index the ends of
    parents."""
    for name, index in {
        "heads": "task_ready",
        "next_ready_class": "task_ready",
        "claim_of_class": "task_ready",
        "promote": "task_due",
        "next_due": "task_due",
        "overdue": "task_deadline",
        "next_deadline": "task_deadline",
        "waiting_on": "task_waits",
        "any_waiting": "task_waits",
        "held_by": "task_held",
        "held_in_group": "task_slot",
    }.items():
        assert any(index in step for step in plan(connection, name)), name


def test_claims_go_on_from_a_place(connection: apsw.Connection) -> None:
    """Those that look at each task pass by none of the same rank that they have looked at before."""
    assert plan(connection, "heads_to_weigh") == [
        "MERGE (UNION ALL)",
        "LEFT",
        "SEARCH task USING INDEX task_ready (class=? AND rank=? AND seq>?)",
        "RIGHT",
        "SEARCH task USING INDEX task_ready (class=? AND rank>?)",
    ]


def test_the_size_of_what_is_kept_is_one_row(connection: apsw.Connection) -> None:
    """However many results are kept, each look at their limit reads one number."""
    assert plan(connection, "kept_bytes") == ["SCAN kept_size"]
    assert connection.execute("SELECT count(*) FROM kept_size").get == 1


# The CHECKs against the lifecycle table

LEGAL = {
    (None if state.reason is None else STORED_REASONS.index(state.reason), STATUS_CODE[state.status])
    for item in TRANSITIONS
    for state in (item.after,)
}


def row_is_legal(
    status: int, reason: int | None, held: bool, due: bool, waits: bool, ended: bool, output: bool
) -> bool:
    """What the lifecycle table means for the columns."""
    return (
        (reason, status) in LEGAL
        and held == (status == RUNNING or reason == CLAIMED)
        and due == (reason in (DELAYED, RETRY))
        and waits == (reason == PARENTS)
        and ended == STATUS_OF[status].is_final
        and output == (STATUS_OF[status].value == "completed")
    )


def test_the_file_takes_legal_rows_only(connection: apsw.Connection) -> None:
    """Of all combinations of status, reason, holder, due time, awaited parent, end and output, the file takes exactly
    those that the lifecycle table knows."""
    insert = """INSERT INTO task (id, class, rank, status, reason, owner, due_ms, waits_for, ended_ms, output, priority,
        max_retries, submitted_ms, ready_ms, input) VALUES (randomblob(16), 1, 0, ?, ?, ?, ?, ?, ?, ?, 1, 3, 0, 0,
        x'')"""
    for status, reason, *flags in itertools.product(range(6), [None, *range(6)], *([[False, True]] * 5)):
        held, due, waits, ended, output = flags
        values = (status, reason, 1 if held else None, 5 if due else None, 7 if waits else None, 9 if ended else None,
                  b"x" if output else None)  # fmt: skip
        try:
            connection.execute(insert, values)
            taken = True
        except apsw.ConstraintError:
            taken = False
        assert taken == row_is_legal(status, reason, *flags), (status, reason, flags)


# The guards against the lifecycle table

CLAIM = (1, 1, 7)  # seq, attempt, owner
MOVES: dict[str, list[tuple[object, ...]]] = {
    "claim": [(7, "[1]")],
    "claim_of_class": [(7, 1, 5)],
    "start": [CLAIM],
    "complete": [(9, b"x", 0, *CLAIM)],
    "complete_many": [(9, b"x", 0, *CLAIM)],
    "end": [(status, 9, b"x", 1) for status in range(6)],
    "end_many": [(status, 9, b"x", *CLAIM) for status in range(6)],
    "again": [(5, b"x", 1)],
    "again_many": [(5, b"x", 0, *CLAIM, None)],
    "again_after_crash": [(5, b"x", 0, 1)],
    "give_back": [(0, 0, 0, 1)],
    "hand_back": [CLAIM],
    "fail_children": [(status, 9, b"x", "[1]") for status in (FAILED, CANCELLED)],
    "release_children": [(9, "[1]")],
    "delay_children": [("[1]",)],
    "promote": [(9, 9, 1)],
    "follow": [CLAIM],
    "take_lead": [(0, 9, 1)],
    "share": [(9, b"x", 0, "[1]")],
    "share_failure": [(status, 9, b"x", 0, "[1]") for status in (FAILED, TIMEOUT)],
}
"""All statements that write a status or a reason, with values that fit the one task there is."""


def state(connection: apsw.Connection) -> State:
    row: Any = connection.execute("SELECT status, reason FROM task").fetchone()
    return State(STATUS_OF[row[0]], None if row[1] is None else STORED_REASONS[row[1]])


def test_all_statements_that_move_a_task_are_known() -> None:
    """No other named statement writes a status or a reason, and no statement without a name does."""
    writing = re.compile(r"UPDATE task SET.*\b(status|reason) = ", re.DOTALL)
    assert {name for name, sql in SQL.items() if writing.match(sql.split("WHERE")[0])} == set(MOVES)
    sources = Path(mainspring.__file__).parent.rglob("*.py")
    assert not [path for path in sources if re.search(r"UPDATE task SET (?!flags)", path.read_text(encoding="utf-8"))]


def test_the_guards_allow_what_the_lifecycle_table_does(connection: apsw.Connection) -> None:
    """From every state each statement leads where the table says, or nowhere: what is not in the table is refused by a
    guard or a CHECK, and each move that is in it has a statement."""
    insert = """INSERT INTO task (seq, id, class, rank, status, reason, attempt, owner, due_ms, waits_for, ended_ms,
        output, not_before_ms, priority, max_retries, submitted_ms, ready_ms, input)
        VALUES (1, randomblob(16), 1, 0, ?, ?, 1, ?, ?, ?, ?, ?, 5, 1, 3, 0, 0, x'')"""
    moved = set()
    for before in {item.after for item in TRANSITIONS}:
        status, reason = STATUS_CODE[before.status], None if before.reason is None else REASON_CODE[before.reason]
        held, due, waits = status == RUNNING or reason == CLAIMED, reason in (DELAYED, RETRY), reason == PARENTS
        values = (status, reason, 7 if held else None, 5 if due else None, 3 if waits else None,
                  9 if before.status.is_final else None, b"x" if status == COMPLETED else None)  # fmt: skip
        for name, calls in MOVES.items():
            for call in calls:
                connection.execute("DELETE FROM task")
                connection.execute(insert, values)
                with contextlib.suppress(apsw.ConstraintError):
                    connection.execute(SQL[name], call).fetchall()
                if (after := state(connection)) != before:
                    moved.add((before, after))
    assert moved == {(before, after) for before, after in ALLOWED if before is not None}


@pytest.mark.parametrize("column", ["status", "reason", "priority"])
def test_unknown_codes_are_refused(connection: apsw.Connection, column: str) -> None:
    """A code that no version has given a meaning can't be written."""
    connection.execute(
        "INSERT INTO task (id, class, rank, status, reason, priority, max_retries, submitted_ms, ready_ms, input) "
        "VALUES (randomblob(16), 1, 0, 0, 0, 1, 3, 0, 0, x'')"
    )
    for value in (-1, 17):
        with pytest.raises(apsw.ConstraintError):
            connection.execute(f"UPDATE task SET {column} = {value}")
