"""The handlers of the simulated processes: they follow their plans, and tell a witness when they begin and end.

What `recall` comes to is kept. It is the one whose code changes: processes of the old and of the new version may live
side by side.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

from mainspring.environment import HERE
from mainspring.processors.batch import Batch
from mainspring.processors.context import Child, Context
from mainspring.processors.custom import Handler
from mainspring.tasks import Retry
from mainspring.testing.simulator.machine import Process
from mainspring.testing.simulator.plans import action_of, failure_of, ignore_cancellation, value_of
from mainspring.testing.simulator.strands import Died
from mainspring.testing.simulator.together import PACK, PRESS, Member, follow, follow_at_once

IN_TIME_S = 0.2
"""How long an attempt of `timed` may take."""
KEEP_S = 3600.0
"""For how long the results of `recall` are kept where a call says nothing else."""
CODES = ("1", "2")
_SOON = Retry(max_retries=3, delay=0.2, max_delay=2.0)
_ONCE = Retry(max_retries=0)


class Witness(Protocol):
    """Whoever is told what handlers do."""

    def began(self, process: Process, ctx: Context, plan: dict[str, Any], inputs: list[Any], lane: str) -> None: ...

    def began_together(
        self, process: Process, members: Sequence[Member], inputs: list[Any], lane: str, policy: Batch
    ) -> None: ...

    def came_back(self, process: Process, ctx: Context, how: str) -> None: ...

    def kill(self, process: Process) -> None: ...


@lru_cache(None)
def handlers(code: str = CODES[0]) -> Mapping[str, Handler]:
    """Return the handlers by name, for any number of engines; those that never change are the same for all codes.

    No child process could import them, and none shall.
    """
    if code != CODES[0]:
        return {**handlers(), "recall": _recall(code)}

    async def work(plan: dict[str, Any], inputs: list[Any], ctx: Context) -> Any:
        return await _follow(plan, inputs, ctx)

    async def steady(plan: dict[str, Any], inputs: list[Any], ctx: Context) -> Any:
        return await _follow(plan, inputs, ctx)

    async def timed(plan: dict[str, Any], inputs: list[Any], ctx: Context) -> Any:
        return await _follow(plan, inputs, ctx)

    def crunch(plan: dict[str, Any], inputs: list[Any], ctx: Context) -> Any:
        return _follow_at_once(plan, inputs, ctx)

    async def pack(plan: list[dict[str, Any]], inputs: list[Any], contexts: list[Context]) -> Any:
        return await follow(plan, inputs, contexts, PACK)

    def press(plan: list[dict[str, Any]], inputs: list[Any], contexts: list[Context]) -> Any:
        return follow_at_once(plan, inputs, contexts, PRESS)

    made = (
        Handler(work, retry=_SOON),
        Handler(steady, retry=_ONCE),
        Handler(timed, retry=_SOON, timeout=IN_TIME_S),
        Handler(crunch, retry=_SOON),
        Handler(pack, retry=_SOON, batch=PACK),
        Handler(press, retry=_SOON, batch=PRESS),
    )
    for handler in made:
        handler.function.__mainspring__ = handler  # type: ignore[attr-defined]
    return {**{handler.name: handler for handler in made}, "recall": _recall(code)}


def _recall(code: str) -> Handler:
    async def recall(plan: dict[str, Any], inputs: list[Any], ctx: Context) -> Any:
        return await _follow(plan, inputs, ctx, code)

    handler = recall.__mainspring__ = Handler(recall, retry=_SOON, version=code, cache=KEEP_S)  # type: ignore[attr-defined]
    return handler


def _process() -> Process:
    process = HERE.get()
    assert isinstance(process, Process)
    return process


async def _follow(plan: dict[str, Any], inputs: list[Any], ctx: Context, code: str | None = None) -> Any:
    process = _process()
    witness: Witness = process.witness
    witness.began(process, ctx, plan, inputs, "async")
    try:
        value = await _act(process, plan, inputs, ctx, code)
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
        value = _act_at_once(process, plan, inputs, ctx)
    except BaseException as exc:
        witness.came_back(process, ctx, type(exc).__name__)
        raise
    witness.came_back(process, ctx, "returned")
    return value


async def _act(process: Process, plan: dict[str, Any], inputs: list[Any], ctx: Context, code: str | None) -> Any:
    name, *rest = action_of(plan, ctx.attempt)
    if plan.get("how") == "now":  # whatever comes of it, they are there, and the next attempt has the same
        now = _submit_kids(plan, ctx)
        if plan["n"] % 2:  # one may wait until they are stored, or leave that to the engine
            for kid in now:
                await kid
    if name == "sleep":
        await asyncio.sleep(rest[0])
    elif name == "hop":
        for _ in range(3):
            await asyncio.sleep(0)
    elif name == "stubborn":
        await ignore_cancellation(process, rest[0])
    elif name == "die":
        process.witness.kill(process)
        await asyncio.get_running_loop().create_future()  # nothing of this process goes on
    return _ending(plan, inputs, ctx, code)


def _act_at_once(process: Process, plan: dict[str, Any], inputs: list[Any], ctx: Context) -> Any:
    if action_of(plan, ctx.attempt)[0] == "die":
        process.halt()
        raise Died
    if plan.get("how") == "now":  # would block a thread, and there is none
        plan = {**plan, "how": "outcome"}
    return _ending(plan, inputs, ctx)


def _ending(plan: dict[str, Any], inputs: list[Any], ctx: Context, code: str | None = None) -> Any:
    """Raise or return what the plan says, and submit the children that come with it."""
    name, *_ = action = action_of(plan, ctx.attempt)
    if (exc := failure_of(action)) is not None:
        raise exc
    if name == "progress":
        ctx.progress(1, 2)
    kids = _submit_kids(plan, ctx) if plan.get("how", "now") != "now" else []
    if name == "garbage":
        return ...  # nothing that can be stored, and the same in every process
    if plan.get("how") == "returned":
        return {"n": plan["n"], "kids": kids}
    return value_of(plan, inputs, ctx, code)


def _submit_kids(plan: dict[str, Any], ctx: Context) -> list[Child]:
    now = plan["how"] == "now"
    of = [str(ctx.id), 0 if now else ctx.attempt]
    known = handlers()
    return [
        ctx.submit(known["work" if kid["n"] % 3 else "crunch"].function, {**kid, "of": of}, [], now=now)
        for kid in plan["kids"]
    ]
