"""What a claim came without is put in its place: large inputs, results of parents, how it stands to equal work."""

from __future__ import annotations

from mainspring.dispatch.attempt import complete
from mainspring.dispatch.desk import Desk
from mainspring.dispatch.recording import Recorder
from mainspring.errors import StoreUnavailable
from mainspring.results.cache import ResultCache
from mainspring.results.values import Values
from mainspring.store.base import LEADS, RELEASED, WANTS_KEPT, Claimed, Finish, Spec, Store


class Preparing:
    """For claims that wait at their desk meanwhile."""

    def __init__(self, store: Store, values: Values, cache: ResultCache, recorder: Recorder) -> None:
        self._store = store
        self._values = values
        self._cache = cache
        self._recorder = recorder

    async def is_to_run(self, desk: Desk, claim: Claimed) -> bool:
        """Put in place what a claim came without; returns whether there is something to run. If not, it is over."""
        try:
            spec = complete(claim, await self._values.input(claim))
            if not claim.flags & WANTS_KEPT or await self._leads(claim, spec):
                return True
        except StoreUnavailable:  # how it stands to equal work can't be told now
            self.put_back(desk, claim)
        except Exception as exc:  # noqa: BLE001 - an input that can't be put together is that attempt's failure
            if desk.begins(claim):
                desk.freed()
                self._recorder.refuse(claim, exc, desk.lane)
        else:
            if desk.begins(claim):
                desk.freed()
        return False

    async def _leads(self, claim: Claimed, spec: Spec | None) -> bool:
        """Whether this is the one of equal work that runs. Raises StoreUnavailable."""
        claim.work = self._cache.name_of(claim)
        if claim.flags & LEADS or claim.work is None:
            return True
        keep_ms = 0 if spec is None or spec.keep_ms is None else spec.keep_ms
        if await self._store.join(claim, keep_ms) != "leads":
            return False
        claim.flags |= LEADS
        return True

    def put_back(self, desk: Desk, claim: Claimed) -> None:
        """The store can't say now what has to be known of it, or nothing is to start here."""
        if desk.begins(claim):
            desk.freed()
            self._store.finish(Finish(claim, RELEASED, self._store.now_ms(), is_counted=False))
