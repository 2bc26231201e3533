"""Handlers of simulated tasks that run together: one call follows the plans of all its items."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from mainspring.environment import HERE
from mainspring.processors.batch import Batch
from mainspring.processors.context import Context
from mainspring.testing.simulator.machine import Process
from mainspring.testing.simulator.plans import (
    action_of,
    failure_of,
    ignore_cancellation,
    raises_for_all,
    value_of,
)
from mainspring.testing.simulator.strands import Died

FOUND_ALWAYS: Final = 3
"""So many items that can't be done are found in a call; all others of it must come to their own end then."""
_RAISE: Final = ("raise", "permanent")


def cost(plan: dict[str, Any]) -> float:
    return float(1 + plan["n"] % 3)


PACK: Final = Batch(max_size=4, max_wait=0.05)
PRESS: Final = Batch(max_size=8, max_cost=6, cost=cost)


class Member(NamedTuple):
    """An attempt in a call."""

    context: Context
    plan: dict[str, Any]
    action: list[Any]


def can_spoil_others(members: Sequence[Member]) -> bool:
    """Whether a call may end some of its items in a way that is not their own."""
    raising = [member for member in members if member.action[0] in _RAISE and raises_for_all(member.plan)]
    return len(raising) > FOUND_ALWAYS or any(
        member.action[0] == "short" or (member.action[0] == "retry after" and raises_for_all(member.plan))
        for member in members
    )


async def follow(
    plans: list[dict[str, Any]], inputs: list[Any], contexts: Sequence[Context], policy: Batch
) -> list[Any]:
    """Follow the plans of one call in the loop."""
    process, members = _members(plans, contexts)
    with _witnessed(process, members, inputs, "async", policy):
        waits = [member.action[1] for member in members if member.action[0] in ("sleep", "stubborn")]
        if any(member.action[0] == "die" for member in members):
            process.witness.kill(process)
            await asyncio.get_running_loop().create_future()  # nothing of this process goes on
        if any(member.action[0] == "stubborn" for member in members):
            await ignore_cancellation(process, max(waits))
        elif waits:
            await asyncio.sleep(max(waits))
        elif any(member.action[0] == "hop" for member in members):
            await asyncio.sleep(0)
        return _ending(members, inputs)


def follow_at_once(
    plans: list[dict[str, Any]], inputs: list[Any], contexts: Sequence[Context], policy: Batch
) -> list[Any]:
    """Follow the plans of one call in a thread."""
    process, members = _members(plans, contexts)
    if not process.is_alive:  # halves of a call in which it died
        raise Died
    with _witnessed(process, members, inputs, "thread", policy):
        if any(member.action[0] == "die" for member in members):
            process.halt()
            raise Died
        return _ending(members, inputs)


def _members(plans: list[dict[str, Any]], contexts: Sequence[Context]) -> tuple[Process, list[Member]]:
    process = HERE.get()
    assert isinstance(process, Process)
    attempts = zip(contexts, plans, strict=True)
    return process, [Member(context, plan, action_of(plan, context.attempt)) for context, plan in attempts]


@contextmanager
def _witnessed(process: Process, members: list[Member], inputs: list[Any], lane: str, policy: Batch) -> Iterator[None]:
    witness = process.witness
    witness.began_together(process, members, inputs, lane, policy)
    how = "returned"
    try:
        yield
    except BaseException as exc:
        how = type(exc).__name__
        raise
    finally:
        for member in members:
            witness.came_back(process, member.context, how)


def _ending(members: list[Member], inputs: list[Any]) -> list[Any]:
    for member in members:
        if raises_for_all(member.plan) and (exc := failure_of(member.action)) is not None:
            raise exc
        if member.action[0] == "memory" and len(members) > 1:
            raise MemoryError("as planned")
    values = [_value(member, inputs) for member in members]
    return values[1:] if any(member.action[0] == "short" for member in members) else values


def _value(member: Member, inputs: list[Any]) -> Any:
    if (exc := failure_of(member.action)) is not None:
        return exc
    return ... if member.action[0] == "garbage" else value_of(member.plan, inputs, member.context)
