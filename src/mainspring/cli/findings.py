"""What `doctor` makes of what it sees: pure rules from facts to findings, each with its remedy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from mainspring.cli.screen import size, span
from mainspring.config import MIB, StoreConfig, TaskManagerConfig, seconds
from mainspring.store.moving.marks import Mark, arriving, moved_away
from mainspring.store.sqlite.connection import SCHEMA_VERSION
from mainspring.store.sqlite.inspection import COUNT_LIMIT, ClassFacts, Facts, HandlerFacts, WorkerFacts
from mainspring.testing import Violation

Level = Literal["problem", "warning", "note"]

GRACE_S: Final = seconds(TaskManagerConfig().grace_s, "grace_s")
TURN_S: Final = 2.0
"""A loop that does not turn for this long is silent."""
_DRAIN_S: Final = seconds(TaskManagerConfig().drain_s, "drain_s")
_LATE_S: Final = 5.0
_LONG_WAIT_S: Final = 60.0
_DRIFT_MS: Final = 1_000
_MENDED_IN: Final[Mapping[tuple[int, ...], int]] = {(3, 44): 6, (3, 50): 7}
_WAL_RESET: Final = "https://sqlite.org/wal.html#walresetbug"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something to know (note), to attend to (warning), or that is broken (problem)."""

    level: Level
    about: str
    what: str
    remedy: str
    figures: dict[str, Any] = {}


def findings(facts: Facts, versions: Mapping[str, str]) -> Iterator[Finding]:
    """Yield all that the facts give reason to say."""
    yield from _versions(versions)
    yield from _file(facts)
    yield from _workers(facts)
    yield from _upkeep(facts)
    yield from _queue(facts)
    yield from _handlers(facts)
    yield from _clock(facts)


def damage(found: Sequence[str]) -> Iterator[Finding]:
    """What the integrity check says."""
    for line in found:
        yield Finding(
            level="problem",
            about="integrity",
            what=f"StoreDamaged: {line}",
            remedy="stop the workers, keep a copy of the file, and restore a backup (`mainspring restore`)",
        )


def broken(found: Sequence[Violation]) -> Iterator[Finding]:
    """What breaks an invariant."""
    report = "keep a copy of the file and report this; a backup from before is the safe way back"
    put_back = "put its file back from a backup (it is named by the digest); tasks that need it fail until then"
    for item in found:
        yield Finding(
            level="problem",
            about=f"invariant {item.invariant}",
            what=str(item),
            remedy=put_back if item.invariant == "blobs" else report,
            figures=item.figures,
        )


def moves(marks: Sequence[Mark]) -> Iterator[Finding]:
    """Why no engine opens this store: its tasks are elsewhere, or are still on their way here."""
    if (away := moved_away(marks)) is not None:
        yield Finding(
            level="warning",
            about="move",
            what=f"its tasks were moved to {away.other}",
            remedy="open that one: no engine opens this store any more",
        )
    elif (coming := arriving(marks)) is not None:
        yield Finding(
            level="warning",
            about="move",
            what=f"it is being filled from {coming.other} and is not whole yet",
            remedy="let `mainspring migrate` come to its end, or run it again",
        )


def _versions(versions: Mapping[str, str]) -> Iterator[Finding]:
    if _can_corrupt(versions["sqlite"]):
        yield Finding(
            level="warning",
            about="versions",
            what=f"SQLite {versions['sqlite']} can corrupt a write-ahead log that several processes use ({_WAL_RESET})",
            remedy="install a newer apsw: 3.51.3 is the first that brings a sound one",
        )


def _can_corrupt(version: str) -> bool:
    number = tuple(int(part) for part in version.split("."))
    mended_in = _MENDED_IN.get(number[:2])
    return number < (3, 51, 3) and (mended_in is None or number[2] < mended_in)


