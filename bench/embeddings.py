"""Embeddings through single-text tasks, against the best that one writes by hand for the same model and texts.

    python -m bench.embeddings
    python -m bench.embeddings --torch-python VENV/bin/python     beside torch too, with numpy and tokenizers there

By hand: one session of the runtime, one caller for each core, texts sorted by length, calls capped by padded tokens;
the best of several caps. Through tasks: one durable task for each text, its vector stored as its result and given back.
torch: the same weights, one text after the other, with one thread or one for each core, whichever is quicker.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from functools import partial
from pathlib import Path

import numpy as np
from bench.by_hand import HandWritten
from bench.by_torch import Timed, torch_beside
from bench.harness import Sample, Stopwatch, options, run, scratch
from bench.report import Report, row_of
from numpy.typing import NDArray

from mainspring import Engine, EngineConfig, ModelConfig, TaskManagerConfig
from mainspring.cli.demo.corpus import documents
from mainspring.config import cores
from mainspring.models import ModelManager

_CAPS = (256, 512, 1024, 2048)
_GOAL = 0.9
_OVER_TORCH = 2.0
_SAME = 0.999
"""Cosine of two vectors of one text."""
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


def _alike(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    return bool((one * other).sum(axis=1).min() > _SAME)


def _measure(report: Report, folder: Path, model: HandWritten, torch: Timed | None, given: argparse.Namespace) -> None:
    for n in given.n:
        some = texts(n)
        hand: dict[int, list[Sample]] = {cap: [] for cap in _CAPS}
        tasks: list[Sample] = []
        alone: dict[int, list[Sample]] = {threads: [] for threads in ({1, cores()} if torch else ())}
        for turn in range(given.runs):  # in turns, so that a loaded minute hits all
            for cap in _CAPS:
                sample, expected = by_hand(model, some, cap)
                hand[cap].append(sample)
            sample, vectors = run(partial(_through_tasks, folder / f"{n}-{turn}.db", some), given.loop)
            tasks.append(sample)
            assert np.allclose(expected, vectors, atol=1e-4)
            for threads, samples in alone.items():
                assert torch is not None
                sample, vectors = torch(some, threads)
                samples.append(sample)
                assert _alike(expected, vectors)
        best = max(hand, key=partial(_rate, hand))
        report.add(row_of(f"by hand, calls of {best} tokens", hand[best]))
        against = "the best by hand"
        report.add(row_of("one task a text", tasks, ratio=_ratio(tasks, hand[best]), against=against, goal=_GOAL))
        for threads, samples in alone.items():
            report.add(row_of(f"torch, one text at a time, threads: {threads}", samples))
        if alone:
            ratio = _ratio(tasks, alone[max(alone, key=partial(_rate, alone))])
            against = "the best of torch (beside torch)"
            report.add(row_of("one task a text, beside torch", tasks, ratio=ratio, against=against, goal=_OVER_TORCH))


def _rate(runs: dict[int, list[Sample]], key: int) -> float:
    return statistics.median(sample.rate for sample in runs[key])


def _ratio(ours: list[Sample], theirs: list[Sample]) -> float:
    return statistics.median(one.rate / other.rate for one, other in zip(ours, theirs, strict=True))


def main() -> None:
    parser = options("Embeddings through tasks against a loop by hand.", n="2000")
    parser.add_argument("--torch-python", type=Path, help="an interpreter with torch, numpy and tokenizers")
    given = parser.parse_args()
    with scratch(given.folder) as folder, contextlib.ExitStack() as stack:
        report = Report("embeddings", "Embeddings of single texts", folder, given.loop, given.out)
        place = model_folder()
        torch = None
        if given.torch_python is None:
            report.remarks.append("torch is left out: name an interpreter that has it with --torch-python.")
        else:
            torch = stack.enter_context(torch_beside(given.torch_python, place, folder))
            torch(texts(20), 1)  # not counted: its first calls prepare what later ones use
        _measure(report, folder, HandWritten(place), torch, given)
        report.finish()


if __name__ == "__main__":
    main()
