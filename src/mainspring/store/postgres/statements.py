"""The named statements of the .sql files beside this one."""

from __future__ import annotations

from typing import Final

from mainspring.store.sql.statements import named, read

SCHEMA: Final = read(__package__, "schema.sql")
SQL: Final = named(__package__, "queries.sql")
WITHIN: Final = named(__package__, "inbox.sql")
"""What runs in users' transactions."""
MIGRATIONS: Final = named(__package__, "migrations.sql")
WIDE: Final = frozenset(
    "insert_task insert_done insert_edge add_key complete_and_note again_many end_many hand_back insert_attempt "
    "add_tombstone join_flight keep".split()
)
"""They take a list for each of their columns."""
BESIDE_OTHERS: Final = WIDE - {"insert_edge", "add_tombstone", "join_flight", "keep"} | frozenset(
    "insert_alike complete_alike numbers find_class class_by_id add_class task_by_key tasks_by_keys task_by_id "
    "tombstone_by_id add_payload_blob unfinished heads heads_to_weigh still_ready ready_classes catch_up claim "
    "claim_of_class start complete held end again again_after_crash add_flags put_spec give_back attempt_is_there "
    "outcome_by_id any_waiting awaited having_children parent_results heirs_results promote next_events "
    "put_progress put_offer drop_offer claims_of take_inbox kept use_kept put_usage hold_limit held_in_group "
    "limits_after rate_used use_rate costs_of cost_used use_cost".split()
)
"""What transactions may do side by side: they write new rows, rows of their own claims, and ready rows that no other
has taken. Everything else reads what others may be changing."""
