"""Limits that models' manifests declare: stored by workers, so that they hold for all processes on the store."""

from __future__ import annotations

import logging

from mainspring.models.manager import ModelManager
from mainspring.models.manifest import Limits
from mainspring.store.base import Store
from mainspring.tasks import GroupLimit
from mainspring.tasks.limits import group_of_model

logger = logging.getLogger("mainspring.dispatch")


class ModelLimits:
    """Sets the limits of groups `model:<id>` to what the models known here declare.

    The last worker to say so wins: an older one beside it says nothing until it starts again. A model that declares
    nothing leaves what is stored as it is.
    """

    def __init__(self, models: ModelManager, store: Store) -> None:
        self._models = models
        self._store = store
        self._seen = -1

    @property
    def is_due(self) -> bool:
        """Whether a model has come whose limits may not be stored."""
        return self._seen != self._models.revision

    async def store_new(self) -> None:
        """Store what is not stored as it is declared. Raises: StoreUnavailable."""
        revision = self._models.revision
        if revision == self._seen:
            return
        if declared := self._models.limits():
            stored = {limit.group: limit for limit in await self._store.limits() if limit.namespace is None}
            for model_id, limits in declared.items():
                await self._set(model_id, limits, stored.get(group_of_model(model_id)))
        self._seen = revision

    async def _set(self, model_id: str, limits: Limits, old: GroupLimit | None) -> None:
        rate = limits.parsed_rate
        shown = None if rate is None else str(rate)
        before = (None, None) if old is None else (old.concurrency, old.rate)
        if before == (limits.concurrency, shown):
            return
        if before != (None, None):
            logger.warning(
                "model %s: the limits in its manifest here (concurrency %s, rate %s) take the place of those that were "
                "set (concurrency %s, rate %s)",
                model_id, limits.concurrency, shown, *before,
            )  # fmt: skip
        await self._store.limit(group_of_model(model_id), namespace="", concurrency=limits.concurrency, rate=rate)
