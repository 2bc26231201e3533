"""Work that finds out on the way how much there is: fan out to children, join their results.

    python examples/fan_out.py [N]

The parent does not wait for its children: it returns their handles. Whoever depends on the parent gets their results,
and no slot is held meanwhile. An attempt that fails leaves no children behind.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from mainspring import Context, Engine

engine = Engine()


@engine.task
async def explore(n: int, ctx: Context) -> Any:
    """Split a range until the pieces are small; the result is a tree of sums."""
    return [ctx.submit(piece, start, min(start + 10, n)) for start in range(0, n, 10)]


@engine.task
async def piece(start: int, end: int, ctx: Context) -> Any:
    if end - start <= 5:
        return sum(range(start, end))
    middle = (start + end) // 2
    return [ctx.submit(piece, start, middle), ctx.submit(piece, middle, end)]


@engine.task
async def join(tree: Any) -> int:
    """Runs when all pieces are done, with their results in place of the handles."""
    return sum(total(item) for item in tree)


def total(item: Any) -> int:
    return item if isinstance(item, int) else sum(total(part) for part in item)


async def main(n: int) -> None:
    async with engine:
        tree = await engine.submit(explore, n)
        joined = await engine.submit(join, tree)
        print("tree:", await tree.result(timeout=60))
        print("sum:", await joined.result(timeout=60), "expected:", sum(range(n)))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 33))