def _file(facts: Facts) -> Iterator[Finding]:
    file = facts.file
    if file.names > 1:
        yield Finding(
            level="warning",
            about="file",
            what=f"the file has {file.names} names (hard links)",
            remedy="keep one: a process that opens it by another name does not find its log",
        )
    if file.schema < SCHEMA_VERSION:
        yield Finding(
            level="note",
            about="file",
            what=f"schema {file.schema} is that of an older version; the next opening makes it {SCHEMA_VERSION}",
            remedy="stop the workers of the older version and take a backup first: it can't open the file afterwards",
        )
    share = file.disk_free_bytes / file.disk_bytes if file.disk_bytes else 1.0
    if share < 0.10:
        full = share < 0.05
        yield Finding(
            level="warning",
            about="disk",
            what=f"{size(file.disk_free_bytes)} ({share:.0%}) of the disk are free"
            + ("; submits are refused below 5 %" if full else ""),
            remedy="free space, or move the store to a larger disk (`mainspring backup`, then `restore` there)",
            figures={"free_bytes": file.disk_free_bytes, "disk_bytes": file.disk_bytes},
        )
    limit = StoreConfig().wal_limit_bytes
    if file.log_bytes > limit:
        yield Finding(
            level="warning",
            about="log",
            what=f"the write-ahead log has {size(file.log_bytes)}, more than {size(limit)}",
            remedy="somebody reads for very long: end long looks at the file (backups, sqlite3 shells, scripts); "
            "it shrinks by itself then",
            figures={"log_bytes": file.log_bytes},
        )
    free = file.free_pages * file.page_size
    if free > 64 * MIB and file.free_pages * 2 > file.pages:
        yield Finding(
            level="note",
            about="file",
            what=f"{size(free)} of the file's {size(file.bytes)} are free inside; they are used before it grows",
            remedy="whoever leads gives them back to the disk in steps; a file made by an early version shrinks by a "
            "restore of `mainspring backup --compact`",
            figures={"free_bytes": free, "file_bytes": file.bytes},
        )


def _workers(facts: Facts) -> Iterator[Finding]:
    for worker in facts.workers:
        who = f"worker {worker.name} (pid {worker.pid})"
        if not worker.is_here and not worker.is_alive:
            yield Finding(
                level="warning",
                about="workers",
                what=f"{who} was started on {worker.host}, which is not this machine, and holds no lock here",
                remedy="open a store from one machine alone: locks do not reach another, so its claims pass for lost",
            )
        elif not worker.is_alive:
            yield _dead(who, worker)
        elif worker.has_file is False:
            yield Finding(
                level="problem",
                about="workers",
                what=f"{who} has another file open than the one that is here now, and records its work there",
                remedy="stop it: the file was moved or replaced under it",
            )
        elif worker.turns is False:
            yield _silent(who, worker, facts)
    for name in facts.strangers:
        yield Finding(
            level="problem",
            about="workers",
            what=f"process {name} lives beside this store and does not stand in it",
            remedy="find and stop it (`lsof` on the store's `-live` folder): the file was replaced under it",
        )


def _dead(who: str, worker: WorkerFacts) -> Finding:
    return Finding(
        level="warning" if worker.held else "note",
        about="workers",
        what=f"{who} died and holds {worker.held} claims that nobody has taken back",
        remedy="start a worker: whoever opens the store takes them back at once",
        figures={"held": worker.held},
    )


def _silent(who: str, worker: WorkerFacts, facts: Facts) -> Finding:
    over = [item for item in facts.overruns if item.worker == worker.name]
    tasks = ", ".join(f"{item.task} ({item.type}, timeout {span(item.timeout_ms / 1000)})" for item in over[:3])
    return Finding(
        level="warning",
        about="workers",
        what=f"{who} lives and is silent: its loop did not turn for {TURN_S:.0f} s; it holds {worker.held} claims"
        + (f", {len(over)} perhaps past their timeout: {tasks}" if over else ""),
        remedy="a handler blocks it (`py-spy dump --pid` says which): give that one lane='thread' or 'process'; "
        "killing the process is safe, its claims are then taken back",
        figures={"held": worker.held, "past_timeout": len(over)},
    )


def _upkeep(facts: Facts) -> Iterator[Finding]:
    alive = any(worker.is_alive for worker in facts.workers)
    if not facts.is_led:
        yield Finding(
            level="warning",
            about="upkeep",
            what="processes are alive and none leads: nobody takes back what dead ones held, or prunes",
            remedy="look at their logs for 'upkeep'; restart one of them",
        )
    late_s = 0.0 if facts.late_ms is None else (facts.now_ms - facts.late_ms) / 1000
    if alive and late_s > _LATE_S:
        yield Finding(
            level="warning",
            about="upkeep",
            what=f"a delay or deadline that fell due {span(late_s)} ago still waits",
            remedy="whoever has the store open should have seen to it: look at their logs; a silent one is named above",
            figures={"late_s": late_s},
        )
    if facts.travelling and not alive:
        yield Finding(
            level="note",
            about="upkeep",
            what=f"{facts.travelling} ends have not reached all that depend on them",
            remedy="nothing to do: whoever opens the store goes on with it",
        )


