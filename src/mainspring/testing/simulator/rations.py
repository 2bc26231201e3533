"""Whether groups hold no more than their limits allow, begin no more than their rates do, and take their turns: from
the rows as they are right after each claim."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple, Protocol

from mainspring.store.base import Claimed
from mainspring.store.sql.transaction import Transaction
from mainspring.tasks import Rate, TaskId

_RULES = """SELECT id, changed, namespace, grp, concurrency, rate, rate_ms, full_us, weight FROM group_limit"""
_HELD = """SELECT count(*) FROM class JOIN task ON task.class = class.id
    WHERE class.grp = ?1 AND ?2 IN ('', class.namespace) AND owner IS NOT NULL AND flags & 512"""
_ROUNDED_US = 5_000
"""So far a moment may be off by rounding, and by the clocks of several processes."""
Share = tuple[str, str]
"""Its namespace and group; both empty: of all that have none of their own."""
OTHERS: Share = ("", "")


class Rule(NamedTuple):
    id: int
    changed: int
    namespace: str
    group: str
    concurrency: int | None
    n: int | None
    ms: int | None
    full_us: int
    weight: float | None

    @property
    def rate(self) -> Rate | None:
        return None if self.n is None or self.ms is None else Rate(self.n, self.ms)

    def covers(self, key: Sequence[str]) -> bool:
        return self.group != "" and self.group == key[2] and self.namespace in ("", key[0])


class Took(NamedTuple):
    """A claim that counts for a rate, or a rate that was set."""

    at_us: int
    attempt: tuple[str, int] | None  # None: the rate was set then
    each_us: int
    cap_us: int
    passed_us: int  # since the world began


class Accuser(Protocol):
    def accuse(self, invariant: str, task: str | None, what: str, **figures: Any) -> None: ...

    def find(self, sql: str, *values: Any) -> list[Any]: ...


class Rations:
    def __init__(
        self, witness: Accuser, passed_s: Callable[[], float], *, sees_all: bool, has_one_clock: bool
    ) -> None:  # fmt: skip
        self._witness = witness
        self._passed_s = passed_s  # since the world began, also while the machine slept
        self._sees_all = sees_all  # else commits fail: nobody sees what those in doubt claim, and turns stay taken
        self._has_one_clock = has_one_clock  # else buckets fill by another one after a restart
        self._changes: dict[int, int] = {}  # by rule: the newest that was seen
        self._newest = 0  # of these, when rules were looked at last
        self._took: dict[int, list[Took]] = {}  # by rule
        self._turns: dict[tuple[Any, str], _Turns] = {}  # by process and lane
        self._weights: dict[Share, float] = {}
        self.rules: list[Rule] = []

    def look(self, tx: Transaction) -> None:
        """A transaction is committed: take over what has changed in the rules."""
        self.rules = [Rule(*row) for row in self._witness.find(_RULES)]
        weights = {(rule.namespace, rule.group): rule.weight for rule in self.rules if rule.weight is not None}
        if weights != self._weights:
            self._weights = weights
            self._turns.clear()
        before, self._newest = self._newest, max((rule.changed for rule in self.rules), default=0)
        # Of several changes in one commit the last is seen: by another one before it the bucket may have been full.
        sees_each = tx.sets_limits and self._newest <= before + 1
        for rule in self.rules:
            if rule.rate is not None and rule.changed != self._changes.get(rule.id):
                each_us = -(-rule.rate.ms * 1_000 // rule.rate.n)
                cap_us = rule.rate.n * each_us if sees_each else 0
                took = Took(tx.now_ms * 1_000, None, each_us, cap_us, self._passed_us)
                self._took.setdefault(rule.id, []).append(took)

    def is_full(self, key: Sequence[str], now_ms: int) -> bool:
        """Whether no more of a kind may be claimed, in groups with limits."""
        for rule in self.rules:
            if not rule.covers(key):
                continue
            if rule.concurrency is not None and self._held(rule) >= rule.concurrency:
                return True
            if rule.rate is not None and rule.rate.left(rule.full_us, (now_ms - 1) * 1_000) <= 0:
                return True
        return False

    def share_of(self, key: Sequence[str]) -> Share:
        namespace, _, group = key
        names = ((namespace, group), ("", group), (namespace, "")) if group else ((namespace, ""),)
        return next((name for name in names if name in self._weights), OTHERS)

    def claimed(self, process: Any, claims: Sequence[Claimed], tx: Transaction, waiting: Iterable[Any]) -> None:
        """A commit handed over claims, while others that might have been taken waited."""
        for rule in self.rules:
            mine = [claim for claim in claims if rule.covers(claim.class_key)]
            if not mine:
                continue
            # Else some may have been claimed before it was changed; those of commits in doubt, by others.
            is_held_to = self._changes.get(rule.id) == rule.changed or (self._sees_all and not tx.sets_limits)
            if is_held_to and rule.concurrency is not None and (held := self._held(rule)) > rule.concurrency:
                self._witness.accuse("limits", None, f"group {rule.group} holds too many", held=held, rule=rule)
            if rule.rate is not None:
                self._spend(rule, mine, tx)
        self._changes = {rule.id: rule.changed for rule in self.rules}
        if self._weights and self._sees_all:
            self._judge_turns(process, claims, tx, waiting)

    def _held(self, rule: Rule) -> int:
        return int(self._witness.find(_HELD, rule.group, rule.namespace)[0][0])

    def _spend(self, rule: Rule, claims: Sequence[Claimed], tx: Transaction) -> None:
        rate = rule.rate
        assert rate is not None
        each_us = -(-rate.ms * 1_000 // rate.n)
        took = self._took.setdefault(rule.id, [])
        if self._changes.get(rule.id) == rule.changed:
            took += [
                Took(tx.now_ms * 1_000, (str(TaskId(one.id)), one.attempt), each_us, rate.n * each_us, self._passed_us)
                for one in claims
            ]

    @property
    def _passed_us(self) -> int:
        return int(self._passed_s() * 1e6)

    def judge_rates(self, begun: AbstractSet[tuple[str, int]], clocks: int) -> None:
        """`clocks`: how many processes there were, each of which began with the machine's clock as it was then."""
        if self._sees_all and self._has_one_clock:
            self._judge_stretches(begun)
        else:
            self._judge_all(begun, 0 if self._has_one_clock else clocks)

    def _judge_all(self, begun: AbstractSet[tuple[str, int]], refills: int) -> None:
        """All in all no more have begun than came in by the fastest rate, with one bucket at first, one at each change,
        and one for each clock."""
        for took in self._took.values():
            seen = {one.attempt for one in took if one.attempt in begun}
            each_us = min(one.each_us for one in took)
            bucket = max(-(-one.cap_us // one.each_us) for one in took)
            changes = sum(one.attempt is None for one in took)
            most = bucket * (1 + changes + refills) + (took[-1].passed_us - took[0].passed_us) // each_us + 1
            if len(seen) > most:
                self._witness.accuse("rates", None, "more began than all rates allow", n=len(seen), most=most)

    def _judge_stretches(self, begun: AbstractSet[tuple[str, int]]) -> None:
        """In no stretch of time have more begun than the bucket held and got meanwhile, as if what never began had
        never been claimed. What was claimed by a slower rate leaves a new bucket empty, and no more."""
        for rule_id, all_took in self._took.items():
            last = {took.attempt: n for n, took in enumerate(all_took)}
            at_us = lag_us = 0
            for n, took in enumerate(all_took):
                lag_us = max(0, lag_us - max(0, took.at_us - at_us))
                at_us = max(at_us, took.at_us)
                if took.attempt is None:
                    lag_us = min(lag_us, took.cap_us)
                elif took.attempt in begun and last[took.attempt] == n:
                    lag_us += took.each_us
                    if lag_us > took.cap_us + _ROUNDED_US:
                        what = "began although its group's rate was used up"
                        self._witness.accuse("rates", took.attempt[0], what, rule=rule_id, attempt=took.attempt[1])
                        lag_us = took.cap_us

    def _judge_turns(self, process: Any, claims: Sequence[Claimed], tx: Transaction, waiting: Iterable[Any]) -> None:
        """Nobody waits behind another's flood for more than its turns. Where a limit may have kept a group waiting that
        is not judged."""
        lane_of = tx.memory.lane_of_type
        taken: dict[str, Counter[Share]] = {}
        for claim in claims:
            if (lane := lane_of.get(claim.task_type)) is not None:
                taken.setdefault(lane.name, Counter())[self.share_of(claim.class_key)] += 1
        waits: dict[str, dict[Share, set[int]]] = {name: {} for name in taken}
        for _, seq, _, _, *key in waiting:
            name = lane_of[key[1]].name
            if name in waits and not any(rule.covers(key) and _limits(rule) for rule in self.rules):
                waits[name].setdefault(self.share_of(key), set()).add(seq)
        for name, by_share in taken.items():
            turns = self._turns.setdefault((process, name), _Turns())
            for share, figures in turns.took(by_share, waits[name], self._weights):
                self._witness.accuse("turns", None, f"share {share} waits for more than its turn", **figures)


def _limits(rule: Rule) -> bool:
    return rule.concurrency is not None or rule.rate is not None


class _Turns:
    """What shares had in a lane of a process while others waited there."""

    def __init__(self) -> None:
        self._waits: dict[Share, set[int]] = {}
        self._had: dict[Share, Counter[Share]] = {}  # by share that waits: what each has had since

    def took(
        self, taken: Counter[Share], waits: dict[Share, set[int]], weights: Mapping[Share, float]
    ) -> list[tuple[Share, dict[str, Any]]]:
        """Return the shares that others have gone before too often."""
        found = []
        for share, tasks in waits.items():
            if self._waits.get(share, set()).isdisjoint(tasks):
                self._had[share] = Counter()
                continue
            had = self._had[share]
            had.update(taken)
            turn = 1 / weights.get(share, 1.0)
            for other, n in had.items():
                others_turn = 1 / weights.get(other, 1.0)
                if other != share and n * others_turn > had[share] * turn + turn + others_turn + 1e-6:
                    found.append((share, {"had": had[share], "other": other, "other_had": n}))
        self._waits = waits
        return found
