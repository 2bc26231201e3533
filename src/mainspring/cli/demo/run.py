"""The demo's run: the documentation of this Python through the engine, questions meanwhile and after, and figures."""

from __future__ import annotations

import asyncio
import logging
import platform
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from mainspring.cli import ledger
from mainspring.cli.demo.corpus import documents, file_names, write_corpus
from mainspring.cli.demo.quality import Quality, Question, baseline, evaluate, load_questions
from mainspring.cli.folder import Changes, Document, Failure, look
from mainspring.cli.indexing import Indexer, IndexReport
from mainspring.cli.ledger import TypeFigures
from mainspring.cli.progress import Quiet, progress
from mainspring.cli.screen import Screen
from mainspring.cli.session import Session, fetch_model
from mainspring.config import EngineConfig, RetrievalConfig
from mainspring.engine import Engine
from mainspring.environment import SYSTEM
from mainspring.errors import InvalidInput
from mainspring.tasks import SearchHit

COLLECTION = "python-docs"
_ASKED_MEANWHILE = 8
_SHOWN_ANSWERS = 4
_SHOWN_DOCUMENTS = 3
_TOP_K = 20
"""Chunks asked for: a document may have several, and ten documents are looked at."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    name: str  # of the document
    score: float  # cosine similarity, -1..1
    source: str
    text: str
    is_right: bool  # the question's label names this document


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    question: str
    found: list[Found]  # the best documents, best first


class Meanwhile(msgspec.Struct, frozen=True, kw_only=True):
    """A question asked while the index was being made."""

    answer: Answer
    seconds: float  # from submit to result
    waiting: int  # tasks that were in the queue before it


class DemoReport(msgspec.Struct, frozen=True, kw_only=True):
    python: str
    corpus: str
    store: str
    setup_seconds: float  # writing the documents, getting the model
    index: IndexReport
    meanwhile: list[Meanwhile]
    answers: list[Answer]  # some of those to the labelled questions
    search_seconds: float  # for all labelled questions together
    quality: Quality | None  # None: stopped before they were asked
    baseline: Quality | None  # of keyword search; None: stopped, or the extra `demo` is not installed
    tasks: list[TypeFigures]  # of this run alone
    peak_memory_bytes: int  # of this process, the model included
    seconds: float


class Demo:
    """One run. The documents and the store lie in `folder`."""

    def __init__(self, folder: Path, *, full: bool, screen: Screen) -> None:
        self._corpus = folder / "corpus"
        self._store = folder / "store.db"
        self._full = full
        self._screen = screen
        self._questions = load_questions()
        self._meanwhile: list[Meanwhile] = []
        self._found: dict[str, Sequence[SearchHit]] = {}  # by question
        self._search_seconds = 0.0

    async def run(self) -> DemoReport:
        """Raises what writing the documents, getting the model and opening the store raise."""
        began = SYSTEM.monotonic()
        config = EngineConfig(retrieval=RetrievalConfig(allowed_roots=(self._corpus,)))
        self._set_up(config)
        ready = SYSTEM.monotonic()
        with progress(as_json=self._screen.as_json) as shown:
            async with Session(self._store, config, self._screen) as session:
                engine, watcher = session.engine, _Watcher(shown)
                since_ms = engine.manager.store.now_ms()
                indexer = Indexer(engine, look(self._corpus, self._store), COLLECTION, watcher)
                if await session.until_stopped(self._index(engine, indexer, watcher)):
                    await session.until_stopped(self._ask_all(engine))
                tasks = await engine.manager.store.view(lambda view: ledger.by_type(view, since_ms))
        return DemoReport(
            python=platform.python_version(),
            corpus=str(self._corpus),
            store=str(self._store),
            setup_seconds=round(ready - began, 3),
            index=indexer.report(),
            meanwhile=self._meanwhile,
            answers=self._some_answers(),
            search_seconds=round(self._search_seconds, 3),
            quality=self._quality(),
            baseline=self._baseline(),
            tasks=tasks,
            peak_memory_bytes=peak_memory_bytes(),
            seconds=round(SYSTEM.monotonic() - began, 3),
        )

    def _set_up(self, config: EngineConfig) -> None:
        self._screen.note(f"reading the documentation of Python {platform.python_version()}")
        write_corpus(self._corpus, full=self._full)
        self._documents = documents(full=self._full)
        self._by_file = file_names(self._documents)
        self._screen.note(f"{len(self._documents):,} documents in {self._corpus}, indexed into {self._store}")
        fetch_model(config.models, self._screen)

    # Questions

    async def _index(self, engine: Engine, indexer: Indexer, watcher: _Watcher) -> None:
        asking = asyncio.ensure_future(self._ask_meanwhile(engine, watcher))
        try:
            await indexer.run()
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _ask_meanwhile(self, engine: Engine, watcher: _Watcher) -> None:
        """Ask now and then what is answered by the documents indexed so far."""
        left = list(self._questions)
        while True:
            await watcher.due.get()
            there = {self._by_file[name].name for name in watcher.indexed}
            question = next((question for question in left if question.answers & there), None)
            if question is None:
                continue
            left.remove(question)
            waiting = (await engine.manager.stats())["pending"]
            asked = SYSTEM.monotonic()
            hits = await engine.search(question.text, collection=COLLECTION, top_k=_TOP_K)
            took = SYSTEM.monotonic() - asked
            self._meanwhile.append(Meanwhile(answer=self._answer(question, hits), seconds=took, waiting=waiting))

    async def _ask_all(self, engine: Engine) -> None:
        began = SYSTEM.monotonic()
        texts = [question.text for question in self._questions]
        handles = await engine.map(engine.search, texts, collection=COLLECTION, top_k=_TOP_K)
        self._found = dict(zip(texts, await engine.gather(handles), strict=True))
        self._search_seconds = SYSTEM.monotonic() - began

    def _answer(self, question: Question, hits: Sequence[SearchHit]) -> Answer:
        best = {self._name(hit): hit for hit in reversed(hits)}
        found = [
            Found(
                name=name,
                score=hit.score,
                source=hit.metadata["source"],
                text=hit.text or "",
                is_right=name in question.answers,
            )
            for name, hit in reversed(best.items())
        ]
        return Answer(question=question.text, found=sorted(found, key=lambda one: -one.score)[:_SHOWN_DOCUMENTS])

    def _name(self, hit: SearchHit) -> str:
        return self._by_file[Path(hit.metadata["source"]).name].name

    # Figures

    def _some_answers(self) -> list[Answer]:
        some = self._questions[:: len(self._questions) // _SHOWN_ANSWERS][:_SHOWN_ANSWERS]
        return [self._answer(question, self._found[question.text]) for question in some if self._found]

    def _quality(self) -> Quality | None:
        if not self._found:
            return None
        return evaluate(
            {text: [self._name(hit) for hit in hits] for text, hits in self._found.items()}, self._questions
        )

    def _baseline(self) -> Quality | None:
        if not self._found:
            return None
        logging.getLogger("bm25s").propagate = False  # it tells of each step
        try:
            return baseline(self._documents, self._questions)
        except InvalidInput as exc:
            self._screen.note(str(exc))
            return None


class _Watcher:
    """Passes on what is over, and says when it is time for a question."""

    def __init__(self, shown: Quiet) -> None:
        self.due: asyncio.Queue[None] = asyncio.Queue()
        self.indexed: set[str] = set()  # names of files
        self._shown = shown
        self._every = 1

    def planned(self, changes: Changes) -> None:
        self._shown.planned(changes)
        self._every = max(1, len(changes.todo) // (_ASKED_MEANWHILE + 1))

    def done(self, document: Document, chunks: int) -> None:
        self._shown.done(document, chunks)
        self.indexed.add(Path(document.source).name)
        if len(self.indexed) % self._every == 0:
            self.due.put_nowait(None)

    def failed(self, failure: Failure) -> None:
        self._shown.failed(failure)


def peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
