"""Batches in the making: claims of one type wait here until they make a call, or have waited long enough."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Container, Hashable
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from mainspring.dispatch.arrivals import Arrivals
from mainspring.dispatch.budget import Budget, Fit
from mainspring.dispatch.desk import Desk, is_suspect, place
from mainspring.dispatch.joined import Group, Key, Member
from mainspring.dispatch.kinds import Kinds
from mainspring.dispatch.members import Marks
from mainspring.processors.batch import Batching
from mainspring.store.base import Claimed
from mainspring.store.ready import Place

if TYPE_CHECKING:
    from mainspring.dispatch.lane import LaneDesk

T = TypeVar("T")
_REMEMBERED = 10_000  # tasks that ran out of time
_KINDS = 256  # of calls of which is kept what was learned
_ROUNDED = 1e-9  # sums of costs are off by a smaller share: ten times 0.1 is just below 1


class Call(NamedTuple):
    """What goes into one call; some may still leave before it begins."""

    claims: list[Claimed]
    key: Hashable  # what they have in common
    cost: float
    padded: float  # the same if each item cost as much as the largest beside it
    why: str  # it begins
    halvings: int  # of what is allowed: see `Budget`


class Forming(NamedTuple):
    """A batch that waits."""

    size: int
    most: int
    closes_s: float | None  # None: it begins when a slot falls free
    is_all: bool  # no more can come


def _yes(_key: Hashable) -> bool:
    """Most types have nothing to load."""
    return True


class Gathering(Desk):
    """The desk of a type whose tasks run together. The slots of its lane take its calls, and one of its own, if any."""

    def __init__(
        self,
        kind: str,
        processor: Batching,
        lane: LaneDesk,
        prepare: Callable[[Gathering, Claimed], Awaitable[bool] | None],
        serve: Callable[[Gathering, Call, int, asyncio.Task[Any]], Awaitable[bool]],
        refuse: Callable[[Claimed, BaseException, str], None],
        marks: Marks,
        ageing_ms: int,
        most: int,
        in_all: float,
    ) -> None:
        super().__init__(f"{lane.lane}/{kind}", lane.lane, lane.runner, lane.store, lane.env)
        self.kind = kind
        self.policy = processor.batch
        self.has_own_slot: bool = getattr(processor, "has_own_slot", False)
        self.own_idle: deque[asyncio.Future[None]] = deque()  # that slot, while it waits for work
        self.marks = marks
        self.serve = serve
        self.closed: Counter[str] = Counter()  # why calls began
        self.calls = 0  # of the handler, in calls that have ended
        self.items = 0  # that have ended in those
        self._ended = 0
        self._cost = 0.0  # of all calls
        self._padded = 0.0  # the same; see `Call`
        self._whole = self._new_budget()
        self._budgets: dict[Hashable, Budget] = {}  # the latest used last
        self._wait_s = self.policy.wait_s
        self._arrivals = Arrivals(self._wait_s)
        self._join = processor.join
        self._is_loaded: Callable[[Hashable], bool] = getattr(processor, "is_loaded", _yes)
        self._ageing_ms = ageing_ms
        self._most = most  # claims that wait for those of their kind
        self._in_all = in_all  # tasks that there ever are
        self._lane = lane
        self._prepare = prepare
        self._refuse = refuse
        self._kinds = Kinds(lambda group: bool(self._why(group, -math.inf, are_all=False)))
        self._fits: dict[Hashable, Fit] = {}  # of kinds for which memory has run out; the same
        self._limits: dict[bytes, int] = {}  # tasks that ran out of time in a call: the size of their next one
        self._preparing: set[asyncio.Task[None]] = set()
        self._begun = 0  # claims in calls
        self._is_ahead = True  # a call is claimed while all slots are busy
        self._is_asked = False  # a slot has looked for a call since the last look at what is too much
        self._timer: asyncio.TimerHandle | None = None
        self._steps_back = False  # some were given away: whoever asked for them is on its way
        self._next: Group | None = None  # whose call `first` has told of

    # Claims come ...

    def put(self, claims: list[Claimed]) -> None:
        for claim in claims:
            if is_suspect(claim):  # what it needs is done when it runs
                self._gather(claim)
                continue
            try:
                preparing = self._prepare(self, claim)
            except Exception as exc:  # noqa: BLE001 - what is stored of it can't be read: that attempt's failure
                self._give_up(claim, exc)
                continue
            if preparing is None:
                self._gather(claim)
            else:
                task = asyncio.get_running_loop().create_task(self._gather_later(claim, preparing))
                self._preparing.add(task)
                task.add_done_callback(self._preparing.discard)
        self._lane.wake_one()

    def put_again(self, claims: list[Claimed]) -> None:
        for claim in claims:  # what they came without is in its place
            self._gather(claim)
        self._lane.wake_one()

    async def _gather_later(self, claim: Claimed, preparing: Awaitable[bool]) -> None:
        if await preparing:
            self._gather(claim)
            self._lane.wake_one()

    def _gather(self, claim: Claimed) -> None:
        if is_suspect(claim):  # it runs alone
            self._add(claim, (claim.id,), 1.0)
            return
        try:
            key, cost = self._join(claim)
            self._add(claim, (key, claim.timeout_ms), 1.0 if self.policy.max_cost is None else cost)
        except BaseException as exc:  # noqa: BLE001 - users' functions of an item run in there: that attempt's failure
            self._give_up(claim, exc)

    def _give_up(self, claim: Claimed, exc: BaseException) -> None:
        self.freed()
        self._refuse(claim, exc, self.lane)

    def _add(self, claim: Claimed, kind: Hashable, cost: float) -> None:
        size = min(self.policy.max_size, self._limits.get(claim.id, self.policy.max_size))
        now = self.env.monotonic()
        member = Member(place(claim), claim, cost, now + self._patience(claim))
        if self._kinds.add(Key(kind, size), member) and len(self._kinds) > 1:
            self._look_further()
        self._arrivals.came(claim, now)

    def _look_further(self) -> None:
        """There is one kind more: those that join it may stand anywhere in the queue."""
        before = self.port.limit
        self.pace()
        if self.port.limit > before:
            self.store.demand()

    def _patience(self, claim: Claimed) -> float:
        """Return for how long it waits for others: half of the time that it has left at most, so that it is in time."""
        if claim.deadline_ms is None or not self._wait_s:
            return self._wait_s
        return min(self._wait_s, (claim.deadline_ms - self.store.now_ms()) / 2_000)

    # ... wait ...

    @property
    def queued(self) -> int:
        return self._kinds.queued + len(self._waiting)

    def first(self) -> Place | None:
        """Return the place of the call that may begin now; None: there is none, and somebody is woken when there is."""
        self._is_asked = True
        if not self._is_ahead:
            self._is_ahead = True
            self.pace()
            self.store.demand()
        if not self._kinds:
            return None
        now = self.env.monotonic()
        self._next = self._best(now)
        if self._next is not None:
            return self._next.place
        self._wake_at(self._kinds.next.until, now)
        return None

    def forming(self, id: bytes) -> Forming | None:
        """Return the batch that a task waits in; None: in none."""
        for group in self._kinds:
            if any(member.claim.id == id for member in group.members):
                now = self.env.monotonic()
                why = self._why(group, now, are_all=self._are_all_here(now))
                closes_s = None if why else group.until - now
                return Forming(len(group.members), self._size(group.key), closes_s, why == "limit")
        return None

    def _best(self, now: float) -> Group | None:
        """Return what goes next: the first in the order, or within one ageing step what needs no model to be loaded.

        Where all wait for others and no more can come, it is what would have waited no longer first.
        """
        self._kinds.look(now)
        ready = self._kinds.ready(are_all=self._are_all_here(now))
        if not ready:
            return self._kinds.next if self._is_full() else None
        best = ready[0]
        if self._is_loaded is _yes or best.urgent or self._has_loaded(best):
            return best
        last = best.place[0] + self._ageing_ms
        in_reach = takewhile(lambda group: group.place[0] < last, ready)
        return next(filter(self._has_loaded, in_reach), best)

    def _is_full(self) -> bool:
        """Whether nobody comes that could join, or go before all that waits."""
        return self._taking and not self._steps_back and self.queued >= self.port.limit - self._begun

    def _has_loaded(self, group: Group) -> bool:
        return self._is_loaded(group.key.kind[0])  # type: ignore[index]  # what the processor calls equal, and more

    def _why(self, group: Group, now: float, *, are_all: bool) -> str:
        """Return why a call of this group may begin now, if it may; `are_all`: nobody comes that could join any."""
        if len(group.members) >= self._size(group.key):
            return "full"
        if group.cost >= self._budget(group.key).cost * (1 - _ROUNDED):
            return "cost"
        if group.urgent:
            return "urgent"
        if now >= group.until or is_suspect(group.members[0].claim):
            return "wait"
        return "limit" if are_all else ""

    def _are_all_here(self, now: float) -> bool:
        """Whether waiting is in vain: nobody can come that could join."""
        if not self._wait_s:
            return False
        running = (attempt.claim for attempt in self.running.values())
        return self.queued >= self._in_all or self._arrivals.are_all(now, running)

    def _size(self, key: Key) -> int:
        """Return how many may go into one call."""
        fit = self._fits.get(key.kind)
        return min(key.size, self._budget(key).size, key.size if fit is None else fit.size)

    def _budget(self, key: Key) -> Budget:
        return self._budgets.get(key.kind, self._whole)

    def _new_budget(self) -> Budget:
        most = self.policy.max_cost
        return Budget(self.policy.max_size, math.inf if most is None else most)

    def _wake_at(self, due: float, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(due - now, self._lane.wake_one)

    def _is_queued(self, claim: Claimed) -> bool:
        return any(member.claim is claim for group in self._kinds for member in group.members)

    def _take_queued(self, is_wanted: Callable[[Claimed], bool]) -> list[Claimed]:
        taken: list[Claimed] = []
        for group in self._kinds:
            wanted = [member.claim for member in group.members if is_wanted(member.claim)]
            if wanted:
                taken += wanted
                self._kinds.keep(group, [member for member in group.members if not is_wanted(member.claim)])
        return taken

    def take_surplus(self, called: Container[bytes]) -> list[Claimed]:
        """See `Desk.take_surplus`. What has no slot to begin in any more are the last calls in the order.

        Where no slot has asked for long, the call that was claimed ahead is given back until one does. Calls of several
        kinds are not: they would come again in pieces.
        """
        self._is_ahead = self._is_asked
        self._is_asked = self._steps_back = False
        self.pace()
        surplus = self.queued - max(0, self.port.limit - self._begun)
        taken: list[Claimed] = []
        for group in sorted(self._kinds, key=lambda group: group.place, reverse=True):
            members, n = group.members, surplus
            if n < len(members):  # no call is taken apart
                n = min(n, len(members) - group.key.size)
            if n <= 0:
                break
            last = members[-n:]
            surplus -= len(last)
            taken += [member.claim for member in last if member.claim.id not in called]
            self._kinds.keep(group, members[:-n] + [member for member in last if member.claim.id in called])
        return taken

    def share(self, is_wanted: Callable[[Claimed], bool]) -> list[Claimed]:
        """See `Desk.share`. What waits for a slot goes by the call; the first of them and what still gathers stay."""
        if self._lane.has_idle():
            return []
        now = self.env.monotonic()
        self._kinds.look(now)
        ready = self._kinds.ready(are_all=self._are_all_here(now))
        taken: list[Claimed] = []
        for group in ready[max(1, len(ready) // 2) :]:
            claims = [member.claim for member in group.members]
            if all(is_wanted(claim) for claim in claims):
                taken += claims
                self._kinds.keep(group, [])
        if taken:
            self.given += len(taken)
            self._steps_back = True
            self.pace()
        return taken

    # ... and go

    def form(self) -> Call:
        """Take out what goes into the next call; `first` has just told that there is one."""
        group = self._next
        assert group is not None
        size, budget = self._size(group.key), self._budget(group.key)
        limit = budget.cost * (1 + _ROUNDED)
        now = self.env.monotonic()
        why = self._why(group, now, are_all=self._are_all_here(now)) or "room"
        n, cost, largest = 0, 0.0, 0.0
        for member in group.members[:size]:
            if n and cost + member.cost > limit:
                why = "cost"
                break
            n += 1
            cost += member.cost
            largest = max(largest, member.cost)
        formed = [member.claim for member in self._kinds.take(group, n)]
        return Call(formed, group.key.kind, cost, n * largest, why, budget.halvings)

    def begin(self, call: Call, n: int) -> None:
        """A call begins, with so many of its claims."""
        self.closed[call.why] += 1
        self._cost += call.cost
        self._padded += call.padded
        self._begun += n
        self.pace()

    def leave(self, claims: list[Claimed], freeing: int = 0) -> None:
        """These of a call are over; room for others comes before the records, whose commit looks for room."""
        self._arrivals.ended(claims)
        n = len(claims)
        self._begun -= n
        self.port.released += n
        self.items += n
        self.pace(freeing)

    def end(self, claims: list[Claimed], calls: int = 1) -> None:
        """A call with these is over, and has taken so many of the handler."""
        self.over = claims[-1]
        self.calls += calls
        self._ended += 1
        self.leave(claims, freeing=1)

    def took(self, call: Call, seconds: float) -> None:
        """A whole call had outcomes of its own for its items, in so long."""
        budget = self._budgets.get(call.key) or self._new_budget()
        self._learned(self._budgets, call.key, budget)
        if call.why in ("full", "cost"):
            budget.learn(call.halvings, len(call.claims), call.cost, seconds)
        fit = self._fits.get(call.key)
        if fit is not None:
            self._learned(self._fits, call.key, fit)
            fit.took(len(call.claims))
            if fit.size > self.policy.max_size:
                del self._fits[call.key]

    def ran_out_of_memory(self, call: Call, fits: int) -> None:
        """Calls of its like stay as small as what went through, until larger ones go well."""
        fit = self._fits.get(call.key) or Fit()
        self._learned(self._fits, call.key, fit)
        fit.ran_out(fits)

    def _learned(self, kept: dict[Hashable, T], kind: Hashable, value: T) -> None:
        """Keep it as the latest; of too many the one that was not used for longest goes."""
        kept.pop(kind, None)
        kept[kind] = value
        self._kinds.look_again(kind)
        if len(kept) > _KINDS:
            oldest = next(iter(kept))
            del kept[oldest]
            self._kinds.look_again(oldest)

    def ran_out_of_time(self, claims: list[Claimed]) -> None:
        """Whose fault it was is not known: each of them comes again in a smaller call."""
        if len(self._limits) > _REMEMBERED:  # of tasks that ended elsewhere; what is forgotten costs a larger call
            self._limits.clear()
        for claim in claims:
            self._limits[claim.id] = max(1, len(claims) // 2)

    def forget(self, claim: Claimed) -> None:
        """It has ended."""
        self._limits.pop(claim.id, None)

    def pace(self, freeing: int = 0) -> None:
        """Claim what free slots can begin, and one call more: a busy lane must find it in the one order.

        Of several kinds a call more for each beyond the first, within bounds: else few of each would be here at a time.
        """
        if self._taking:
            idle, kinds = self._lane.idle + len(self.own_idle), len(self._kinds)
            calls = idle + freeing + self._is_ahead
            most = calls * self.policy.max_size
            if kinds > 1:
                most = max(most, min(self._most, (max(calls, 1) + kinds - 1) * self.policy.max_size))
            if self._steps_back and kinds:
                most = self.queued
            self.port.limit = self._begun + most

    def shut(self) -> None:
        self._taking = False
        self.port.limit = -1_000_000_000
        if self._kinds:
            self.closed["drain"] += len(self._kinds)

    def reopen(self) -> None:
        self._taking = True
        self.pace()

    async def close(self) -> None:
        self.shut()
        if self._timer is not None:
            self._timer.cancel()
        for task in self._preparing:
            task.cancel()

    def freed(self) -> None:
        """One that was in no call is over."""
        self.port.released += 1

    @property
    def is_ending(self) -> bool:
        return self._lane.is_ending

    async def absorb(self, task: asyncio.Task[Any]) -> None:
        await self._lane.absorb(task)

    def lose_slot(self, task: asyncio.Task[Any] | None) -> None:
        self._lane.lose_slot(task)

    def stats(self) -> dict[str, Any]:
        """Return how often the handler was called and for how many items, and why calls began.

        Where a call raised, those with its halves count too; why it began, `fill` and `padding` are of the whole.
        `fill` is the share of `max_size` that was used. `padding` is the share of a call that would be computed for
        nothing if all its items were brought to the cost of the largest; None where costs are not counted. `learned`
        has what goes into calls of those kinds that are quicker below what is allowed, least first: see `Budget`.
        """
        n = self._ended * self.policy.max_size
        is_padding_known = self.policy.max_cost is not None and self._padded > 0
        return {
            "calls": self.calls,
            "items": self.items,
            "fill": self.items / n if n else None,
            "padding": 1 - self._cost / self._padded if is_padding_known else None,
            "learned": sorted({budget.learned for budget in self._budgets.values()} - {self._whole.learned}),
            "closed": dict(self.closed),
        }
