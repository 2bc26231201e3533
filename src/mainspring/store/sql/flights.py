"""Equal work: a result that is kept is not computed again, and what is under way runs once.

Of tasks whose work has the same key one leads: it is the one that runs. The others follow: PENDING (same_work) until it
ends. They have its result or its final failure; where it has neither for them (cancelled, out of time, more came of it
than a value) the best of them leads next.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain, islice
from typing import NamedTuple

from mainspring.store.base import BLOB_OUTPUT, LEADS, SHARED, URGENT, Claimed, Ended, NewTask, WorkName
from mainspring.store.sql.transaction import Row, Transaction, first
from mainspring.tasks.codec import is_output
from mainspring.tasks.lifecycle import COMPLETED

logger = logging.getLogger("mainspring.store")

SHARE = 1_000
"""Tasks that one end ends with it. Where more wait, the best of the rest leads, finds the result kept, and goes on."""
_PAGE = 256
_USE_STEP_MS = 60_000
"""Use of a result is noted this often: what was not used for longest goes first."""

End = tuple[int, int, bytes]
"""(seq, status, id)"""


class Result(NamedTuple):
    """What may be kept."""

    work: WorkName
    namespace: str
    type: str
    output: bytes
    flags: int  # BLOB_OUTPUT or 0
    bytes: int


class Failure(NamedTuple):
    status: int
    error: bytes
    work: WorkName | None  # None where nobody knows what code it was


class Found(NamedTuple):
    """A kept result."""

    output: bytes
    flags: int
    made_ms: int
    used_ms: int


class Leader(NamedTuple):
    seq: int
    rank: int
    is_urgent: bool = False  # or somebody urgent is known to wait for it


def kept(tx: Transaction, works: Sequence[bytes]) -> dict[bytes, Found]:
    """Return what is kept of these, by key; what has grown too old in general is not, nor is what can't be read."""
    rows = [(bytes(row[0]), Found(*row[1:])) for row in tx.run("kept", tx.listed_keys(works), tx.now_ms)]
    return {key: found for key, found in rows if found.flags & BLOB_OUTPUT or is_output(found.output)}


def leaders(tx: Transaction, works: Sequence[bytes]) -> dict[bytes, Leader]:
    return {bytes(row[0]): Leader(row[1], row[2]) for row in tx.run("leaders", tx.listed_keys(works))}


def use(tx: Transaction, work: bytes, found: Found) -> None:
    if found.used_ms < tx.now_ms - _USE_STEP_MS:
        tx.run("use_kept", tx.now_ms, work)


def is_fresh(tx: Transaction, found: Found, keep_ms: int) -> bool:
    return found.made_ms > tx.now_ms - keep_ms


def is_whole(tx: Transaction, work: bytes, found: Found) -> bool:
    """Whether a result's value can be read; one that has lost its blob is forgotten."""
    fault = tx.memory.blob_fault(found.output.decode(errors="replace")) if found.flags & BLOB_OUTPUT else None
    if fault is not None:
        tx.run("drop_kept", work, found.made_ms)
        logger.warning("a kept result can't be read and is forgotten, its work is done again: %s", fault)
    return fault is None


class Entrance:
    """How the new tasks of one call stand to what is kept and under way. They are asked for in order."""

    def __init__(self, tx: Transaction, tasks: Sequence[NewTask]) -> None:
        self._tx = tx
        self._coming = iter([task.work for task in tasks if task.work is not None])
        self._kept: dict[bytes, Found] = {}
        self._leaders: dict[bytes, Leader] = {}
        self._page: set[bytes] = set()
        self._asked: set[bytes] = set()  # who leads

    def result_for(self, task: NewTask) -> Found | None:
        """Return a kept result that will do."""
        work = task.work
        assert work is not None
        if work not in self._page:
            self._page = {work, *islice(self._coming, _PAGE)}
            self._kept = kept(self._tx, list(self._page))  # a page at a time: they may be large
        found = self._kept.get(work)
        if found is None or not is_fresh(self._tx, found, task.keep_ms):
            return None
        if not is_whole(self._tx, work, found):
            del self._kept[work]
            return None
        use(self._tx, work, found)
        return found

    def leader_for(self, work: bytes) -> Leader | None:
        if work not in self._asked:
            wanted = {work, *self._page} - self._asked
            self._asked |= wanted
            self._leaders.update(leaders(self._tx, list(wanted)))
        return self._leaders.get(work)

    def leads(self, work: bytes, leader: Leader) -> None:
        self._leaders[work] = leader


def leave(tx: Transaction, ends: Sequence[tuple[int, Result | Failure | None]]) -> list[End]:
    """Tasks have ended, (seq, what equal work may have of it): where one leads equal work, that ends with it or goes on
    without it; returns what ended."""
    left = _leave(tx, [seq for seq, _ in ends])
    if not left:
        return []
    flown = [(end, *left[seq]) for seq, end in ends if seq in left]
    led = {key: end for end, key, leads, _ in flown if leads}
    awaited = {bytes(row[0]): row[1] for row in tx.run("awaited_work", tx.listed_keys(list(led)))} if led else {}
    results = [(end, key, keep_ms) for end, key, _, keep_ms in flown if keep_ms and isinstance(end, Result)]
    _keep(tx, [(end, max(ms, awaited.get(key, 0)) if key == end.work.key else ms) for end, key, ms in results])
    return list(chain.from_iterable([_go_on(tx, key, led[key]) for key in awaited]))


def _leave(tx: Transaction, seqs: Sequence[int]) -> dict[int, tuple[bytes, int, int]]:
    """Take these tasks out of what is under way; returns (key, whether it leads, for how long it is to be kept)."""
    rows = tx.run("leave_flights", tx.listed(seqs)).fetchall()
    return {row[0]: (bytes(row[1]), row[2], row[3]) for row in rows}


