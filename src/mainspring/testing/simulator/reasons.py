"""Whether what is said of a task that does not run is true: held against the rows as they were before and after."""

from __future__ import annotations

import re
from math import ceil
from typing import Any, Final, NamedTuple

import apsw

from mainspring.engine import Engine
from mainspring.store.liveness import turned_s
from mainspring.store.sql.caretaker import SURELY_S
from mainspring.store.sqlite.store import SqliteStore
from mainspring.tasks import Rate, TaskId
from mainspring.tasks.lifecycle import STATUS_OF, STORED_REASONS
from mainspring.testing.simulator.witness import Witness

SIGNS: Final = {
    "running": "It runs:|It has run on",
    "ended": "It ended as",
    "parents": r"of its [\d,]+ parents",
    "delayed": "It is not to start before",
    "retry": r"^Attempt \d+ failed",
    "claimed": "has claimed it|waits in batch",
    "same_work": "qual work|the same work",
    "paused": "Its kind is paused",
    "no_worker": "No living worker (serves|takes)",
    "limit": r"^Group .*(is at its limit: \d+/\d+ are claimed or run;"
    r"|((are|is) used up|are left and the next one needs [\d,.]+); the next starts in [\d,.]+ \w+;)",
    "ready": "It is ready(, and worker .* runs alone| and)",
}
"""By what a sentence is known to name a cause."""
_STATES: Final = {
    "paused": "paused",
    "no_worker": "served by no living worker",
    "limit": "at a limit of group ",
    "retry": "waits for another try",
    "parents": "waits for ",
    "same_work": "waits for ",
}
"""How others are said to stand that are waited for; those that are not named here by their reason or status."""
_ASKED: Final = 4
_WAITING: Final = "SELECT id FROM task WHERE status = 0 ORDER BY seq LIMIT ?"
_NEXT: Final = "SELECT id FROM task WHERE reason = 0 ORDER BY seq DESC LIMIT 2"
_BEHIND: Final = """SELECT id FROM task WHERE reason = 1 AND waits_for IN (SELECT seq FROM task WHERE reason = 0)
    ORDER BY seq LIMIT 2"""
_TASK: Final = """SELECT task.seq, status, reason, attempt, namespace, type, grp
    FROM task JOIN class ON class.id = task.class WHERE task.id = ?"""
_PARENTS: Final = """SELECT task.id FROM edge JOIN task ON task.seq = edge.parent
    WHERE edge.child = ? AND task.status < 2 ORDER BY edge.n"""
_LEADER: Final = """SELECT task.id FROM flight AS mine JOIN flight AS leads ON leads.key = mine.key AND leads.leads = 1
    JOIN task ON task.seq = leads.task WHERE mine.task = ?"""
_PAUSE: Final = """SELECT namespace, type, grp, since_ms FROM pause
    WHERE namespace IN ('', ?) AND type IN ('', ?) AND grp IN ('', ?) ORDER BY since_ms"""
_SERVES: Final = """SELECT worker.name FROM serves JOIN worker ON worker.id = serves.worker
    LEFT JOIN offer ON offer.worker = worker.id
    WHERE serves.type = ? AND worker.ended_ms IS NULL
    AND coalesce(json_extract(CAST(offer.state AS TEXT), '$.stops'), 0) = 0 ORDER BY worker.id"""
_LIMITS: Final = """SELECT concurrency, rate, rate_ms, full_us, (
        SELECT count(*) FROM class JOIN task ON task.class = class.id
        WHERE class.grp = group_limit.grp AND group_limit.namespace IN ('', class.namespace)
        AND task.owner IS NOT NULL AND task.flags & 512)
    FROM group_limit WHERE grp = ?2 AND grp <> '' AND namespace IN ('', ?1)"""


_WAITS: Final = """SELECT namespace, type, grp, (rank, seq) < (?1, ?2), count(*), max(lane)
    FROM task JOIN class ON class.id = task.class JOIN handler USING (type)
    WHERE reason = 0 AND handler.version = (SELECT max(version) FROM handler AS newer WHERE newer.type = class.type)
    GROUP BY 1, 2, 3, 4"""
