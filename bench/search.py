"""Vector search through tasks, in a file: its rate against the raw computation, and what a query waits while documents
are indexed.

    python -m bench.search                              100,000 records of 384 numbers, some minutes
    python -m bench.search --n 5000 --queries 256 --asked 20     a quick look

- rate: queries that bring their vectors, one task each, 64 in a call. Raw: the product of 64 queries with all records,
  and the ten best of each line, in numpy; both find the same ids.
- urgent: one query at a time, a text that the model embeds first, on an otherwise idle engine and beside documents on
  their way: each is embedded by one task and written into the same collection by another.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from bench.embeddings import model_folder, texts
from bench.harness import Sample, Stopwatch, options, percentile, run, scratch
from bench.report import Report, Row, row_of
from bench.subject import opened
from numpy.typing import NDArray

from mainspring import Engine, SearchQuery
from mainspring.tasks import VectorRecord

_DIM, _TOP_K, _TOGETHER = 384, 10, 64
_PIECE = 5_000
_CHUNKS = 4
"""Texts of a document."""
_QUERY_WORDS = 8
_WARM_UP = 10
_SAME = 0.999
_RAW = 0.9
_URGENT = 3.0

Vectors = NDArray[np.float32]


def unit(n: int, seed: int) -> Vectors:
    drawn = np.random.default_rng(seed).standard_normal((n, _DIM)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)  # type: ignore[no-any-return]


# --- The rate --------------------------------------------------------------------------------------------------------


def raw(records: Vectors, queries: Vectors) -> tuple[Sample, list[list[int]]]:
    """Return the run, and for each query the numbers of its nearest records, best first."""
    found: list[list[int]] = []
    top_k = min(_TOP_K, len(records))
    with Stopwatch() as watch:
        for at in range(0, len(queries), _TOGETHER):
            scores = queries[at : at + _TOGETHER] @ records.T
            near = np.argpartition(scores, -top_k, axis=1)[:, -top_k:]
            order = np.argsort(-np.take_along_axis(scores, near, axis=1), axis=1)
            found += np.take_along_axis(near, order, axis=1).tolist()
    return watch.sample(len(queries)), found


def fill(engine: Engine, records: Vectors) -> None:
    for at in range(0, len(records), _PIECE):
        numbers = range(at, min(at + _PIECE, len(records)))
        some = [VectorRecord(str(n), records[n], f"text {n}", {"n": n}) for n in numbers]
        engine.vectors.upsert("docs", some, model_id=_model(engine))


async def through_tasks(engine: Engine, queries: Vectors) -> tuple[Sample, list[list[int]]]:
    asked = [SearchQuery(vector=query, collection="docs", top_k=_TOP_K) for query in queries]
    with Stopwatch() as watch:
        answers = await engine.gather(await engine.map(engine.search, asked))
    return watch.sample(len(queries)), [[int(hit.id) for hit in answer] for answer in answers]


# --- A query beside other work ---------------------------------------------------------------------------------------


async def waits_ms(engine: Engine, asked: Sequence[str]) -> list[float]:
    """Ask one text after the other; return how long each answer took."""
    taken = []
    for text in asked:
        at = time.perf_counter()
        await engine.search(text, collection="docs", top_k=_TOP_K)
        taken.append((time.perf_counter() - at) * 1e3)
    return taken


class Indexing:
    """So many documents at once on their way into the collection while the block runs."""

    def __init__(self, engine: Engine, pieces: Sequence[str], at_once: int) -> None:
        self._engine = engine
        self._at_once = at_once
        documents = [list(pieces[at : at + _CHUNKS]) for at in range(0, len(pieces), _CHUNKS)]
        self._documents = enumerate(itertools.cycle(documents))
        self._arrives = asyncio.Event()
        self._written = 0  # texts
        self._is_over = False

    async def __aenter__(self) -> Indexing:
        """Return when documents arrive: all slots are full by then."""
        self._began = time.perf_counter()
        self._going = [asyncio.create_task(self._index()) for _ in range(self._at_once)]
        arrived = asyncio.create_task(self._arrives.wait())
        await asyncio.wait((arrived, *self._going), return_when=asyncio.FIRST_COMPLETED)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """What is on its way arrives, so that nothing runs beside what comes next."""
        self._is_over = True
        await asyncio.gather(*self._going)
        self.rate = self._written / (time.perf_counter() - self._began)  # texts a second

    async def _index(self) -> None:
        engine = self._engine
        while not self._is_over:
            number, pieces = next(self._documents)
            vectors = await engine.submit(engine.embed, pieces)
            await engine.upsert("docs", vectors, id_prefix=f"document {number}", texts=pieces, model_id=_model(engine))
            self._written += len(pieces)
            self._arrives.set()


def _model(engine: Engine) -> str:
    return engine.config.models.default_embedding


# --- The report ------------------------------------------------------------------------------------------------------


async def measured(report: Report, path: Path, n: int, given: argparse.Namespace) -> None:
    records, queries = unit(n, 0), unit(given.queries, 1)
    pieces = texts(given.asked * _CHUNKS)
    asked = [" ".join(piece.split()[:_QUERY_WORDS]) for piece in pieces[: given.asked]]
    by_hand, tasks, idle, beside, indexed = [], [], [], [], []
    async with opened(path) as engine:
        await asyncio.to_thread(fill, engine, records)
        await through_tasks(engine, queries[:_TOGETHER])  # not counted: its records are read into memory
        for _ in range(given.runs):  # in turns, so that a loaded minute hits both
            sample, nearest = await asyncio.to_thread(raw, records, queries)
            by_hand.append(sample)
            sample, found = await through_tasks(engine, queries)
            tasks.append(sample)
            assert _alike(found, nearest)
        await waits_ms(engine, asked[:_WARM_UP])
        for _ in range(given.runs):
            idle.append(await waits_ms(engine, asked))
            async with Indexing(engine, pieces, given.documents) as indexing:
                beside.append(await waits_ms(engine, asked))
            indexed.append(indexing.rate)
    _rows(report, n, by_hand, tasks)
    _waits(report, n, idle, beside, indexed)


def _alike(found: Sequence[Sequence[int]], nearest: Sequence[Sequence[int]]) -> bool:
    """Whether they are the same but for records whose distances differ by what single precision makes of them."""
    same = sum(len({*one} & {*other}) for one, other in zip(found, nearest, strict=True))
    return same > _SAME * sum(map(len, nearest))


def _rows(report: Report, n: int, by_hand: Sequence[Sample], tasks: Sequence[Sample]) -> None:
    report.add(row_of(f"raw, {n:,} records", by_hand))
    ratio = statistics.median(one.rate / other.rate for one, other in zip(tasks, by_hand, strict=True))
    report.add(row_of(f"tasks, {n:,} records", tasks, ratio=ratio, against="raw (rate)", goal=_RAW))


def _waits(
    report: Report, n: int, idle: Sequence[list[float]], beside: Sequence[list[float]], indexed: Sequence[float]
) -> None:
    for share, goal in ((0.5, None), (0.99, _URGENT)):
        name = f"p{share * 100:.0f}"
        alone, loaded = ([percentile(run, share) for run in runs] for runs in (idle, beside))
        report.add(Row(what=f"query, idle, {name}", n=len(idle[0]), values=alone, unit="ms"))
        ratio = statistics.median(one / other for one, other in zip(loaded, alone, strict=True))
        report.add(
            Row(
                what=f"query beside indexing, {name}", n=len(idle[0]), values=loaded, unit="ms", ratio=ratio,
                against="the same, idle (query)", goal=goal, lower_is_better=True,
                note=f"{n:,} records and more; {statistics.median(indexed):.0f} texts/s indexed meanwhile",
            )
        )  # fmt: skip


def main() -> None:
    parser = options("Vector search through tasks.", n="100000")
    parser.add_argument("--queries", default=2048, type=int, help="queries of a run that measures the rate")
    parser.add_argument("--asked", default=200, type=int, help="queries of a run that measures how long each waits")
    parser.add_argument("--documents", default=256, type=int, help="documents on their way, as `mainspring index` has")
    given = parser.parse_args()
    model_folder()
    with scratch(given.folder) as folder:
        report = Report("search", "Vector search through tasks, top 10", folder, given.loop, given.out)
        for n in given.n:
            run(partial(measured, report, folder / f"{n}.db", n, given), given.loop)
        report.finish()


if __name__ == "__main__":
    main()