def _go_on(tx: Transaction, key: bytes, end: Result | Failure | None) -> list[End]:
    """Nobody leads this work any more, and some wait for it: they have what the task that led it came to, unless other
    code did that than they have asked for."""
    ends: list[End] = []
    if isinstance(end, Result) and end.work.key == key:
        ends = share(tx, key, end.output, end.flags)
    elif isinstance(end, Failure) and (end.work is None or end.work.key == key):
        ends = _share_failure(tx, key, end)
    _elect(tx, key, has_result=len(ends) == SHARE)  # a failure leaves nobody
    return ends


def _keep(tx: Transaction, results: Sequence[tuple[Result, int]]) -> None:
    """Keep results, each for so many ms."""
    now = tx.now_ms
    rows = {
        result.work.key: (
            result.work.key, result.namespace, result.type, result.work.version, result.output, result.flags,
            result.output.decode() if result.flags else None, result.bytes, now, now + keep_ms, now,
        )
        for result, keep_ms in results
        if result.bytes <= tx.memory.cache_bytes
    }  # fmt: skip
    if rows:
        tx.run_wide("keep", list(rows.values()))


def share(tx: Transaction, key: bytes, output: bytes, flags: int) -> list[End]:
    """Give a result to those who wait for it."""
    waiting = tx.run("followers", key, SHARE).fetchall()
    if not waiting:
        return []
    seqs = tx.listed([row[0] for row in waiting])
    flags |= SHARED
    tx.must_change_all("share", len(waiting), tx.now_ms, output, flags, seqs)
    _leave(tx, [row[0] for row in waiting])
    if flags & BLOB_OUTPUT:
        tx.run_many("add_payload_blob", ((output.decode(), row[0]) for row in waiting))
    return _told(tx, waiting, COMPLETED, output, flags, None)


def _share_failure(tx: Transaction, key: bytes, failure: Failure) -> list[End]:
    ends: list[End] = []
    while waiting := tx.run("followers", key, SHARE).fetchall():
        seqs = tx.listed([row[0] for row in waiting])
        tx.must_change_all("share_failure", len(waiting), failure.status, tx.now_ms, failure.error, SHARED, seqs)
        _leave(tx, [row[0] for row in waiting])
        ends += _told(tx, waiting, failure.status, None, 0, failure.error)
    return ends


def _told(
    tx: Transaction, rows: Sequence[Row], status: int, output: bytes | None, flags: int, error: bytes | None
) -> list[End]:
    for _, id, class_id in rows:
        tx.count(class_id, 0, -1)
        tx.count(class_id, status)
        tx.ended.append(Ended(id, status, output, flags, error))
    return [(seq, status, id) for seq, id, _ in rows]


def _elect(tx: Transaction, key: bytes, *, has_result: bool) -> None:
    """Let the best of those who still wait lead. Where there is a result it looks for that before it runs."""
    best = tx.one("best_follower", key)
    if best is None:
        return
    seq, class_id, rank = best
    flags = (0 if has_result else LEADS) | (0 if tx.one("urgent_follower", key) is None else URGENT)
    tx.must_change("take_lead", flags, tx.now_ms, seq)
    tx.run("lead_flight", seq)
    tx.ready.add(class_id, (rank, seq))


def join(tx: Transaction, claim: Claimed, keep_ms: int) -> tuple[str, Leader | None, list[End]]:
    """Compare a held task that has not begun with equal work; see `Store.join`. Its caller has looked that it is held.

    Returns: the answer, whom it follows with the rank that one needs, and what ended.
    """
    assert claim.work is not None
    key = claim.work.key
    leader = None
    for listed, seq, rank in tx.run("flights_of", key, claim.seq).fetchall():
        if bytes(listed) == key:
            leader = Leader(seq, rank)
        else:  # other code has it now than those have asked for that it was to go on for
            _leave(tx, [seq])
            _elect(tx, bytes(listed), has_result=True)
    found = kept(tx, [key]).get(key)
    if found is not None and is_fresh(tx, found, keep_ms) and is_whole(tx, key, found):
        use(tx, key, found)
        tx.look_up(claim.class_key[1], "hit")
        return "over", None, _take_result(tx, claim, found)
    if leader is not None and leader.seq != claim.seq:
        tx.look_up(claim.class_key[1], "joined")
        rank = first(tx.run("follow", claim.seq, claim.attempt, claim.owner))[0]  # it may have risen since the claim
        tx.run("join_flight", claim.seq, key, 0, keep_ms)
        return "over", Leader(leader.seq, rank), []
    tx.look_up(claim.class_key[1], "miss")
    tx.must_change("add_flags", LEADS, claim.seq)
    if leader is None:
        tx.run("join_flight", claim.seq, key, 1, keep_ms)
    return "leads", None, []


def _take_result(tx: Transaction, claim: Claimed, found: Found) -> list[End]:
    flags = found.flags | SHARED
    tx.must_change("complete", tx.now_ms, found.output, flags, claim.seq, claim.attempt, claim.owner)
    if flags & BLOB_OUTPUT:
        tx.run("add_payload_blob", found.output.decode(), claim.seq)
    class_id = first(tx.run("class_and_id", claim.seq))[0]
    ends = _told(tx, [(claim.seq, claim.id, class_id)], COMPLETED, found.output, flags, None)
    if left := _leave(tx, [claim.seq]):  # it leads those that were too many to end with the task before
        key = left[claim.seq][0]
        ends += share(tx, key, found.output, found.flags)
        _elect(tx, key, has_result=True)
    return ends
