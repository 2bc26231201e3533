"""What there is to say of tasks and those who work on them, on any store: pure rules from facts to findings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from mainspring.cli.doctor import contradictions
from mainspring.cli.doctor.finding import Finding
from mainspring.cli.screen import span
from mainspring.config import TaskManagerConfig, seconds
from mainspring.store.sql.inspection import COUNT_LIMIT, ClassFacts, Facts, HandlerFacts, WorkerFacts

GRACE_S: Final = seconds(TaskManagerConfig().grace_s, "grace_s")
TURN_S: Final = 2.0
"""A loop that does not turn for this long is silent."""
_DRAIN_S: Final = seconds(TaskManagerConfig().drain_s, "drain_s")
_LATE_S: Final = 5.0
_LONG_WAIT_S: Final = 60.0
_DRIFT_MS: Final = 1_000
_FEW: Final = 10


def findings(facts: Facts, clock: str) -> Iterator[Finding]:
    """Yield all but what there is to say of single workers. `clock` is whose the store goes by."""
    yield from _upkeep(facts)
    yield from _queue(facts)
    yield from _failures(facts)
    yield from _handlers(facts)
    yield from contradictions.findings(facts)
    yield from _clock(facts, clock)


def dead(who: str, worker: WorkerFacts) -> Finding:
    return Finding(
        level="warning" if worker.held else "note",
        about="workers",
        what=f"{who} died and holds {worker.held} claims that nobody has taken back",
        remedy="start a worker: whoever opens the store takes them back at once",
        figures={"held": worker.held},
    )


def silent(who: str, worker: WorkerFacts, facts: Facts) -> Finding:
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
    if facts.is_led is False:
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
    name = contradictions.kind_of(kind)
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


def _failures(facts: Facts) -> Iterator[Finding]:
    """What fails as often as not has a cause of its own."""
    for ends in facts.ends:
        total = ends.completed + ends.failed
        if ends.failed >= _FEW and ends.failed * 2 >= total:
            yield Finding(
                level="note",
                about="failures",
                what=f"{ends.type}: {ends.failed:,} of the {total:,} that ended failed or ran out of time",
                remedy="`mainspring failures` has their errors; once the cause is mended, `mainspring retry` makes "
                "them anew",
                figures={"completed": ends.completed, "failed": ends.failed},
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


def _clock(facts: Facts, clock: str) -> Iterator[Finding]:
    ahead_ms = facts.newest_ms - facts.now_ms
    if ahead_ms > _DRIFT_MS:
        yield Finding(
            level="warning",
            about="clock",
            what=f"the newest row is {span(ahead_ms / 1000)} ahead of {clock}",
            remedy="set it: it went back, or the store comes from another machine; times go on from the newest "
            "row meanwhile, so delays and retention come late",
            figures={"ahead_s": ahead_ms / 1000},
        )
