"""What is gained by learning how large a call should be, against sizes that are fixed by hand.

    python -m bench.batching

Two handlers: one brings all texts of a call to the length of the longest and sends them through a model, as one writes
it first, so that large calls compute for nothing; the other waits for a service that takes 20 ms however many items
there are, so that small calls wait for nothing. Both may take 128. Fixed sizes do not learn, and say what is best.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

from bench.by_hand import HandWritten
from bench.embeddings import model_folder, texts
from bench.harness import Sample, Stopwatch, options, run, scratch
from bench.report import Report, row_of

from mainspring import Batch, Engine, EngineConfig, TaskManagerConfig
from mainspring.dispatch.budget import Budget

_MOST = 128
_SIZES = (4, 8, 16, 32, 64, 128)
_GOAL = 0.9
_SERVICE_S = 0.02

Declare = Callable[[Engine, Batch], Callable[[list[str]], Awaitable[list[int]] | list[int]]]


def padded(model: HandWritten) -> Declare:
    def declare(engine: Engine, batch: Batch) -> Callable[[list[str]], list[int]]:
        @engine.task(batch=batch)
        def embed(given: list[str]) -> list[int]:
            return [vector.size for vector in model.embed_padded(given)]

        return embed

    return declare


def service(engine: Engine, batch: Batch) -> Callable[[list[str]], Awaitable[list[int]]]:
    @engine.task(batch=batch)
    async def ask(given: list[str]) -> list[int]:
        await asyncio.sleep(_SERVICE_S)  # it stands for the service, which is what is measured here
        return [len(text) for text in given]

    return ask


async def _timed(path: Path, declare: Declare, size: int, given: list[str]) -> Sample:
    config = EngineConfig(manager=TaskManagerConfig(queue_size=None, async_slots=2, thread_slots=2))
    async with Engine(path, config) as engine:
        handler = declare(engine, Batch(max_size=size))
        with Stopwatch() as watch:
            await engine.gather(await engine.map(handler, given))
        return watch.sample(len(given))


def fixed(path: Path, declare: Declare, size: int, given: list[str], loop: str) -> Sample:
    """Make calls of one size, as if nothing were learned."""
    with patch.object(Budget, "learn", lambda *_: None):
        return run(partial(_timed, path, declare, size, given), loop)


def main() -> None:
    given = options("Sizes of calls that are learned, against fixed ones.", n="4000").parse_args()
    with scratch(given.folder) as folder:
        report = Report("batching", "How large a call should be", folder, given.loop, given.out)
        handlers = {"texts padded to the longest": padded(HandWritten(model_folder())), "a service of 20 ms": service}
        for n in given.n:
            some = texts(n)
            for name, declare in handlers.items():
                by_hand: dict[int, list[Sample]] = {size: [] for size in _SIZES}
                learned: list[Sample] = []
                for turn in range(given.runs):  # in turns, so that a loaded minute hits all
                    for size in _SIZES:
                        by_hand[size].append(
                            fixed(folder / f"{n}{name}{turn}-{size}.db", declare, size, some, given.loop)
                        )
                    path = folder / f"{n}{name}{turn}.db"
                    learned.append(run(partial(_timed, path, declare, _MOST, some), given.loop))
                rates = {size: statistics.median(one.rate for one in by_hand[size]) for size in _SIZES}
                best = max(rates, key=rates.__getitem__)
                for size in _SIZES:
                    report.add(row_of(f"{name}, calls of {size}", by_hand[size]))
                for other, goal in ((best, _GOAL), (_MOST, None)):
                    pairs = zip(learned, by_hand[other], strict=True)
                    ratio = statistics.median(one.rate / fix.rate for one, fix in pairs)
                    against = f"calls of {other}" + (", the best" if other == best else ", what is allowed")
                    report.add(row_of(f"{name}, learned", learned, ratio=ratio, against=against, goal=goal))
        report.finish()


if __name__ == "__main__":
    main()
