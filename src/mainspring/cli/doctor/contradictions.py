"""What was set and can't be had together: each is allowed by itself, and no call that sets one sees the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mainspring.cli.doctor.finding import Finding
from mainspring.cli.screen import span
from mainspring.store.sql.inspection import ClassFacts, Facts, FollowerFacts, GroupFacts, NeverFacts

_LONG_S: Final = 86_400.0
"""A queue that takes longer than this is worth a word."""


def findings(facts: Facts) -> Iterator[Finding]:
    for kind in facts.classes:
        yield from _deadlines(kind, facts)
    for group in facts.rates:
        yield from _rate(group, facts)
    for some in facts.followers:
        yield from _equal_work(some)
    yield from _never(facts)


def kind_of(kind: ClassFacts | FollowerFacts) -> str:
    """Return the name of a class for people."""
    named = (("group", kind.group), ("namespace", kind.namespace))
    return ", ".join([kind.type, *(f"{what} {value}" for what, value in named if value not in ("", "default"))])


def _deadlines(kind: ClassFacts, facts: Facts) -> Iterator[Finding]:
    """Tasks that must start in time and can't start at all."""
    if kind.deadline_ms is None:
        return
    is_served = any(worker.is_alive and kind.type in worker.types for worker in facts.workers)
    if kind.pause is not None:
        why, remedy = f"are paused ({kind.pause})", "`mainspring resume` with the same options before then"
    elif not is_served:
        why, remedy = "no living worker serves them", "start a worker whose module declares the type before then"
    else:
        return
    left_s = (kind.deadline_ms - facts.now_ms) / 1000
    yield Finding(
        level="warning",
        about="deadlines",
        what=f"{kind_of(kind)}: {kind.deadlines:,} tasks have a deadline, the first "
        + (f"in {span(left_s)}" if left_s > 0 else "has passed")
        + f", and {why}: they will end as TIMEOUT",
        remedy=f"{remedy}, or cancel what nobody needs any more",
        figures={"deadlines": kind.deadlines, "first_in_s": round(left_s, 1)},
    )


def _rate(group: GroupFacts, facts: Facts) -> Iterator[Finding]:
    """A queue that its group's rate lets begin too late."""
    mine = [kind for kind in facts.classes if kind.group == group.group and group.namespace in ("", kind.namespace)]
    unfinished = sum(kind.unfinished for kind in mine)
    due = [kind.deadline_ms for kind in mine if kind.deadline_ms is not None]
    took_s, timed = unfinished / group.a_second, sum(kind.deadlines for kind in mine)
    left_s = (min(due) - facts.now_ms) / 1000 if due else _LONG_S
    if took_s <= max(0.0, left_s):
        return
    where = f" in namespace {group.namespace}" if group.namespace else ""
    yield Finding(
        level="warning" if due else "note",
        about="limits",
        what=f"group {group.group}{where} may begin {group.rate}: {unfinished:,} unfinished tasks take {span(took_s)}"
        + (f", and {timed:,} have a deadline, the first in {span(left_s)}" if due else ""),
        remedy="raise the rate (`mainspring limit`)"
        + (": what is not begun by its deadline ends as TIMEOUT" if due else ", or cancel what nobody needs any more"),
        figures={"unfinished": unfinished, "takes_s": round(took_s, 1)},
    )


def _equal_work(some: FollowerFacts) -> Iterator[Finding]:
    """Tasks that nothing keeps from starting but the pause of others, which do the same work."""
    if some.pause is not None:
        yield Finding(
            level="warning",
            about="equal work",
            what=f"{some.waiting:,} tasks wait for equal work of {kind_of(some)}, which is paused ({some.pause})",
            remedy="`mainspring resume` with the same options, or cancel the ones that are paused: the best of those "
            "that wait goes on then",
            figures={"waiting": some.waiting},
        )


def _never(facts: Facts) -> Iterator[Finding]:
    """Tasks that ask for more than any worker that could run them has."""
    alive = [worker for worker in facts.workers if worker.is_alive]
    found: dict[str, list[NeverFacts]] = {}
    for one in facts.never:
        serving = {worker.name for worker in alive if one.type in worker.types}
        if serving and serving <= one.why.keys():
            found.setdefault(one.type, []).append(one)
    for kind, some in found.items():
        yield Finding(
            level="warning",
            about="resources",
            what=f"{kind}: {len(some):,} tasks need more than any worker has; task {some[0].task} needs "
            + next(iter(some[0].why.values())),
            remedy="start a worker on a larger machine, raise its capacity (TaskManagerConfig), or cancel them and "
            "submit them with smaller `resources`",
            figures={"tasks": len(some)},
        )
