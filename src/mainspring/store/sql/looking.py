"""What a store tells of its tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, TypeVar

from mainspring.blobs.base import BlobStore
from mainspring.store.base import Ended, Queued
from mainspring.store.sql import ledger, reads
from mainspring.store.sql.queued import queued
from mainspring.store.sql.reads import View
from mainspring.store.sql.shortages import Offer
from mainspring.store.sql.standing import standing
from mainspring.store.standing import Standing
from mainspring.tasks import Ledger, LedgerKey, TaskId, TaskInfo, TaskResult, TaskStatus
from mainspring.tasks.texts import check_text

T = TypeVar("T")


class Looking(ABC):
    """Reads alone, on connections of their own."""

    blobs: BlobStore

    @abstractmethod
    def now_ms(self) -> int: ...

    def told(self) -> tuple[str, Offer] | None:
        """Return this process's worker, with what it says of tasks that it does not start; None: it said nothing."""
        return None

    @abstractmethod
    async def view(self, run: Callable[[View], T]) -> T:
        """Run a function that only reads, beside the writer."""

    @abstractmethod
    async def survey(self, run: Callable[[View], T]) -> T:
        """The same for what may take long: on a connection of its own, so that no other look waits for it."""

    @abstractmethod
    def silences(self, view: View, workers: Collection[str]) -> dict[str, float]:
        """Return the others of these that have not been heard of, where one that is well would have been, each with for
        how many seconds."""

    async def info(self, id: bytes) -> TaskInfo:
        return await self.view(lambda view: reads.info(view, self.blobs, id))

    async def standing(self, id: bytes, *, in_line: bool = False) -> Standing:
        now_ms, told = self.now_ms(), self.told()
        silences = self.silences
        return await self.view(
            lambda view: standing(view, id, now_ms, in_line=in_line, told=told, silences=partial(silences, view))
        )

    async def stats(self) -> dict[str, Any]:
        return await self.view(reads.stats)

    async def ledger(self, by: Collection[LedgerKey], since_ms: int | None) -> Ledger:
        return await self.survey(lambda view: ledger.ledger(view, by, since_ms))

    async def queued(self, most: int = 10_000) -> Queued:
        return await self.survey(lambda view: queued(view, most))

    async def result(self, id: bytes) -> TaskResult | None:
        return await self.view(lambda view: reads.result(view, self.blobs, id))

    async def ended(self, ids: Sequence[bytes]) -> list[Ended]:
        return await self.view(lambda view: reads.ended(view, ids))

    async def require(self, ids: Sequence[bytes]) -> None:
        """Raises TaskNotFound for the first id that the store does not know."""
        unknown = await self.view(lambda view: reads.missing(view, ids))
        if unknown:
            raise await self.view(lambda view: reads.not_found(view, unknown[0]))

    async def list_tasks(
        self,
        *,
        status: TaskStatus | None = None,
        type: str | None = None,
        namespace: str | None = None,
        limit: int = 50,
        before: TaskId | None = None,
    ) -> list[TaskInfo]:
        for field, name in (("type", type), ("namespace", namespace)):
            if name is not None:
                check_text(field, name)
        return await self.view(
            lambda view: reads.page(
                view, self.blobs, status=status, type=type, namespace=namespace, limit=limit, before=before
            )
        )
