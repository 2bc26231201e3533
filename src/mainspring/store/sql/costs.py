"""What tasks of a group cost, such as tokens: reserved by an estimate when one is claimed, settled when it ends.

How much of a cost rate is used stands in the limit's own row, which the transaction holds that claims or settles. A
task that can't be afforded yet lets nobody of its group go by: what comes in is saved up for it, so that small ones
don't keep a large one waiting for ever. What a task is to cost stands in its spec, flagged so, and never changes. Which
limits have that reserved for a claim whoever claimed it remembers: those that came later settle nothing with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from mainspring.errors import InvalidInput
from mainspring.store.base import COSTS, Claimed, NewTask
from mainspring.store.ready import ANYWHERE, Place
from mainspring.tasks import CostRate

if TYPE_CHECKING:
    from mainspring.store.sql.limits import Claim, Limit
    from mainspring.store.sql.transaction import Transaction

UNSAID: Final = 1.0
"""What a task is to cost that does not say it."""


class _CostOf(msgspec.Struct, gc=False):
    """What is of interest here of a `Spec`."""

    cost: float | None = None


_decoder = msgspec.msgpack.Decoder(_CostOf)


class Costly(Protocol):
    """A task on its way in, or a claim."""

    flags: int
    spec: bytes | None


def estimate(task: Costly) -> float:
    """Return what a task is to cost."""
    return of_spec(task.spec) if task.flags & COSTS else UNSAID


def of_spec(spec: bytes | None) -> float:
    """Return what a task is to cost that is flagged to say so."""
    cost = None if spec is None else _decoder.decode(spec).cost
    return UNSAID if cost is None else cost


def estimates(tx: Transaction, seqs: Sequence[int]) -> dict[int, float]:
    """Return what tasks are to cost, of those that say so."""
    return {seq: of_spec(spec) for seq, spec in tx.run("costs_of", tx.listed(seqs)).fetchall()}


def are_counted(limits: Sequence[Limit]) -> bool:
    for limit in limits:  # noqa: SIM110 - asked of each claim: `any` would take three times as long
        if limit.cost_rate is not None:
            return True
    return False


def refuse_too_much(tx: Transaction, task: NewTask) -> None:
    """Raise InvalidInput where a task is to cost more than its group may ever use at once. One of which that is only
    guessed waits for a full bucket."""
    if task.is_guess:
        return
    for limit in tx.memory.limits.of(task.class_key):
        if limit.cost_rate is not None and (cost := estimate(task)) > limit.cost_rate.n:
            raise InvalidInput(
                f"cost = {cost:g} is more than group {limit.group!r} may use at once (cost_rate {limit.cost_rate}); "
                "split the work, or raise the limit",
                field="cost",
                value=cost,
            )


def reserve(tx: Transaction, limits: Sequence[Limit], cost: float, place: Place) -> bool:
    """Take what a task is to cost that will be held from this transaction on; the limits' rows are held.

    Returns false where it is not there, and from then on nobody behind it goes by; or where it is kept for such a one.
    """
    for limit in limits:
        if is_saved(tx, limit, place):
            return False
    is_there = True
    for limit in limits:
        if (needed := _lacks(tx, limit, cost)) is not None:
            tx.memory.limits.saved_for[limit.id] = needed, place
            is_there = False
    if not is_there:
        return False
    for limit in limits:
        if limit.cost_rate is not None:
            tx.budgets[limit.id] -= cost
    return True


def is_saved(tx: Transaction, limit: Limit, place: Place) -> bool:
    """Whether what is left is for a task that goes before this place, or is a debt."""
    if limit.cost_rate is None:
        return False
    left, saved_for = _left(tx, limit.id, limit.cost_rate), tx.memory.limits.saved_for
    needed, first = saved_for.get(limit.id, (0.0, ANYWHERE))
    if left >= needed:
        saved_for.pop(limit.id, None)
        return False
    return place >= first


def next_ms(tx: Transaction, limit: Limit) -> int | None:
    """Return when as much is there as is saved up; None where it is."""
    if limit.cost_rate is None:
        return None
    left = _left(tx, limit.id, limit.cost_rate)
    needed, _ = tx.memory.limits.saved_for.get(limit.id, (0.0, ANYWHERE))
    wait_ms = limit.cost_rate.wait_ms(left, needed)
    return tx.now_ms + wait_ms if wait_ms else None


def spend(tx: Transaction, limits: Sequence[Limit], claim: Claim, cost: float) -> None:
    """Count what a claim is to cost."""
    tx.reserved[claim] = tuple(limit.id for limit in limits if limit.cost_rate is not None)
    for limit_id in tx.reserved[claim]:
        tx.costs[limit_id] = tx.costs.get(limit_id, 0.0) + cost


def settle(tx: Transaction, limits: Sequence[Limit], task: Claimed, cost: float | None) -> None:
    """An attempt has ended that cost so much: the difference to its estimate is taken, or given back. None: what was
    reserved stays taken."""
    claim = (task.seq, task.attempt)
    if cost is not None:
        _correct(tx, limits, claim, cost - estimate(task))
    tx.reserved[claim] = ()


def give_back(tx: Transaction, limits: Sequence[Limit], claim: Claim) -> None:
    """An attempt that never began is held no more."""
    if are_counted(limits):
        seq, _ = claim
        _correct(tx, limits, claim, -estimates(tx, [seq]).get(seq, UNSAID))
    tx.reserved[claim] = ()


def _correct(tx: Transaction, limits: Sequence[Limit], claim: Claim, cost: float) -> None:
    """Count what more, or less, a claim costs than was reserved: for limits that have reserved something."""
    reserved = tx.memory.limits.reserved.get(claim, ())
    for limit in limits:
        if limit.cost_rate is not None and limit.id in reserved:
            tx.settled[limit.id] = tx.settled.get(limit.id, 0.0) + cost


def write(tx: Transaction) -> None:
    """Write down what was spent and given back, all of it."""
    for limit_id in dict.fromkeys((*tx.settled, *tx.costs)):
        rate = tx.memory.limits.cost_rates.get(limit_id)
        if rate is not None:
            tx.hold_limit_surely(limit_id)
            tx.run("use_cost", _used(tx, limit_id, rate), tx.now_ms, limit_id)


def _lacks(tx: Transaction, limit: Limit, cost: float) -> float | None:
    """Return how much must be left before so much may begin; None where it is."""
    if limit.cost_rate is None:
        return None
    needed = limit.cost_rate.needed(cost)
    return None if _left(tx, limit.id, limit.cost_rate) >= needed else needed


def _left(tx: Transaction, limit_id: int, rate: CostRate) -> float:
    """Return what is left, less what this transaction takes."""
    left = tx.budgets.get(limit_id)
    if left is None:
        left = tx.budgets[limit_id] = rate.n - _used(tx, limit_id, rate)
    return left


def _used(tx: Transaction, limit_id: int, rate: CostRate) -> float:
    used, at_ms = tx.one("cost_used", limit_id)
    if at_ms > tx.now_ms:  # by a clock that was ahead: from now on time passes
        tx.run("use_cost", used, tx.now_ms, limit_id)
    settled = max(
        0.0, rate.used(used, at_ms, tx.now_ms) + tx.settled.get(limit_id, 0.0)
    )  # there is never more than all
    return settled + tx.costs.get(limit_id, 0.0)
