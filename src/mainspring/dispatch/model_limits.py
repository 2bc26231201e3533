"""Limits that models' manifests declare: stored by workers, so that they hold for all processes on the store."""

from __future__ import annotations

import logging

import msgspec

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

    async def _set(self, model_id: str, declared: Limits, old: GroupLimit | None) -> None:
        rate, cost_rate = declared.parsed_rate, declared.parsed_cost_rate
        wanted = Limits(
            concurrency=declared.concurrency,
            rate=None if rate is None else str(rate),
            cost_rate=None if cost_rate is None else str(cost_rate),
        )
        set_before = (
            Limits() if old is None else Limits(concurrency=old.concurrency, rate=old.rate, cost_rate=old.cost_rate)
        )
        if set_before == wanted:
            return
        if set_before:
            logger.warning(
                "model %s: the limits in its manifest here (%s) take the place of those that were set (%s)",
                model_id, _shown(wanted), _shown(set_before),
            )  # fmt: skip
        await self._store.limit(
            group_of_model(model_id), namespace="", concurrency=wanted.concurrency, rate=rate, cost_rate=cost_rate
        )


def _shown(limits: Limits) -> str:
    return ", ".join(f"{name} {value}" for name, value in msgspec.structs.asdict(limits).items())