_WEIGHTS: Final = "SELECT namespace, grp, weight FROM group_limit WHERE weight IS NOT NULL"
_BESIDE: Final = """SELECT seq, class, owner FROM task WHERE status < 2
    UNION ALL SELECT namespace, type, grp FROM pause
    UNION ALL SELECT id, full_us, changed FROM group_limit"""
_FIRST: Final = re.compile(
    r"the next one in|([\d,]+) tasks? goe?s? first|with (another one|[\d,]+ others) in .*:"
    r" ([\d,]+) of its own and at most ([\d,]+) of theirs"
)


_UNHEARD: Final = re.compile(r"orker (\w+) (?:has claimed it, and )?has not been heard of")
_OPEN: Final = "SELECT name FROM worker WHERE ended_ms IS NULL"


class Truth(NamedTuple):
    """All that a sentence may rest on."""

    cause: str
    attempt: int
    others: tuple[bytes, ...]  # that it waits for
    first: str  # how the first of these stands
    rest: tuple[Any, ...]
    line: tuple[int, int, int]  # how many of its own share go first, other shares that wait, how many of theirs
    serving: frozenset[str]  # workers that take it
    silent: frozenset[str]  # workers that nobody has heard of


async def ask(engine: Engine, witness: Witness, task: TaskId) -> None:
    """Have a task and some of those that wait explained, and accuse what is not so."""
    store = engine.manager.store
    assert witness.rows is not None
    assert isinstance(store, SqliteStore)
    waiting = [*witness.rows.execute(_NEXT), *witness.rows.execute(_BEHIND), *witness.rows.execute(_WAITING, (_ASKED,))]
    for id in dict.fromkeys((task, *(TaskId(id) for (id,) in waiting))):
        before = _truth(witness.rows, id, store)
        said = await engine.scheduler.explain(id)
        after = _truth(witness.rows, id, store)
        named = [cause for cause, sign in SIGNS.items() if re.search(sign, _outer(said))]
        if len(named) != 1:
            witness.accuse("explain", str(id), "is not told by one cause", said=said, named=named)
        elif named[0] == "running" and before is not None and witness.has_begun(str(id), before.attempt):
            continue  # where it runs it is known before that is recorded
        elif before is not None and before == after and (why := _untrue(said, named[0], before)):
            witness.accuse("explain", str(id), why, said=said, cause=before.cause)


def _outer(said: str) -> str:
    """What errors say is no part of the sentence."""
    return re.sub(r"\(.*\)", "()", said)


def _untrue(said: str, named: str, truth: Truth) -> str:
    if named != truth.cause:
        return f"is said to be {named}"
    if not {TaskId(id) for id in truth.others[:3]} <= {
        TaskId(id) for id in re.findall(r"[0-9a-f]{8}(?:-\w+){4}", said)
    }:
        return "waits for others than is said"
    if truth.others and f"{TaskId(truth.others[0])} ({truth.first}" not in said:
        return f"waits for one that is {truth.first}"
    if named == "parents" and f"for {len(truth.others)} of" not in said:
        return "waits for another number of parents"
    if named == "ready" and " runs alone;" not in said and _line(said) != truth.line:
        return f"is told of others that go first than {truth.line}"
    unheard = set(_UNHEARD.findall(said))
    if not unheard <= truth.silent:
        return f"is told that others are not heard of than {sorted(truth.silent)}"
    if named == "ready" and " runs alone;" not in said and not unheard and truth.serving <= truth.silent:
        return "is not told that nobody who takes it is heard of"
    return ""


def _line(said: str) -> tuple[int, int, int]:
    found = _FIRST.search(said)
    if found is None:
        return -1, -1, -1
    alone, shares, own, theirs = (text and text.replace(",", "").removesuffix(" others") for text in found.groups())
    if shares is None:
        return int(alone or 0), 0, 0
    return int(own), 1 if shares == "another one" else int(shares), int(theirs)


