"""The handlers of the simulated processes: they follow their plans, and tell a witness when they begin and end."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Protocol

from mainspring.environment import HERE
from mainspring.errors import Permanent, RetryAfter
from mainspring.processors.context import Child, Context
from mainspring.processors.custom import Handler
from mainspring.tasks import Retry
from mainspring.testing.simulator.machine import Process
from mainspring.testing.simulator.plans import action_of
from mainspring.testing.simulator.strands import Died

IN_TIME_S = 0.2
"""How long an attempt of `timed` may take."""
_SOON = Retry(max_retries=3, delay=0.2, max_delay=2.0)
_ONCE = Retry(max_retries=0)


class Witness(Protocol):
    """Whoever is told what handlers do."""

    def began(self, process: Process, ctx: Context, plan: dict[str, Any], inputs: list[Any], lane: str) -> None: ...

    def came_back(self, process: Process, ctx: Context, how: str) -> None: ...

    def kill(self, process: Process) -> None: ...


@lru_cache(1)
def handlers() -> Mapping[str, Handler]:
    """Return the handlers by name, for any number of engines. No child process could import them, and none shall."""

    async def work(plan: dict[str, Any], inputs: list[Any], ctx: Context) -> Any:
        return await _follow(plan, inputs, ctx)

    async def steady(plan: dict[str, Any], inputs: list[Any], ctx: Context) -> Any:
        return await _follow(plan, inputs, ctx)

    async def timed(plan: dict[str, Any], inputs: list[Any], ctx: Context) -> Any:
        return await _follow(plan, inputs, ctx)

    def crunch(plan: dict[str, Any], inputs: list[Any], ctx: Context) -> Any:
        return _follow_at_once(plan, inputs, ctx)

    made = (
        Handler(work, retry=_SOON),
        Handler(steady, retry=_ONCE),
        Handler(timed, retry=_SOON, timeout=IN_TIME_S),
        Handler(crunch, retry=_SOON),
    )
    for handler in made:
        handler.function.__mainspring__ = handler  # type: ignore[attr-defined]
    return {handler.name: handler for handler in made}


def _process() -> Process:
    process = HERE.get()
    assert isinstance(process, Process)
    return process


async def _follow(plan: dict[str, Any], inputs: list[Any], ctx: Context) -> Any:
    process = _process()
    witness: Witness = process.witness
    witness.began(process, ctx, plan, inputs, "async")
    try:
        value = await _act(process, plan, ctx)
    except BaseException as exc:
        witness.came_back(process, ctx, type(exc).__name__)
        raise
    witness.came_back(process, ctx, "returned")
    return value


def _follow_at_once(plan: dict[str, Any], inputs: list[Any], ctx: Context) -> Any:
    process = _process()
    witness: Witness = process.witness
    witness.began(process, ctx, plan, inputs, "thread")
    try:
        value = _act_at_once(process, plan, ctx)
    except BaseException as exc:
        witness.came_back(process, ctx, type(exc).__name__)
        raise
    witness.came_back(process, ctx, "returned")
    return value


async def _act(process: Process, plan: dict[str, Any], ctx: Context) -> Any:
    name, *rest = action_of(plan, ctx.attempt)
    if name == "sleep":
        await asyncio.sleep(rest[0])
    elif name == "hop":
        for _ in range(3):
            await asyncio.sleep(0)
    elif name == "stubborn":
        await _ignore_cancellation(process, rest[0])
    elif name == "die":
        process.witness.kill(process)
        await asyncio.get_running_loop().create_future()  # nothing of this process goes on
    value, kids = _ending(plan, ctx)
    if plan.get("how") == "now" and plan["n"] % 2:  # one may wait until they are stored, or leave that to the engine
        for kid in kids:
            await kid
    return value


def _act_at_once(process: Process, plan: dict[str, Any], ctx: Context) -> Any:
    if action_of(plan, ctx.attempt)[0] == "die":
        process.is_alive = False
        raise Died
    if plan.get("how") == "now":  # would block a thread, and there is none
        plan = {**plan, "how": "outcome"}
    return _ending(plan, ctx)[0]


async def _ignore_cancellation(process: Process, seconds: float) -> None:
    until = process.monotonic() + seconds
    while process.monotonic() < until:
        try:
            await asyncio.sleep(until - process.monotonic())
        except asyncio.CancelledError:
            continue


def _ending(plan: dict[str, Any], ctx: Context) -> tuple[Any, list[Child]]:
    """Raise or return what the plan says, with the children that were submitted."""
    name, *rest = action_of(plan, ctx.attempt)
    if name == "raise":
        raise ValueError("as planned")
    if name == "permanent":
        raise Permanent("as planned")
    if name == "retry after":
        raise RetryAfter(rest[0])
    if name == "progress":
        ctx.progress(1, 2)
    kids = _submit_kids(plan, ctx) if "kids" in plan else []
    if name == "garbage":
        return ..., kids  # nothing that can be stored, and the same in every process
    if plan.get("how") == "returned":
        return {"n": plan["n"], "kids": kids}, kids
    return {"n": plan["n"], "id": str(ctx.id), "attempt": ctx.attempt, "padding": plan.get("padding")}, kids


def _submit_kids(plan: dict[str, Any], ctx: Context) -> list[Child]:
    now = plan["how"] == "now"
    of = [str(ctx.id), 0 if now else ctx.attempt]
    known = handlers()
    return [
        ctx.submit(known["work" if kid["n"] % 3 else "crunch"].function, {**kid, "of": of}, [], now=now)
        for kid in plan["kids"]
    ]
