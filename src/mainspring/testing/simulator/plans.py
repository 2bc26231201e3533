"""What simulated tasks do, drawn from a seed. A plan travels as the task's argument; its handler follows it.

A plan is a mapping: `n` its number, `do` an action for each attempt (the last one for all further ones), `wants` the
numbers of the tasks whose results it gets, `kids` plans of children, and `how` they are submitted. Where tasks run
together what goes wrong in one of them is an exception in its place, or is raised by the whole call: `raises_for_all`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from mainspring.environment import Environment, Random
from mainspring.errors import Permanent, RetryAfter
from mainspring.processors.context import Context

ACTIONS: Final = {
    "quick": 40,
    "sleep": 25,
    "raise": 12,
    "permanent": 4,
    "retry after": 3,
    "stubborn": 6,
    "garbage": 3,
    "progress": 3,
    "hop": 5,
    "die": 2,
}
_OF_CALLS: Final = {**{name: n for name, n in ACTIONS.items() if name != "progress"}, "short": 2, "memory": 6}
"""What tasks that run together do: also give back too few results, and run out of memory unless they are alone."""
HOW: Final = ("outcome", "now", "returned", "returned")
LONGEST_S: Final = 3.0
"""No action takes longer."""


def draw_plan(
    rng: Random, number: int, *, is_deadly: bool, depth: int = 0, is_called: bool = False, has_kids: float = 0.12
) -> dict[str, Any]:
    """`is_called`: it runs together with others."""
    actions = _OF_CALLS if is_called else ACTIONS
    do = [_action(rng, actions, is_deadly) for _ in range(rng.choice((1, 1, 2, 3)))]
    plan: dict[str, Any] = {"n": number, "do": do}
    if rng.random() < 0.6:  # most come to a good end, whatever happens before
        plan["do"].append(["quick"])
    if is_deadly and rng.random() < 0.02:
        plan["do"] = [["die"]]
    if not is_called and depth < 2 and rng.random() < has_kids:
        plan["kids"] = [
            draw_plan(rng, number * 100 + n + 1, is_deadly=is_deadly, depth=depth + 1)
            for n in range(rng.choice((1, 2, 3)))
        ]
        plan["how"] = rng.choice(HOW)
    if rng.random() < 0.05:
        plan["padding"] = "x" * 300  # beyond what stays in the row, where the limit is low
    return plan


def _action(rng: Random, actions: Mapping[str, int], is_deadly: bool) -> list[Any]:
    (name,) = rng.choices(list(actions), list(actions.values()))
    if name == "die" and not is_deadly:
        name = "quick"
    if name in ("sleep", "stubborn", "retry after"):
        return [name, round(rng.choice((0.01, 0.1, 0.5, LONGEST_S)) * rng.random(), 4)]
    return [name]


def action_of(plan: dict[str, Any], attempt: int) -> list[Any]:
    actions: list[list[Any]] = plan["do"]
    return actions[min(attempt, len(actions)) - 1]


def raises_for_all(plan: dict[str, Any]) -> bool:
    """Whether what goes wrong in it is raised by the call of all that run with it."""
    return bool(plan["n"] % 2)


def failure_of(action: list[Any]) -> Exception | None:
    """Return what an action fails with, if it does."""
    name, *rest = action
    if name == "raise":
        return ValueError("as planned")
    if name == "permanent":
        return Permanent("as planned")
    return RetryAfter(rest[0]) if name == "retry after" else None


async def ignore_cancellation(env: Environment, seconds: float) -> None:
    until = env.monotonic() + seconds
    while env.monotonic() < until:
        try:
            await asyncio.sleep(until - env.monotonic())
        except asyncio.CancelledError:
            continue


def value_of(plan: dict[str, Any], inputs: list[Any], ctx: Context, code: str | None = None) -> dict[str, Any]:
    """Return what an attempt comes to: whose it is, and what it was made of."""
    return {
        "n": plan["n"],
        "id": str(ctx.id),
        "attempt": ctx.attempt,
        "padding": plan.get("padding"),
        "got": [origin(value) for value in inputs],
        "code": code,
    }


def origin(value: Any) -> Any:
    """Return whose result this is; None where that can't be told of it."""
    return [value["id"], value["attempt"]] if isinstance(value, dict) and "id" in value else None
