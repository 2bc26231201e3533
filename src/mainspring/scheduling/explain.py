"""Why a task is not running: one sentence, from what the store records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from math import ceil, floor
from shlex import quote
from typing import Final

from mainspring.dispatch.desk import Stage
from mainspring.dispatch.gathering import Forming
from mainspring.dispatch.manager import TaskManager
from mainspring.store.standing import Line, Other, Pause, Silent, Standing, Turns
from mainspring.tasks import ErrorInfo, GroupLimit, Reason, TaskId, TaskStatus
from mainspring.tasks.limits import model_of_group

_SHOWN = 3
_LONGEST = 300  # characters of an error
_DAY_S = 86_400
_LONG_S = 600
"""A wait of that many seconds is told in larger units."""
_HANDED = "has given it to a child process, which begins it once it has started and imported the module"


async def explain(manager: TaskManager, task_id: TaskId) -> str:
    """Return the cause with its figures. Raises TaskNotFound."""
    standing = await manager.standing(task_id.bytes)
    is_here = standing.reason == "claimed" and standing.worker == manager.store.worker_id
    if not is_here or standing.shortages or standing.cancel_asked:
        return sentence(standing, manager.store.now_ms())
    forming = manager.forming(task_id.bytes)
    return _here(standing, manager.stage(task_id.bytes)) if forming is None else _forming(forming)


def _here(standing: Standing, stage: Stage | None) -> str:
    """Say how far the claim of a task is, which the store does not know."""
    if stage == "runs":
        return f"It runs: attempt {standing.attempt}, on worker {standing.worker}."
    if stage == "over":
        return f"It has run on worker {standing.worker}; how attempt {standing.attempt} ended is about to be recorded."
    steps = {"queued": "starts it when a slot falls free", "begins": "is about to start it", "handed": _HANDED}
    step = steps.get(stage or "", "is about to start it, or to record its end")
    return f"Worker {standing.worker} has claimed it and {step}."


def sentence(standing: Standing, now_ms: int) -> str:
    """Put into words why a task is not running, or how it runs or ended."""
    if standing.status is TaskStatus.RUNNING:
        asked = "; it was asked to stop" if standing.cancel_asked else ""
        return f"It runs: attempt {standing.attempt}, on worker {standing.worker}{asked}."
    if standing.status.is_final:
        why = "" if standing.error is None else f" ({_in_short(standing.error)})"
        return f"It ended as {standing.status.value}{why}."
    assert standing.reason is not None
    return _PENDING[standing.reason](standing, now_ms)


def _forming(batch: Forming) -> str:
    left_s = batch.closes_s
    if left_s is None:
        ends = "begins when a slot falls free"
        if batch.is_all:
            ends += ", as no more can come"
    else:
        ends = f"closes in {left_s * 1000:.0f} ms" if left_s < 1 else f"closes in {left_s:,.0f} s"
    return f"It waits in batch {batch.size}/{batch.most}, which {ends}."


def _parents(standing: Standing, _now_ms: int) -> str:
    left = len(standing.parents)
    if not left:
        return f"All of its {standing.parents_all:,} parents have ended; it is about to be told."
    shown = ", ".join(_named(parent) for parent in standing.parents[:_SHOWN])
    more = f" and {left - _SHOWN:,} more" if left > _SHOWN else ""
    return f"It waits for {left:,} of its {standing.parents_all:,} parents: {shown}{more}."


def _named(other: Other) -> str:
    return f"{TaskId(other.id)} ({_state(other)})"


def _state(other: Other) -> str:
    """Say in a few words how a task stands that is waited for, and what it waits for itself in the end."""
    if other.root is not None:
        return f"waits for {TaskId(other.root.id)}, {_state(other.root)}"
    return _STATES.get(other.state, other.state).format(other.of)


def _delayed(standing: Standing, now_ms: int) -> str:
    return f"It is not to start before {_due(standing, now_ms)}."


def _retry(standing: Standing, now_ms: int) -> str:
    charged = f", retry {standing.retry_count} of {standing.max_retries}," if standing.retry_count else ""
    error = "" if standing.error is None else f" ({_in_short(standing.error)})"
    return f"Attempt {standing.attempt} failed{error}; the next one{charged} comes at {_due(standing, now_ms)}."


def _in_short(error: ErrorInfo) -> str:
    """Return the first line of what an error says, for a sentence on a screen; where it says nothing, its type."""
    first = next((line for line in error.message.splitlines() if line.strip()), error.type).strip()
    shown = "".join(char for char in first[: _LONGEST + 1] if char.isprintable())
    return shown if len(first) <= _LONGEST else f"{shown[:_LONGEST]} ..."


def _due(standing: Standing, now_ms: int) -> str:
    assert standing.due is not None
    left_s = standing.due.timestamp() - now_ms / 1000
    return f"{_moment(standing.due)}, {f'in {_span(left_s)}' if left_s > 0 else 'which is now'}"


def _claimed(standing: Standing, now_ms: int) -> str:
    if standing.cancel_asked:
        return f"Worker {standing.worker} has claimed it and was asked to cancel it."
    if standing.shortages:
        return _resources(standing, now_ms)
    if standing.silent:
        return f"Worker {standing.worker} has claimed it, and {_unheard(standing.silent[0])}."
    if standing.may_gather:
        step = "starts it, with others that have joined it, when its batch closes and a slot is free"
        return f"Worker {standing.worker} has claimed it and {step}."
    queued, begins = "starts it when a slot falls free", "has a slot for it: it runs already, or is about to"
    when = begins if standing.has_slot else queued
    return f"Worker {standing.worker} has claimed it and {when}."


def _same_work(standing: Standing, _now_ms: int) -> str:
    if standing.leader is None:
        return "Equal work has just ended without a result for it; it runs next."
    return f"Task {_named(standing.leader)} does the same work; what comes of it will do for this one too."


def _resources(standing: Standing, _now_ms: int) -> str:
    first, more = standing.shortages[0], len(standing.shortages) - 1
    others = f", nor {'does another worker' if more == 1 else f'do {more} other workers'} run it" if more else ""
    if all(shortage.how == "never" for shortage in standing.shortages):
        return f"It can't run on any living worker: on {first.worker} it {first.why}{others}; start one that has it."
    first = next(shortage for shortage in standing.shortages if shortage.how != "never")
    if first.how == "first":
        alone = f"starts it alone, as it {first.why}, when what runs there has ended"
        return f"Worker {first.worker} has claimed it and {alone}."
    if first.how in ("closed", "alone"):
        if standing.worker is not None:
            return f"Worker {first.worker} has claimed it and starts nothing new: {first.why}."
        return f"It is ready, and worker {first.worker} starts nothing new: {first.why}{others}."
    if first.how == "waits":
        return f"It waits for resources: it {first.why}, on worker {first.worker}{others}."
    return (
        f"It is ready, and worker {first.worker} takes no more of its type: {first.why} tasks that go first wait there "
        f"for resources{others}."
    )


def _limit(standing: Standing, _now_ms: int) -> str:
    limits = standing.limits
    holds = [hold for limit in limits for hold in _holds(limit)]
    n, is_one = standing.ahead_in_group, standing.ahead_in_group == 1
    more = "+" if standing.ahead_in_group_is_more else ""
    ahead = f"{n:,}{more} of its tasks {'goes' if is_one else 'go'} first"
    what = "; and ".join([holds[0], *(hold[0].lower() + hold[1:] for hold in holds[1:])])
    if len(holds) > 1:
        return f"{what}; {ahead}, and {_next_one(n)} starts when each of these has room."
    if limits[0].next_in is not None:
        return f"{what}; {ahead}."
    return f"{what}; {ahead}, and {_next_one(n)} starts when {_ends(limits[0])}."


def _next_one(ahead: int) -> str:
    return "the next one" if ahead else "it"


def _holds(limit: GroupLimit) -> Iterator[str]:
    """Say what of a limit lets none begin."""
    whose = _whose(limit.group, limit.namespace)
    whose = whose[0].upper() + whose[1:]
    if limit.concurrency is not None and limit.held >= limit.concurrency:
        yield f"{whose} is at its limit: {limit.held}/{limit.concurrency} are claimed or run"
    if limit.next_in is not None:
        yield f"{whose}: {_used_up(limit)}; the next starts in {_until(limit.next_in)}"


def _until(seconds: float) -> str:
    """Return a wait, rounded up where it is short; where it is long, as people read it."""
    return f"{ceil(seconds * 10) / 10:.1f} s" if seconds < _LONG_S else _span(seconds)


def _whose(group: str, namespace: str | None) -> str:
    model_id = model_of_group(group)
    where = "" if namespace is None else f" in namespace {namespace}"
    return (f"group {group}" if model_id is None else f"model {model_id}") + where


def _ends(limit: GroupLimit) -> str:
    """Say what makes room: after a limit was lowered one end is not enough."""
    assert limit.concurrency is not None
    of = "the group" if model_of_group(limit.group) is None else "the model's tasks"
    where = "" if limit.namespace is None else " there"
    too_many = limit.held - limit.concurrency + 1
    return f"one of {of} ends{where}" if too_many == 1 else f"{too_many:,} of {of} have ended{where}"


def _used_up(limit: GroupLimit) -> str:
    """Say which rates let none begin."""
    used = [f"{_much(str(limit.rate), 'tasks')} used up"] if limit.left == 0 else []
    left, of = limit.cost_left, str(limit.cost_rate)
    if left is not None and left < 0:
        remedy = " (if that is wrong, take the cost rate off and set it again)" if -left > _n(of) else ""
        used.append(f"{_much(of, 'cost')} used up, and {_cost(-left)} more{remedy}")
    elif left is not None and limit.cost_next is not None:
        much = _much(of, "cost").removesuffix(" are").removesuffix(" is")
        is_all = limit.cost_next > _n(of)
        needs = "all of it, as it is to cost " if is_all else ""
        used.append(f"of {much} {_cost(left)} are left and the next one needs {needs}{limit.cost_next:,.12g}")
    return " and ".join(used)


def _cost(much: float) -> str:
    """Return what is left, rounded down: it is never said to be what the next one lacks."""
    return f"{floor(much):,}" if much >= 100 else f"{floor(much * 100) / 100:g}"


def _n(rate: str) -> int:
    return int(rate.partition("/")[0])


def _much(rate: str, of: str) -> str:
    """Return "60 tasks a minute are"."""
    n, _, time = rate.partition("/")
    what, verb = (of.removesuffix("s"), "is") if int(n) == 1 else (of, "are")
    return f"{int(n):,} {what} {_TIMES.get(time, f'in {time}')} {verb}"


def _paused(standing: Standing, _now_ms: int) -> str:
    pauses = sorted(standing.pauses, key=lambda pause: (pause.since, pause))
    paused, resumes = zip(*map(_pause, pauses), strict=True)
    lets = "lets" if len(resumes) == 1 else "let"
    return f"Its kind is paused {' and '.join(paused)}; {' and '.join(resumes)} {lets} it go on."


def _pause(pause: Pause) -> tuple[str, str]:
    """Return what is paused, since when, and how to end that."""
    kind = (("namespace", pause.namespace), ("type", pause.type), ("group", pause.group))
    named = [(name, value) for name, value in kind if value]
    what = ", ".join(f"{name} {value}" for name, value in named) or "everything"
    resume = "".join(["mainspring resume", *(f" --{name} {quote(value)}" for name, value in named)])
    return f"({what}) since {_moment(pause.since)}{f' by {pause.who}' if pause.who else ''}", f"`{resume}`"


def _no_worker(standing: Standing, _now_ms: int) -> str:
    if stopping := standing.stopping:
        what = f"worker {stopping[0]} is" if len(stopping) == 1 else f"workers {', '.join(stopping)} are"
        return f"No living worker takes {standing.type} any more: {what} stopping; start one that registers it."
    others = f" ({standing.workers:,} live and serve other types)" if standing.workers else ""
    return f"No living worker serves {standing.type}{others}; start one that registers it."


def _ready(standing: Standing, now_ms: int) -> str:
    if standing.shortages:
        return _resources(standing, now_ms)
    line = standing.line
    assert line is not None
    then = _then(line)
    if standing.silent:
        then, line = _none_heard(standing.silent), line._replace(per_s=None)
    return f"It is ready and {_first(line) if line.turns is None else _in_turns(line, line.turns)}; {then}."


def _first(line: Line) -> str:
    """Say what goes first."""
    if not line.ahead:
        return f"the next one {'of its type' if line.has_own_slot else f'in the {line.lane} lane'}"
    tasks, go = "task" if line.ahead == 1 else "tasks", "goes" if line.ahead == 1 else "go"
    ahead = f"{_more(line)}{line.ahead:,} {tasks}"
    if line.has_own_slot:
        return f"{ahead} of its type {go} first{_wait(line)}"
    return f"{ahead} {go} first in the {line.lane} lane{_wait(line)}"


def _then(line: Line) -> str:
    """Say when it starts once nothing goes first any more."""
    if (soon := line.soon) is not None:
        goes = f"{soon.ahead:,} of its tasks {'goes' if soon.ahead == 1 else 'go'} first"
        return f"{_whose(soon.group, soon.namespace)} lets {soon.places:,} more begin now, and {goes}"
    if line.has_slot:
        return "a slot is free, so it is about to start"
    if line.has_own_slot:
        return f"it starts when a slot of the {line.lane} lane falls free, or the one of its type"
    return "it starts when a slot falls free"


def _none_heard(silent: tuple[Silent, ...]) -> str:
    longest, more = max(silent, key=lambda one: one.seconds), len(silent) - 1
    others = f", nor {'does another worker' if more == 1 else f'do {more} other workers'} speak" if more else ""
    return f"worker {longest.worker} {_unheard(longest)}{others}"


def _unheard(silent: Silent) -> str:
    """Say why nothing is to be expected of a worker."""
    why = "its event loop is blocked or its process stopped; see its log, and `mainspring doctor`"
    return f"has not been heard of for {_span(silent.seconds)}: {why}"


def _in_turns(line: Line, turns: Turns) -> str:
    namespace, group = turns.namespace, turns.group
    name = f"group {group}" if group else f"namespace {namespace}" if namespace else "what has no share of its own"
    where = f" in namespace {namespace}" if group and namespace else ""
    mine = f"{name}{where}, weight {turns.weight:g}"
    others = "another one" if turns.shares == 1 else f"{turns.shares:,} others"
    return (
        f"its share ({mine}) takes turns with {others} in the {line.lane} lane: "
        f"{_more(line)}{turns.own:,} of its own and at most {turns.others:,} of theirs go first{_wait(line)}"
    )


def _more(line: Line) -> str:
    return "more than " if line.ahead_is_more else ""


def _wait(line: Line) -> str:
    """Say how long those before it take, where it is known how fast they go."""
    if not line.per_s:
        return ""
    return f", {_more(line) or 'about '}{_span(line.ahead / line.per_s)} at the present rate"


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _span(seconds: float) -> str:
    """Return a duration in the largest unit that it has one of."""
    if seconds < 1:
        return f"{max(1, round(seconds * 1000))} ms"
    for unit_s, unit in ((_DAY_S, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:.0f} s"


_STATES: Final = {
    "limit": "at a limit of group {}",
    "no_worker": "served by no living worker: {}",
    "resources": "short of resources",
    "never": "too large for any living worker",
    "retry": "waits for another try",
    "parents": "waits for others",
    "same_work": "waits for equal work",
}
"""Others that wait, by what for; where nothing is said here the reason says it."""
_TIMES: Final = {"s": "a second", "m": "a minute", "h": "an hour", "d": "a day"}
_PENDING: Final[dict[Reason, Callable[[Standing, int], str]]] = {
    "parents": _parents,
    "delayed": _delayed,
    "retry": _retry,
    "claimed": _claimed,
    "same_work": _same_work,
    "paused": _paused,
    "no_worker": _no_worker,
    "ready": _ready,
    "resources": _resources,
    "limit": _limit,
}
"""What is said for each reason of a task that waits."""
