"""Handlers of known cost, for every lane."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from mainspring import Batch, Context


def spin(cpu_s: float) -> None:
    """Burn so much CPU time, however long that takes."""
    until = time.thread_time() + cpu_s
    while time.thread_time() < until:
        pass


async def spin_in_steps(cpu_s: float) -> None:
    """The same in steps, with waiting between, which costs nothing."""
    for _ in range(4):
        spin(cpu_s / 4)
        await asyncio.sleep(0.01)


def hold(n: int) -> int:
    """Have so many bytes, each page touched."""
    return len(b"x" * n)


async def hold_on_the_loop(n: int) -> int:
    return hold(n)


def move(url: str, sent: int, ctx: Context) -> int:
    """Post so many bytes; what comes back is the server's to say."""
    return len(ctx.http.post(url, content=b"x" * sent).content)


async def move_on_the_loop(url: str, sent: int, ctx: Context) -> int:
    return len((await ctx.http.post(url, content=b"x" * sent)).content)


def spin_together(shares: list[float]) -> list[None]:
    """One call for all: of each as much as it asks for."""
    spin(sum(shares))
    return [None] * len(shares)


async def spin_together_on_the_loop(shares: list[float]) -> list[None]:
    await spin_in_steps(sum(shares))
    return [None] * len(shares)


def move_together(parts: list[tuple[str, int]], contexts: list[Context]) -> list[int]:
    """Post for each item what it asks for, by its own client. In a call for several all fail once that is done."""
    done = [move(url, sent, ctx) for (url, sent), ctx in zip(parts, contexts, strict=True)]
    if len(parts) > 2:
        raise ValueError("after the fact")
    return done


async def move_together_on_the_loop(parts: list[tuple[str, int]], contexts: list[Context]) -> list[int]:
    done = [await move_on_the_loop(url, sent, ctx) for (url, sent), ctx in zip(parts, contexts, strict=True)]
    if len(parts) > 2:
        raise ValueError("after the fact")
    return done


def hold_together(sizes: list[int]) -> list[int]:
    held = [b"x" * n for n in sizes]
    return [len(one) for one in held]


async def hold_together_on_the_loop(sizes: list[int]) -> list[int]:
    return hold_together(sizes)


def declare(engine: Any, lane: str) -> dict[str, Any]:
    """Register all of them in a lane; returns them by name."""
    on_loop, batch = lane == "async", Batch(max_size=4, max_wait=60)
    wanted: dict[str, tuple[Any, Batch | None]] = {
        "spin": (spin_in_steps if on_loop else spin, None),
        "move": (move_on_the_loop if on_loop else move, None),
        "hold": (hold_on_the_loop if on_loop else hold, None),
        "spin_together": (spin_together_on_the_loop if on_loop else spin_together, batch),
        "move_together": (move_together_on_the_loop if on_loop else move_together, batch),
        "hold_together": (hold_together_on_the_loop if on_loop else hold_together, batch),
    }
    return {
        name: engine.task(name=f"{name}_{lane}", lane=lane, retry=0, batch=batch)(function)
        for name, (function, batch) in wanted.items()
    }
