"""A folder into a collection: each new or changed document goes through the pipeline, as durable tasks.

The collection itself says what is indexed: its records carry source, size, time of change, digest and pipeline. The
upsert replaces a source's records in the commit that completes it, so a search never meets half a document.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from mainspring.cli import ledger
from mainspring.cli.folder import Changes, Document, Failure, Listing, compare
from mainspring.cli.pipeline import STEPS, Pipeline
from mainspring.cli.progress import Watcher
from mainspring.engine import Engine, TaskHandle
from mainspring.environment import SYSTEM
from mainspring.errors import TaskError, invalid
from mainspring.store.sql.reads import View
from mainspring.tasks import TaskId, TaskStatus

_AT_ONCE = 256
"""Documents on their way through the store: enough to keep all slots busy, few enough to keep memory flat."""
_TOGETHER = 32
"""Documents of one submit, hence of one commit."""
_REMOVED_TOGETHER = 500


class IndexReport(msgspec.Struct, frozen=True, kw_only=True):
    folder: str
    collection: str
    documents: int  # in the folder
    indexed: int  # new or changed, now in the collection
    chunks: int  # of those
    resumed: int  # documents that an earlier run had begun
    unchanged: int  # in the collection already: nothing was computed
    removed: int  # gone from the folder, hence from the collection
    skipped: int  # no documents by their names
    failed: list[Failure]
    seconds: float
    interrupted: bool


class Indexer:
    """Brings a collection in line with a folder, once."""

    def __init__(self, engine: Engine, listing: Listing, collection: str, watcher: Watcher) -> None:
        self._engine = engine
        self._listing = listing
        self._pipeline = Pipeline(collection=collection, model_id=engine.config.models.default_embedding)
        self._watcher = watcher
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._began = self._ended = SYSTEM.monotonic()
        self._changes = Changes(todo=[], unchanged=0, removed=[])
        self._chunks: dict[str, int] = {}  # of what was indexed, by source
        self._failures = list(listing.failures)
        self._resumed = 0
        self._removed = 0
        self._is_whole = False

    async def run(self) -> None:
        """Return when every document is indexed or has failed.

        Cancel it to stop early: what was submitted stays, and the next run goes on with it.

        Raises: InvalidInput: the collection was made by another model. What submitting raises.
        """
        try:
            turns = await self._plan()
            self._watcher.planned(self._changes)
            await self._remove()
            async with asyncio.TaskGroup() as following:
                for start in range(0, len(turns), _TOGETHER):
                    for document, ids, handle in await self._submit(turns[start : start + _TOGETHER]):
                        following.create_task(self._follow(document, ids, handle))
            self._is_whole = True
        except ExceptionGroup as several:
            raise several.exceptions[0] from several
        finally:
            self._ended = SYSTEM.monotonic()

    def report(self) -> IndexReport:
        """Return what was reached so far."""
        return IndexReport(
            folder=str(self._listing.folder),
            collection=self._pipeline.collection,
            documents=len(self._listing.documents),
            indexed=len(self._chunks),
            chunks=sum(self._chunks.values()),
            resumed=self._resumed,
            unchanged=self._changes.unchanged,
            removed=self._removed,
            skipped=self._listing.skipped,
            failed=sorted(self._failures, key=lambda failure: failure.source),
            seconds=round(self._ended - self._began, 3),
            interrupted=not self._is_whole,
        )

    # What is to be done

    async def _plan(self) -> list[tuple[Document, int]]:
        """Return what to index, with each document's turn.

        Steps that an earlier run left behind for other content than the files have now would write it over the new:
        they are ended first.
        """
        while True:
            self._changes = await asyncio.to_thread(self._compared)
            turns = await self._turns(self._changes.todo)
            # What an earlier run left behind goes on meanwhile: what came to its end between the two looks is done, and
            # no content that has gone through before and has to again.
            self._changes = await asyncio.to_thread(self._compared)
            todo = {document.source for document in self._changes.todo}
            turns = [(document, turn) for document, turn in turns if document.source in todo]
            ours = {id: document for document, turn in turns for id in self._pipeline.step_ids(document, turn)}
            left = await self._engine.manager.store.view(self._left_behind)
            stale = [id for id, source in left if id not in ours and self._is_mine(source)]
            if not stale:
                self._resumed = len({ours[id].source for id, _ in left if id in ours})
                return turns
            for id in stale:
                await self._engine.manager.cancel_task(id)
            for id in stale:
                await self._engine.manager.get_task_result(id)

    def _left_behind(self, view: View) -> list[tuple[TaskId, str]]:
        return ledger.unfinished(view, self._pipeline.collection)

    def _is_mine(self, source: str) -> bool:
        return not source or Path(source).is_relative_to(self._listing.folder)

    def _compared(self) -> Changes:
        vectors, name = self._engine.vectors, self._pipeline.collection
        known = next((found for found in vectors.collections() if found.name == name), None)
        if known is not None and known.count and known.model_id != self._pipeline.model_id:
            why = f"holds vectors of {known.model_id}, not of {self._pipeline.model_id}"
            raise invalid("collection", name, why, "name another collection")
        records = vectors.metadata(name) if known is not None else []
        indexed: dict[str, dict[str, Any]] = {meta["source"]: meta for _, meta in records if "source" in meta}
        return compare(self._listing, indexed, self._pipeline.version)

    async def _turns(self, documents: list[Document]) -> list[tuple[Document, int]]:
        """Return each document with the number of times that its present content has gone through all steps before."""
        turns = [0] * len(documents)
        asked = list(range(len(documents)))
        while asked:
            last = {self._pipeline.step_ids(documents[n], turns[n])[-1].bytes: n for n in asked}
            asked = [last[ended.id] for ended in await self._engine.manager.store.ended(list(last))]
            for n in asked:
                turns[n] += 1
        return list(zip(documents, turns, strict=True))

    # Doing it

    async def _remove(self) -> None:
        sources = self._changes.removed
        for start in range(0, len(sources), _REMOVED_TOGETHER):
            some = sources[start : start + _REMOVED_TOGETHER]
            await (await self._engine.submit(self._pipeline.removal(some))).result()
            self._removed += len(some)

    async def _submit(self, turns: list[tuple[Document, int]]) -> list[tuple[Document, list[TaskId], TaskHandle]]:
        """Store the steps of these documents, when there is room for them; what is stored already is found again."""
        for _ in turns:
            await self._room.acquire()
        tasks = [self._pipeline.tasks(document, turn) for document, turn in turns]
        handles = await self._engine.submit_all([task for steps in tasks for task in steps])
        return [
            (document, [task.id for task in steps], last)
            for (document, _), steps, last in zip(turns, tasks, handles[len(STEPS) - 1 :: len(STEPS)], strict=True)
        ]

    async def _follow(self, document: Document, ids: list[TaskId], last: TaskHandle) -> None:
        try:
            stored = await last.result()
        except TaskError:
            self._failed(await self._reason(document, ids))
        else:
            if stored.count:
                self._chunks[document.source] = stored.count
                self._watcher.done(document, stored.count)
            else:
                self._failed(Failure(source=document.source, step="chunk", reason="there is no text in it"))
        finally:
            self._room.release()

    async def _reason(self, document: Document, ids: list[TaskId]) -> Failure:
        """Return what the first step says that did not complete: those after it failed for it."""
        results = [await self._engine.manager.get_task_result(id) for id in ids]
        step, result = next(
            (step, result)
            for step, result in zip(STEPS, results, strict=True)
            if result.status is not TaskStatus.COMPLETED
        )
        return Failure(source=document.source, step=step, reason=str(result.error or result.status.value))

    def _failed(self, failure: Failure) -> None:
        self._failures.append(failure)
        self._watcher.failed(failure)
