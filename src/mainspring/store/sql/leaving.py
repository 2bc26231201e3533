"""What a process does last in its store."""

from __future__ import annotations

from typing import Any

from mainspring.store.base import CANCEL_ASKED
from mainspring.store.sql import commands
from mainspring.store.sql.transaction import Transaction
from mainspring.tasks.lifecycle import RUNNING


def hand_back(tx: Transaction, owner: int) -> None:
    """Give back whatever a process holds."""
    rows: list[Any]
    while rows := tx.run("held_by", owner, 500).fetchall():
        for seq, id, attempt, status, class_id, _, _, rank, flags in rows:
            tx.let_go(class_id, None if status == RUNNING else (seq, attempt))
            if flags & CANCEL_ASKED:
                commands.cancel_held(tx, seq, class_id, id)
            else:
                tx.must_change("give_back", 0, 0, 0, seq)
                tx.ready.add(class_id, (rank, seq))


def sign_off(tx: Transaction, owner: int, *, has_served: bool) -> None:
    """Be gone, with nothing held. A process that only looked or submitted is forgotten: no attempt names it."""
    tx.run("clear_serves", owner)
    tx.run("drop_usage", owner)
    tx.run("drop_offer", owner)
    if has_served:
        tx.run("end_worker", tx.now_ms, owner)
    else:
        tx.run("forget_worker", owner)
