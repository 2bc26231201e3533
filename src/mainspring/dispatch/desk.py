"""A desk: claims of one port that have not begun, and the attempts that run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping
from typing import Any, Literal, TypeAlias

from mainspring.dispatch.attempt import Attempt
from mainspring.environment import Environment
from mainspring.execution.base import Runner
from mainspring.processors.base import Lane as LaneName
from mainspring.store.base import SUSPECT, URGENT, Claimed, Store
from mainspring.store.lane import Lane

Stage: TypeAlias = Literal["queued", "begins", "handed", "runs", "over"]
"""How far a claim is: it waits for a slot, it is about to begin, a child process has it, it runs, or its end is being
recorded."""


class Desk(ABC):
    """What a lane's own desk and that of a type whose tasks run together have in common."""

    def __init__(self, name: str, lane: LaneName, runner: Callable[[], Runner], store: Store, env: Environment) -> None:
        self.port = Lane(name, 0)
        self.lane = lane
        self.store = store
        self.env = env
        self.mark = store.mark if lane in ("async", "thread") else None  # a crash in here is this process's crash
        self.runner = runner
        self.slots = 0
        self.ahead = 0  # claims that its runner takes for each slot before it can run them
        self.running: dict[bytes, Attempt] = {}
        self.over: Claimed | None = None  # the last one whose handler ended
        self.given = 0  # claims, to processes that asked for some
        self.parked: dict[bytes, Claimed] = {}  # what they need is not free; they take no part of the lane's room
        self._taking = True
        self._waiting: dict[bytes, Claimed] = {}  # on their way into a slot, where their turn has not come

    @property
    def begun(self) -> int:
        """How many of those that were given to the runner have begun."""
        return sum(attempt.started_at is not None for attempt in self.running.values())

    def stage(self, id: bytes) -> Stage | None:
        """Return how far the claim of a task is; None: it is not here."""
        if (attempt := self.running.get(id)) is not None:
            if attempt.started_at is None:
                if self.ahead and self.begun >= self.slots:
                    return "queued"
                return "handed" if self.lane == "process" else "begins"
            return "over" if attempt.ended else "runs"
        return "begins" if id in self._waiting else None

    @property
    def is_shut(self) -> bool:
        """Whether no more claims are taken."""
        return not self._taking

    @property
    def is_supplied(self) -> bool:
        """Whether so much is at hand that an end may wait a moment for the next ones: all are written together."""
        return False

    def waits(self, claim: Claimed) -> None:
        """It can't begin at once: until `begins` it may be taken back."""
        self._waiting[claim.id] = claim

    def begins(self, claim: Claimed) -> bool:
        """Whether a claim that waited for its turn still is to begin: it was not taken back meanwhile."""
        if self._waiting.get(claim.id) is not claim:
            return False
        del self._waiting[claim.id]
        return True

    def has(self, claim: Claimed) -> bool:
        """Whether it waits for a slot here."""
        return self._waiting.get(claim.id) is claim or self._is_queued(claim)

    def park(self, claim: Claimed) -> None:
        """It has to wait for resources: others are claimed meanwhile."""
        self.parked[claim.id] = claim
        self.port.released += 1

    def unpark(self, claim: Claimed) -> None:
        """It is to come again."""
        del self.parked[claim.id]
        self.port.released -= 1

    def withdraw(self, id: bytes) -> Claimed | None:
        """Take the claim of this task out, if there is one that has not begun."""
        taken = self.take(lambda claim: claim.id == id)
        return taken[0] if taken else None

    def take(self, is_wanted: Callable[[Claimed], bool]) -> list[Claimed]:
        """Take out claims that have not begun."""
        waiting = [claim for claim in self._waiting.values() if is_wanted(claim)]
        for claim in waiting:
            del self._waiting[claim.id]
        parked = [claim for claim in self.parked.values() if is_wanted(claim)]
        for claim in parked:
            self.unpark(claim)
        return waiting + parked + self._take_queued(is_wanted)

    def hasten(self, ranks: Mapping[bytes, int]) -> None:
        """Somebody urgent waits for these tasks: those that have not begun go further to the front."""
        queued = self._take_queued(lambda claim: claim.id in ranks)
        waiting = [claims[id] for id in ranks for claims in (self._waiting, self.parked) if id in claims]
        for claim in queued + waiting:
            claim.rank = min(claim.rank, ranks[claim.id])
            claim.flags |= URGENT
        if queued:
            self.put_again(queued)

    def gave_back(self, claim: Claimed) -> None:
        """A claim that did not run makes room."""
        self.over = claim
        self.port.released += 1

    def receive(self, claims: list[Claimed], broken: Callable[[Desk, Claimed, Exception], None]) -> None:
        """Claims have come. Where that fails it costs these: what came with them still goes to its desks."""
        try:
            self.put(claims)
        except Exception as exc:  # noqa: BLE001 - the boundary: a bug may cost tasks of one desk, never those beside them
            for claim in claims:
                broken(self, claim, exc)

    @abstractmethod
    def put(self, claims: list[Claimed]) -> None:
        """Claims have come."""

    def put_again(self, claims: list[Claimed]) -> None:
        """Claims that were put here before come once more."""
        self.put(claims)

    @property
    @abstractmethod
    def queued(self) -> int:
        """How many have not begun."""

    @abstractmethod
    def take_surplus(self, called: Container[bytes]) -> list[Claimed]:
        """Take out what will not start soon after all, but for these: what they need is kept for them here."""

    @abstractmethod
    def share(self, is_wanted: Callable[[Claimed], bool]) -> list[Claimed]:
        """Take out half of what waits for a slot here, the last in the order, for a process with nothing to do."""

    @abstractmethod
    def shut(self) -> None:
        """Take no more claims; those that are here go on."""

    @abstractmethod
    def reopen(self) -> None:
        """Take claims again after `shut`."""

    @abstractmethod
    async def close(self) -> None:
        """End what waits and runs here."""

    @abstractmethod
    def _is_queued(self, claim: Claimed) -> bool:
        """Whether it is in the queue."""

    @abstractmethod
    def _take_queued(self, is_wanted: Callable[[Claimed], bool]) -> list[Claimed]:
        """Take these out of the queue."""

    @abstractmethod
    def freed(self) -> None:
        """A claim that is over makes room."""

    @property
    @abstractmethod
    def is_ending(self) -> bool:
        """Whether a cancellation that reaches a slot is meant for it, rather than left behind by its handler."""

    @abstractmethod
    async def absorb(self, task: Any) -> None:
        """Take a cancellation that a handler left behind, so that it hits nothing of ours."""

    @abstractmethod
    def lose_slot(self, task: Any) -> None:
        """Go on without a slot whose handler does not come back: another takes its place."""


def place(claim: Claimed) -> tuple[int, int]:
    """Return where a claim stands in the one order."""
    return claim.rank, claim.seq


def is_suspect(claim: Claimed) -> bool:
    """Whether it ran when its process died, so that it must run alone."""
    return bool(claim.flags & SUSPECT)