def _queue(facts: Facts) -> Iterator[Finding]:
    alive = [worker for worker in facts.workers if worker.is_alive]
    if facts.unfinished and not any(worker.types for worker in alive):
        yield Finding(
            level="warning",
            about="queue",
            what=f"{facts.unfinished:,} tasks are unfinished and no worker is alive",
            remedy="start one: `mainspring worker app.py:engine`",
            figures={"unfinished": facts.unfinished},
        )
        return
    for kind in facts.classes:
        yield from _class(kind, [worker for worker in alive if kind.type in worker.types], facts)


def _class(kind: ClassFacts, serving: Sequence[WorkerFacts], facts: Facts) -> Iterator[Finding]:
    named = (("group", kind.group), ("namespace", kind.namespace))
    name = ", ".join([kind.type, *(f"{what} {value}" for what, value in named if value not in ("", "default"))])
    count = f"{kind.ready:,}{'+' if kind.ready >= COUNT_LIMIT else ''}"
    waited_s = 0.0 if kind.ready_since_ms is None else (facts.now_ms - kind.ready_since_ms) / 1000
    figures = {"unfinished": kind.unfinished, "ready": kind.ready, "next_has_waited_s": round(waited_s, 1)}
    if kind.pause is not None:
        yield Finding(
            level="note",
            about="queue",
            what=f"{name}: {kind.unfinished:,} unfinished, paused ({kind.pause})",
            remedy="`mainspring resume` with the same options lets them start",
            figures=figures,
        )
    elif not serving:
        yield Finding(
            level="warning",
            about="queue",
            what=f"{name}: {kind.unfinished:,} unfinished, and no living worker serves that type",
            remedy="start a worker whose module declares it",
            figures=figures,
        )
    elif waited_s > _LATE_S and not any(worker.held for worker in serving):
        yield Finding(
            level="warning",
            about="queue",
            what=f"{name}: {count} ready, the next one for {span(waited_s)}, and the workers that serve it do nothing",
            remedy="look at their logs; a silent one is named above; restarting them is safe",
            figures=figures,
        )
    elif waited_s > _LONG_WAIT_S:
        yield Finding(
            level="note",
            about="queue",
            what=f"{name}: {count} ready, the next one for {span(waited_s)}; all slots that serve it are busy",
            remedy="more slots or workers shorten the wait",
            figures=figures,
        )


def _handlers(facts: Facts) -> Iterator[Finding]:
    """What living workers declare, as far as the store tells: rows that none of them has written are history."""
    for kind in sorted({handler.type for handler in facts.handlers}):
        since = [worker.started_ms for worker in facts.workers if worker.is_alive and kind in worker.types]
        if since:
            yield from _declared([h for h in facts.handlers if h.type == kind and h.seen_ms >= min(since)])


def _declared(handlers: Sequence[HandlerFacts]) -> Iterator[Finding]:
    if len(handlers) > 1:
        shown = ", ".join(f"version {handler.version} in lane {handler.lane}" for handler in handlers)
        yield Finding(
            level="warning",
            about="handlers",
            what=f"{handlers[0].type} is served as {shown}: which one runs a task is chance",
            remedy="let the older workers drain (SIGTERM), or give the handlers different names",
        )
    for handler in handlers:
        if handler.timeout_s is not None and handler.timeout_s > _DRAIN_S:
            yield Finding(
                level="note",
                about="handlers",
                what=f"{handler.type} may run for {span(handler.timeout_s)}, longer than a stopping worker waits "
                f"({span(_DRAIN_S)} unless its config says otherwise)",
                remedy="raise TaskManagerConfig.drain_s where such an attempt should not begin anew after a restart",
            )


def _clock(facts: Facts) -> Iterator[Finding]:
    ahead_ms = facts.newest_ms - facts.now_ms
    if ahead_ms > _DRIFT_MS:
        yield Finding(
            level="warning",
            about="clock",
            what=f"the newest row is {span(ahead_ms / 1000)} ahead of this machine's clock",
            remedy="set the clock: it went back, or the store comes from another machine; times go on from the newest "
            "row meanwhile, so delays and retention come late",
            figures={"ahead_s": ahead_ms / 1000},
        )