def _truth(rows: apsw.Connection, id: TaskId, store: SqliteStore) -> Truth | None:
    row: Any = rows.execute(_TASK, (id.bytes,)).fetchone()
    if row is None:
        return None
    now_ms, told = store.now_ms(), store.told()
    leaving = told[0] if told is not None and told[1].stops else ""  # known where it stops before that is recorded
    cause, beside = _cause(rows, row, now_ms, leaving)
    others: tuple[bytes, ...] = ()
    if cause in ("parents", "same_work"):
        others = tuple(other for (other,) in rows.execute(_PARENTS if cause == "parents" else _LEADER, row[:1]))
    first = _state(rows, others[0], now_ms, leaving) if others else ""
    line = (0, 0, 0)
    if cause == "ready":
        line = _true_line(rows, row[0], now_ms)
    if others or cause == "ready":  # how these stand and what goes first may be another for a moment
        beside = (*beside, tuple(rows.execute(_BESIDE)))
    serving = frozenset(beside[1]) if cause == "ready" else frozenset()
    return Truth(cause, row[3], others, first, beside, line, serving, _silent(rows, store))


def _silent(rows: apsw.Connection, store: SqliteStore) -> frozenset[str]:
    """Return the workers whose writer has taken no turn for so long that they can't be well."""
    since_s = store.env.monotonic() - SURELY_S
    names = [name for (name,) in rows.execute(_OPEN) if name != store.worker_id]
    return frozenset(name for name in names if 0 < turned_s(store.folder / f"{name}.life") <= since_s)


def _state(rows: apsw.Connection, id: bytes, now_ms: int, leaving: str) -> str:
    """Return how a task is said to stand that is waited for."""
    row: Any = rows.execute(_TASK, (id,)).fetchone()
    cause, _ = _cause(rows, row, now_ms, leaving)
    return _STATES.get(cause, STATUS_OF[row[1]].value if cause == "ended" else cause)


def _cause(rows: apsw.Connection, row: Any, now_ms: int, leaving: str) -> tuple[str, tuple[Any, ...]]:
    """Return why a task does not run, and the rows beside its own that this rests on."""
    _, status, reason, _, namespace, kind, group = row
    if status:
        return "running" if status == 1 else "ended", ()
    pauses = tuple(rows.execute(_PAUSE, (namespace, kind, group)))
    served = tuple(worker for (worker,) in rows.execute(_SERVES, (kind,)) if worker != leaving)
    limits: list[Any] = rows.execute(_LIMITS, (namespace, group)).fetchall()
    full = tuple(limit for limit in limits if _is_full(limit, now_ms))
    cause = STORED_REASONS[reason]
    if cause == "ready":
        cause = "paused" if pauses else "no_worker" if not served else "limit" if full else "ready"
    return cause, (pauses, served, full)


def _true_line(rows: apsw.Connection, seq: int, now_ms: int) -> tuple[int, int, int]:
    """Count what waits in the lane of a task."""
    place: Any = rows.execute("SELECT rank, seq, class FROM task WHERE seq = ?", (seq,)).fetchone()
    mine: Any = rows.execute("SELECT namespace, type, grp FROM class WHERE id = ?", place[2:]).fetchone()
    weights: dict[Any, float] = {(namespace, group): weight for namespace, group, weight in rows.execute(_WEIGHTS)}

    def share_of(namespace: str, group: str) -> tuple[str, str]:
        if group and ((namespace, group) in weights or ("", group) in weights):
            return (namespace, group) if (namespace, group) in weights else ("", group)
        return (namespace, "") if (namespace, "") in weights else ("", "")

    waits: list[Any] = [
        row
        for row in rows.execute(_WAITS, place[:2])
        if not rows.execute(_PAUSE, row[:3]).fetchall()
        and not any(_is_full(limit, now_ms) for limit in rows.execute(_LIMITS, (row[0], row[2])))
    ]
    lane = next((row[5] for row in waits if row[1] == mine[1]), None)
    own = 0
    theirs: dict[tuple[str, str], int] = {}
    for namespace, _, group, is_first, n, in_lane in waits:
        if in_lane != lane:
            continue
        if (share := share_of(namespace, group)) != share_of(mine[0], mine[2]):
            theirs[share] = theirs.get(share, 0) + n
        elif is_first:
            own += n
    turn = (own + 1) / weights.get(share_of(mine[0], mine[2]), 1.0)
    return own, len(theirs), sum(min(n, ceil(turn * weights.get(share, 1.0))) for share, n in theirs.items())


def _is_full(limit: Any, now_ms: int) -> bool:
    concurrency, n, ms, full_us, held = limit
    if concurrency is not None and held >= concurrency:
        return True
    return n is not None and ms is not None and Rate(n, ms).left(full_us, now_ms * 1_000) <= 0
