"""Embeddings through single-text tasks, against the best that one writes by hand for the same model and texts.

    python -m bench.embeddings

By hand: one session of the runtime, one caller for each core, texts sorted by length, calls capped by padded tokens;
the best of several caps. Through tasks: one durable task for each text, its vector stored as its result and given back.
"""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path

import numpy as np
from bench.by_hand import HandWritten
from bench.harness import Sample, Stopwatch, options, run, scratch
from bench.report import Report, row_of
from numpy.typing import NDArray

from mainspring import Engine, EngineConfig, ModelConfig, TaskManagerConfig
from mainspring.cli.demo.corpus import documents
from mainspring.config import cores
from mainspring.models import ModelManager

_CAPS = (256, 512, 1024, 2048)
_GOAL = 0.9
_WORDS = 60
"""A chunk's length; the texts' last pieces are shorter, as they are in a pipeline."""


def texts(n: int) -> list[str]:
    """Return pieces of the documentation of the Python that is running, in its order."""
    found: list[str] = []
    for document in documents():
        words = document.text.split()
        found += [" ".join(words[at : at + _WORDS]) for at in range(0, len(words), _WORDS)]
        if len(found) >= n:
            return found[:n]
    return found


def by_hand(model: HandWritten, given: list[str], cap: int) -> tuple[Sample, NDArray[np.float32]]:
    with Stopwatch() as watch:
        vectors = model.embed(given, cap=cap, callers=cores())
    return watch.sample(len(given)), vectors


async def _through_tasks(path: Path, given: list[str]) -> tuple[Sample, NDArray[np.float32]]:
    async with Engine(path, EngineConfig(manager=TaskManagerConfig(queue_size=None))) as engine:
        await engine.gather(await engine.map(engine.embed, given[:64]))
        with Stopwatch() as watch:
            vectors = await engine.gather(await engine.map(engine.embed, given))
    return watch.sample(len(given)), np.vstack(vectors)


def model_folder() -> Path:
    config = ModelConfig()
    ModelManager(config).warm(config.default_embedding)  # downloads it where that was not done yet
    return config.cache_folder / config.default_embedding


def main() -> None:
    given = options("Embeddings through tasks against a loop by hand.", n="2000").parse_args()
    with scratch(given.folder) as folder:
        report = Report("embeddings", "Embeddings of single texts", folder, given.loop, given.out)
        model = HandWritten(model_folder())
        for n in given.n:
            some = texts(n)
            hand: dict[int, list[Sample]] = {cap: [] for cap in _CAPS}
            tasks: list[Sample] = []
            for turn in range(given.runs):  # in turns, so that a loaded minute hits all
                for cap in _CAPS:
                    sample, expected = by_hand(model, some, cap)
                    hand[cap].append(sample)
                sample, vectors = run(partial(_through_tasks, folder / f"{n}-{turn}.db", some), given.loop)
                tasks.append(sample)
                assert np.allclose(expected, vectors, atol=1e-4)
            best = max(_CAPS, key=lambda cap: statistics.median(sample.rate for sample in hand[cap]))
            report.add(row_of(f"by hand, calls of {best} tokens", hand[best]))
            ratio = statistics.median(one.rate / other.rate for one, other in zip(tasks, hand[best], strict=True))
            report.add(row_of("one task a text", tasks, ratio=ratio, against="the best by hand", goal=_GOAL))
        report.finish()


if __name__ == "__main__":
    main()
