"""What simulated tasks do, drawn from a seed. A plan travels as the task's argument; its handler follows it.

A plan is a mapping: `n` its number, `do` an action for each attempt (the last one for all further ones), `wants` the
numbers of the tasks whose results it gets, `kids` plans of children, and `how` they are submitted.
"""

from __future__ import annotations

from typing import Any, Final

from mainspring.environment import Random

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
HOW: Final = ("outcome", "now", "returned")
LONGEST_S: Final = 3.0
"""No action takes longer."""


def draw_plan(rng: Random, number: int, *, is_deadly: bool, depth: int = 0) -> dict[str, Any]:
    plan: dict[str, Any] = {"n": number, "do": [_action(rng, is_deadly) for _ in range(rng.choice((1, 1, 2, 3)))]}
    if rng.random() < 0.6:  # most come to a good end, whatever happens before
        plan["do"].append(["quick"])
    if depth < 2 and rng.random() < 0.12:
        plan["kids"] = [
            draw_plan(rng, number * 100 + n + 1, is_deadly=is_deadly, depth=depth + 1)
            for n in range(rng.choice((1, 2, 3)))
        ]
        plan["how"] = rng.choice(HOW)
    if rng.random() < 0.05:
        plan["padding"] = "x" * 300  # beyond what stays in the row, where the limit is low
    return plan


def _action(rng: Random, is_deadly: bool) -> list[Any]:
    (name,) = rng.choices(list(ACTIONS), list(ACTIONS.values()))
    if name == "die" and not is_deadly:
        name = "quick"
    if name in ("sleep", "stubborn", "retry after"):
        return [name, round(rng.choice((0.01, 0.1, 0.5, LONGEST_S)) * rng.random(), 4)]
    return [name]


def action_of(plan: dict[str, Any], attempt: int) -> list[Any]:
    actions: list[list[Any]] = plan["do"]
    return actions[min(attempt, len(actions)) - 1]
