"""A worker whose handlers are registered by calls: `registering.py STORE`. No child of it runs those calls.

What gets a mark waits for ever the first time, so that its worker can be killed under it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from mainspring import Batch, Context, Engine, InvalidInput, Retry


async def tenfold(n: int) -> int:
    return 10 * n


async def unknown(n: int) -> int:
    return n


def _made() -> Any:
    async def nameless(n: int) -> int:
        return 100 * n

    return nameless


async def job(n: int) -> int:
    return 3 * n


older = job


async def job(n: int) -> int:  # type: ignore[no-redef]
    return 4 * n


WHAT = {"tenfold": tenfold, "nameless": _made(), "unknown": unknown, "name": "times_ten", "older": older, "newer": job}
settings: dict[str, int] = {}


async def _wait_once(mark: str) -> None:
    try:
        os.mkdir(mark)
    except FileExistsError:
        return
    await asyncio.sleep(3600)


async def submits(mark: str, what: str, ctx: Context) -> list[Any]:
    await _wait_once(mark)
    return [__name__, ctx.submit(WHAT[what], 1)]


async def submits_together(marks: list[str], what: str, contexts: list[Context]) -> list[Any]:
    await _wait_once(marks[0])
    return [[__name__, ctx.submit(WHAT[what], 1)] for ctx in contexts]


async def does_without(mark: str, ctx: Context) -> list[Any]:
    await _wait_once(mark)
    try:
        return [__name__, ctx.submit(WHAT["nameless"], 1)]
    except InvalidInput:
        return [__name__]


async def wants_setting(mark: str) -> list[Any]:
    await _wait_once(mark)
    return [__name__, settings["by main"]]


def in_child(what: str, now: bool, ctx: Context) -> list[Any]:
    return [__name__, ctx.submit(WHAT[what], 1, now=now)]


def main() -> None:
    settings["by main"] = 1
    engine = Engine(sys.argv[1])
    engine.task(name="times_ten")(tenfold)
    engine.task(name="times_hundred")(WHAT["nameless"])
    engine.task(name="older")(WHAT["older"])
    engine.task(name="newer")(WHAT["newer"])
    engine.task(does_without)
    engine.task(name="does_without_in_child", lane="process")(does_without)
    for what in WHAT:
        engine.task(name=f"submits_{what}")(submits)
    engine.task(guarded)
    engine.task(retry=Retry(delay="2ms"))(wants_setting)
    engine.task(batch=Batch(max_size=1))(submits_together)
    engine.task(lane="process")(in_child)
    asyncio.run(engine.run())


if __name__ == "__main__":

    async def guarded(mark: str) -> list[Any]:
        await _wait_once(mark)
        return [__name__]

    main()
