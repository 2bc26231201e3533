"""What attempts need while they run: reserved before they begin, given back at their end, and waited for in between.

Each worker process counts what its own attempts have reserved, against what its host or container has. What does not
fit waits at its desk, outside the slots, so that whatever fits goes on. The rule by which it gets its turn: those that
stand behind it in the one order may overtake it for `PATIENCE_S`; then all that it needs is set aside for it until it
begins, and they get what is left beside that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import msgspec

from mainspring.config import RESOURCE_KINDS, TaskManagerConfig
from mainspring.dispatch.alone import Alone
from mainspring.dispatch.desk import Desk, place
from mainspring.dispatch.highwater import HighWater
from mainspring.dispatch.passed_over import PassedOver
from mainspring.dispatch.peaks import Peaks, input_bytes
from mainspring.dispatch.withholding import Withholding
from mainspring.environment import Environment
from mainspring.execution.executor import TaskExecutor
from mainspring.execution.shortage import KILLED, REFUSED
from mainspring.processors.base import Lane as LaneName
from mainspring.resources.monitor import ResourceMonitor, ResourceUsage, resident_bytes
from mainspring.store.base import RESERVES, Claimed, Spec, Store
from mainspring.tasks import Attempt, Resources, TaskId
from mainspring.tasks.needs import CHILD, CLOSE, Need, Short, amount, at_most, need_of, too_much

PATIENCE_S = 5.0
_TELL_S = 0.25
_INSIDE = ("async", "thread")
"""Lanes that run within this process."""
_MOST_SHORT = 3
"""So many attempts may be short of memory; nothing runs beside the last one."""
_ALL_BUT_SLACK = 0.9  # what others use goes up and down a little
_LAST = (1 << 63, 0)  # a place behind all others

_spec_decoder = msgspec.msgpack.Decoder(Spec)


Key: TypeAlias = tuple[bytes, int]
"""Task id and attempt."""


class _Waiting(NamedTuple):
    """A call whose need is not free, until it has that: also while it has been called and waits for a slot."""

    desk: Desk
    claims: Sequence[Claimed]
    need: Need
    since: float  # monotonic seconds

    def parked(self) -> list[Claimed]:
        """Return those that were neither called nor taken back; these may have come again since, as other claims."""
        return [claim for claim in self.claims if self.desk.parked.get(claim.id) is claim]


class Reservations:
    """What is reserved in this process, and who waits for it. Belongs to the event loop."""

    def __init__(
        self,
        executor: TaskExecutor,
        store: Store,
        config: TaskManagerConfig,
        monitor: ResourceMonitor,
        high_water: HighWater,
        alone: Alone,
        env: Environment,
        hand_back: Callable[[Desk, list[Claimed]], None],
    ) -> None:
        self.types: set[str] = set()
        """Types whose tasks need something although nothing is said of that with the task."""
        self.was_full = False
        """A lane had no slot free for a moment: others are told what there is in all, from then on."""
        self._executor = executor
        self._store = store
        self._config = config
        self._monitor = monitor
        self._env = env
        self._hand_back = hand_back
        self._high_water = high_water
        self._alone = alone
        self._declared: set[str] = set()
        self._peaks = Peaks()
        self._learned: set[str] = set()  # types with large ones
        self._large = float("inf")  # bytes; so much in each child would fill a quarter of the memory
        self._held: dict[Key, Need] = {}
        self._inside: set[Key] = set()  # of those, what runs within this process
        self._used: dict[str, float] = {}
        self._waiting: dict[bytes, _Waiting] = {}  # by the first claim
        self._withheld = Withholding(store, env)
        self._passed_over = PassedOver(executor, store, self._there_is)
        self._at_rest: int | None = None  # resident bytes of this process when nothing was reserved within it
        self._sampled: ResourceUsage | None = None
        self._others = 0.0  # bytes, as of that sample
        self._comes_back = 0.0  # of those, what attempts use beyond what they have reserved of it: it goes with them
        self._stops = False
        self._told = b""
        self._told_at = float("-inf")  # monotonic seconds
        self._telling: asyncio.TimerHandle | None = None

    def serve(self) -> None:
        """Take note of what handlers were declared with."""
        for kind, handler in self._executor.handlers.items():
            if handler.resources is not None:
                self._declared.add(kind)
        self.types = self._declared | self._learned
        self._large = self.capacity("memory") / (4 * self._config.process_slots)
        self._passed_over.forget()

    def impossible(self, declared: Resources) -> str | None:
        """Say why this worker can never run what needs that; None where it may."""
        short = too_much(need_of(declared, "async") or {}, self._there_is())
        return None if short is None else str(short)

    # What is needed ...

    def need(self, claim: Claimed, lane: LaneName) -> Need | None:
        """Return what has to be reserved for an attempt; None: nothing."""
        declared = None
        if claim.flags & RESERVES and claim.spec is not None:
            declared = _spec_decoder.decode(claim.spec).resources
        elif (handler := self._executor.handlers.get(claim.task_type)) is not None:
            declared = handler.resources
        need: Need | None = None if declared is None else need_of(declared, lane)
        if need is not None and "cpu" in need:
            need = at_most(need, self.capacity("cpu"))
        if lane != "process" or claim.task_type not in self._learned or (need is not None and "memory" in need):
            return need
        expected = self._peaks.of(claim.task_type, input_bytes(claim))
        # Where nothing else is reserved it goes with what there is: it was not asked to wait for strangers.
        most = self.capacity("memory") if self._held else max(0.0, self.free("memory"))
        return {**(need or {}), "memory": min(expected, most), CHILD: 1.0} if expected else need

    def learn(self, claim: Claimed, used: int) -> None:
        """Note the peak of an attempt in a child: the next ones of its like reserve as much where nothing is said."""
        if used >= self._large or claim.task_type in self._learned:
            self._peaks.add(claim.task_type, input_bytes(claim), used, self._large)
            self._learned = self._peaks.types
            self.types = self._declared | self._learned

    def need_of_call(self, claims: Sequence[Claimed], lane: LaneName) -> Need | None:
        """The same for tasks that run together: of each kind, the largest of them."""
        need: dict[str, float] = {}
        for claim in claims:
            for kind, much in (self.need(claim, lane) or {}).items():
                need[kind] = max(much, need.get(kind, 0.0))
        return need or None

    def raised(self, need: Need | None, tries: Sequence[Attempt], lane: LaneName) -> tuple[Need, bool]:
        """Return what to reserve after attempts that were short of memory, and whether it is the last try.

        It doubles with each of them, and is at least half as much again as what they used; no more than there can be.
        """
        short = [one for one in tries if one.error is not None and one.error.type in (KILLED, REFUSED)]
        before = (need or {}).get("memory", 0.0)
        used = max((one.memory_bytes or 0 for one in short), default=0)
        most = self._most("memory") * _ALL_BUT_SLACK
        more = {**(need or {}), "memory": max(before, min(most, max(before * 2 ** len(short), used * 1.5)))}
        if lane == "process":
            more[CHILD] = 1.0
        return more, len(short) >= _MOST_SHORT - 1

    # ... reserved ...

    def take(self, desk: Desk, claims: Sequence[Claimed], need: Need) -> bool:
        """Reserve it for a call under its first claim. Where it does not fit, the claims wait at their desk
        and come again, or are handed back; then they are not to run now."""
        first = claims[0]
        since = self._env.monotonic()
        for claim in claims:
            if (before := self._waiting.pop(claim.id, None)) is not None:
                since = min(since, before.since)
                self._come(before.desk, before.parked())  # what was to come with it
        short = self._short(need, place(first), first.id)
        if not short:
            self._reserve((first.id, first.attempt), need, desk.lane)
            return True
        if any(one.is_for_ever for one in short):
            self._passed_over.add(desk, first.task_type)
            self._hand_back(desk, list(claims))
        elif self._has_place(desk, claims):
            self._waiting[first.id] = _Waiting(desk, claims, need, since)
            for claim in claims:
                desk.park(claim)
            if any(one.kind == "memory" for one in short):
                self._executor.relieve()
        self.tell_soon()
        return False

    def _reserve(self, key: Key, need: Need, lane: LaneName) -> None:
        self._held[key] = need
        if lane != "process":
            self._inside.add(key)
        for kind, much in need.items():
            self._used[kind] = self._used.get(kind, 0.0) + much

    def give_back(self, first: Claimed) -> None:
        """A call is over. The next attempt of its first task may have begun already, with a reservation of its own."""
        key = (first.id, first.attempt)
        for kind, much in self._held.pop(key).items():
            self._used[kind] -= much
        self._inside.discard(key)
        if not self._held:
            self._used.clear()
        if self._waiting or self._withheld:
            self._look_at_waiting()

    def capacity(self, kind: str) -> float:
        """Return what there is for attempts of this process."""
        config = self._config
        if kind == "memory":
            mark = self.memory_mark()
            return mark if config.memory_capacity is None else min(config.memory_capacity, mark)
        if kind == "cpu":
            return config.cpu_capacity or self._monitor.sample().cpu_limit
        if kind == "gpu":
            return config.gpu_capacity
        if kind == CHILD:
            return config.process_slots
        return config.custom_capacity.get(kind, 0.0)

    def memory_mark(self) -> int:
        """Return up to where memory may be in use."""
        return self._monitor.sample().max_memory_bytes

    def free(self, kind: str) -> float:
        """Return what is left of a kind: of memory no more than what others on this host have left."""
        there_is = self.capacity(kind)
        if kind == "memory":
            there_is = min(there_is, self.memory_mark() - self._memory_of_others())
        return there_is - self._used.get(kind, 0.0)

    def _most(self, kind: str) -> float:
        """Return what will be free of a kind when nothing runs here that has reserved any: what strangers have taken
        may stay for ever."""
        there_is = self.capacity(kind)
        if kind == "memory":
            there_is = min(there_is, self.memory_mark() - self._memory_of_others() + self._comes_back)
        return there_is

    def _memory_of_others(self) -> float:
        """Return the bytes in use that are not part of a reservation: those of strangers, and of this process itself.

        A child that rests is no user: the next attempt that needs memory uses it, or has it ended. Of one that runs,
        with the programs that it has started, no more than it has reserved is its own.
        """
        usage = self._monitor.sample()
        if usage is self._sampled:
            return self._others
        children, own_pid = self._executor.children(), self._env.pid()
        held = resident_bytes({own_pid: True, **{pid: key is not None for pid, key in children.items()}})
        if held is None:  # before the first look none of it is known to be own
            return usage.memory_bytes if self._sampled is None else self._others
        self._sampled = usage
        own = beyond = 0.0
        for pid, key in children.items():
            reserved = held[pid] if key is None else self._held.get(key, {}).get("memory", 0.0)
            own += min(reserved, held[pid])
            if reserved:  # whoever comes after it waits for what is set aside
                beyond += max(0.0, held[pid] - reserved)
        inside = sum(self._held[key].get("memory", 0.0) for key in self._inside)
        if not self._inside or self._at_rest is None:
            self._at_rest = held[own_pid]
        own += min(inside, max(0, held[own_pid] - self._at_rest))
        self._others = max(0.0, usage.memory_bytes - own)
        self._comes_back = min(beyond, self._others)
        return self._others

    def _short(self, need: Need, at: tuple[int, int], id: bytes) -> list[Short]:
        """Return what is missing for a call that stands at this place in the one order."""
        short = []
        best = self._first_in_patience(at, id)
        for kind, much in need.items():
            free, kept_for, set_aside = self.free(kind), "", 0.0
            if best is not None and kind in best.need:
                first, set_aside = best.claims[0], best.need[kind]
                kept_for = f"task {TaskId(first.id)} ({first.task_type}), which needs {amount(kind, set_aside)}"
            if much > free - set_aside + CLOSE:
                short.append(Short(kind, much, free, self.capacity(kind), kept_for))
        return short

    def _first_in_patience(self, at: tuple[int, int], id: bytes) -> _Waiting | None:
        """Return the best one that has been overtaken for long enough, where that goes first: what it needs is set
        aside for it, also what is free while it lacks another kind: else it would never find all of them free at once.

        Only where it can begin once what runs here has ended: what strangers have taken may stay for ever.
        """
        latest = self._env.monotonic() - PATIENCE_S
        best = None
        for waiting in self._waiting.values():
            first = waiting.claims[0]
            is_better = place(first) < at and (best is None or place(first) < place(best.claims[0]))
            if waiting.since <= latest and first.id != id and is_better and self._is_enough_at_rest(waiting.need):
                best = waiting
        return best

    def _is_enough_at_rest(self, need: Need) -> bool:
        """Whether there will be enough when nothing runs here."""
        return all(much <= self._most(kind) + CLOSE for kind, much in need.items())

    # ... and waited for

    def look(self) -> None:
        """Look at intervals whether strangers have left memory, and tell who waits for what, or why nothing starts."""
        self._passed_over.look()
        self.tell()
        if self._waiting or self._withheld:
            self._look_at_waiting()

    def waiting(self) -> set[bytes]:
        """Return the tasks that wait for what they need, or have been called and wait for a slot."""
        return {claim.id for waiting in self._waiting.values() for claim in waiting.claims}

    def _look_at_waiting(self) -> None:
        """Have those come again that fit now, in the one order."""
        now_ms = self._store.now_ms()
        coming: dict[str, float] = {}
        for id, waiting in sorted(self._waiting.items(), key=lambda item: place(item[1].claims[0])):
            claims, first = waiting.parked(), waiting.claims[0]
            if not claims and waiting.desk.has(first):  # it was called
                continue
            if not claims or claims[0] is not first:  # they were taken back, or another one of the call goes first now
                del self._waiting[id]
                self._come(waiting.desk, claims)
                continue
            short = self._short({k: v + coming.get(k, 0.0) for k, v in waiting.need.items()}, place(claims[0]), id)
            is_late = any(claim.deadline_ms is not None and claim.deadline_ms < now_ms for claim in claims)
            if short and not is_late and (self._held or coming):  # else what was learned is looked at anew
                continue
            for kind, much in waiting.need.items():
                coming[kind] = coming.get(kind, 0.0) + much
            self._come(waiting.desk, claims)
        self._withheld.lift()

    def _has_place(self, desk: Desk, claims: Sequence[Claimed]) -> bool:
        """Whether a call may wait at its desk: where many do, others are handed back for that which stand behind it."""
        parked = [one.parked() for one in self._waiting.values() if one.desk is desk]
        goes = self._withheld.make_room(desk, claims, filter(None, parked))
        for call in goes:
            if call is claims:
                self._hand_back(desk, list(call))
            else:
                self._withdraw(desk, list(call))
        return all(call is not claims for call in goes)

    def _come(self, desk: Desk, claims: Sequence[Claimed]) -> None:
        if claims:
            for claim in claims:
                desk.unpark(claim)
            desk.put_again(list(claims))

    # Between processes

    def spare(self) -> Need:
        """Return what is free beside all that the one needs for which is set aside."""
        best = self._first_in_patience(_LAST, b"")
        kept = {} if best is None else best.need
        return {kind: max(0.0, self.free(kind) - kept.get(kind, 0.0)) for kind in self._there_is()}

    def share(self, is_wanted: Callable[[Claimed], bool], spare: Need) -> None:
        """Hand back half of the calls that would fit into what is free where somebody asks, the last in the order."""
        calls = [(one.desk, one.parked()) for one in self._waiting.values() if _fits(one.need, spare)]
        calls = [(desk, call) for desk, call in calls if call and all(map(is_wanted, call))]
        calls.sort(key=lambda one: place(one[1][0]))
        for desk, call in calls[len(calls) // 2 :]:
            self._withheld.step_back(desk, call[0].task_type)  # first: the commit that releases them looks for room
            desk.given += len(call)
            self._withdraw(desk, call)

    def _withdraw(self, desk: Desk, call: list[Claimed]) -> None:
        """Hand back a call that waits at its desk."""
        self._waiting.pop(call[0].id, None)
        for claim in call:
            desk.unpark(claim)
        self._hand_back(desk, call)

    def _there_is(self) -> dict[str, float]:
        """Return what this process has in all."""
        return {kind: self.capacity(kind) for kind in (*RESOURCE_KINDS, *self._config.custom_capacity)}

    # Telling

    def stats(self) -> dict[str, dict[str, float]]:
        """Return what is reserved and what there is, of each kind that this process has."""
        kinds = ("cpu", "memory", "gpu", *self._config.custom_capacity)
        found = {kind: {"reserved": self._used.get(kind, 0.0), "capacity": self.capacity(kind)} for kind in kinds}
        return {kind: of for kind, of in found.items() if of["capacity"]}

    @property
    def stops(self) -> bool:
        """Whether this process takes nothing any more."""
        return self._stops

    @stops.setter
    def stops(self, stops: bool) -> None:
        self._stops = stops
        self.tell_soon()

    def tell(self) -> None:
        """Leave word in the store, for `explain` in any process, of who waits and for what."""
        told = self._state()
        if told != self._told:
            self._told = told
            self._told_at = self._env.monotonic()
            self._store.offer(told)

    def tell_soon(self) -> None:
        """Something else waits, or is kept: others should hear of it at once, or soon where they have just heard."""
        if self._telling is None:
            wait_s = self._told_at + _TELL_S - self._env.monotonic()
            self._telling = asyncio.get_running_loop().call_later(max(0.0, wait_s), self._tell_now)

    def _tell_now(self) -> None:
        self._telling = None
        self.tell()

    def _state(self) -> bytes:
        waits = {}
        for waiting in self._waiting.values():
            first, parked = waiting.claims[0], waiting.parked()
            if parked and (short := self._short(waiting.need, place(first), first.id)):
                why = "; ".join(map(str, short))
                waits.update({str(TaskId(claim.id)): why for claim in parked})
        state: dict[str, Any] = {
            "closed": self._high_water.why,
            "alone": self._who_is_alone(),
            "stops": self._stops,
            "waits": waits,
            "withheld": self._withheld.told(),
        }
        if passes := self._passed_over.told():
            state["passes"] = passes
        if state["closed"] or state["alone"] or self.was_full:
            state["in_all"] = self._passed_over.in_all()
        return msgspec.json.encode(state) if any(state.values()) else b""

    def _who_is_alone(self) -> dict[str, object] | None:
        one = self._alone.one
        if one is None:
            return None
        return {"task": str(TaskId(one.claim.id)), "why": one.why, "lanes": _INSIDE if one.inside else ()}


def _fits(need: Need, there_is: Need) -> bool:
    return all(much <= there_is.get(kind, 0.0) + CLOSE for kind, much in need.items())
