"""The budget of memory for what is loaded to be used again: models and search matrices.

Whoever loads something reserves its bytes first. Where they are not free, what has not been used for longest goes: here
at once, in other processes of the machine when they are asked. What is in use stays, and is waited for only where
another process has it: of this one's own, whoever waits may itself be the user.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from mainspring.config import MIB
from mainspring.environment import SYSTEM, Environment, Lock
from mainspring.errors import ResourceLimitExceeded
from mainspring.resources.machine import Machine, Other

_BUSY_RETRY_S = 1.0
"""Models in use are given back within a batch or so."""
_LOOK_S = 1.0
"""A process that dies tells nobody: look again after so long."""


class Held(ABC):
    """Something that takes memory. `Memory.lock` guards its fields, and is held when its methods are called."""

    __slots__ = ("last_used", "memory_bytes")

    def __init__(self) -> None:
        self.memory_bytes = 0  # reserved while it is loaded, taken afterwards
        self.last_used = 0

    @abstractmethod
    def is_idle(self) -> bool:
        """Whether it may go."""

    @abstractmethod
    def let_go(self) -> Callable[[], None] | None:
        """Forget it; returns what gives its memory back, to be called without the lock."""


class Memory:
    """What this process holds, within a budget that it shares with the others on its machine.

    Args:
        budget_bytes: for all together.
        machine: the others; None: there are none.
        wait_s: how long to wait for what others have in use.
    """

    def __init__(
        self, budget_bytes: int, machine: Machine | None = None, *, wait_s: float = 0.0, env: Environment = SYSTEM
    ) -> None:
        self.budget_bytes = budget_bytes
        self.lock = Lock()  # held only for moments
        self._machine = machine
        self._wait_s = wait_s
        self._env = env
        self._held: set[Held] = set()
        self._uses = 0
        if machine is not None:
            machine.let_go = self._let_go

    @property
    def own_bytes(self) -> int:
        with self.lock:
            return self._total()

    @property
    def machine_bytes(self) -> int:
        """What all processes of the machine hold that share the budget."""
        others = () if self._machine is None else self._machine.look()
        return self.own_bytes + sum(other.bytes for other in others)

    def use(self, held: Held) -> None:
        """It is used now. The lock is held."""
        self._uses += 1
        held.last_used = self._uses

    def reserve(self, held: Held, name: str, wanted: int) -> None:
        """Take memory for what is about to be loaded, before it is.

        Raises: ResourceLimitExceeded: it does not fit now, or ever.
        """
        if wanted > self.budget_bytes:
            raise ResourceLimitExceeded(
                f"{name} needs about {wanted // MIB} MiB and the budget for all models is "
                f"{self.budget_bytes // MIB} MiB; raise ModelConfig.budget_bytes"
            )
        until = self._env.monotonic() + self._wait_s
        asked: set[str] = set()
        try:
            while not self._is_taken(held, name, wanted, asked, until):
                assert self._machine is not None
                self._machine.wait(min(_LOOK_S, max(0.0, until - self._env.monotonic())))
        finally:
            if self._machine is not None:
                self._machine.withdraw(asked)

    def _is_taken(self, held: Held, name: str, wanted: int, asked: set[str], until: float) -> bool:
        """Take it, or ask one more process for it."""
        if self._machine is not None:
            self._machine.expect()
        with self._counting() as others, self.lock:
            idle = self._idle(held)
            free = self.budget_bytes - sum(other.bytes for other in others) - self._total() + held.memory_bytes
            least = self._total() - held.memory_bytes - sum(one.memory_bytes for one in idle)  # of ours, in use
            fits = free + sum(one.memory_bytes for one in idle) >= wanted
            closing = self._take(held, wanted, free, idle) if fits else []
        for close in closing:
            close()
        if fits:
            return True
        if not others or least + wanted > self.budget_bytes or self._env.monotonic() >= until:
            self._refuse(name, wanted, least, others)
        assert self._machine is not None
        new = next((other for other in others if other.bytes and other.name not in asked), None)
        if new is not None:
            asked.add(new.name)
            self._machine.ask(new.name, wanted - free - sum(one.memory_bytes for one in idle))
        return False

    def _refuse(self, name: str, wanted: int, least: int, others: Sequence[Other]) -> NoReturn:
        budget = self.budget_bytes
        theirs = sum(other.bytes for other in others)
        shown = f"models in use or pinned leave {max(0, budget - least - theirs) // MIB} MiB"
        if others:
            each = ", ".join(f"process {other.pid} {other.bytes // MIB} MiB" for other in others if other.bytes)
            shown += f" (here they take {least // MIB} MiB, {each or 'others nothing'})"
        raise ResourceLimitExceeded(
            f"{name} needs about {wanted // MIB} MiB and {shown} of the budget of {budget // MIB} MiB, which all "
            "processes here share; try again later, or raise ModelConfig.budget_bytes",
            retry_after=_BUSY_RETRY_S,
        )

    def hold(self, held: Held, bytes: int) -> None:
        """Count what is needed in any case; what is idle here goes for it, as far as it must."""
        others: Sequence[Other] = ()
        if self._machine is not None:
            self._machine.join()
            others = self._machine.look()
        with self.lock:
            free = self.budget_bytes - sum(other.bytes for other in others) - self._total() + held.memory_bytes
            closing = self._take(held, bytes, free, self._idle(held))
        for close in closing:
            close()

    def settle(self, held: Held, bytes: int) -> None:
        """It takes so much, now that it can be told; 0: it takes nothing any more."""
        with self.lock:
            held.memory_bytes = bytes
            (self._held.add if bytes else self._held.discard)(held)
            self._publish()

    def given_back(self) -> None:
        """Something here is not in use any more: others may have waited for that."""
        if self._machine is not None and self._machine.is_asked:
            self._machine.answer()

    def close(self) -> None:
        """Hold nothing any more, nor answer anybody."""
        if self._machine is not None:
            self._machine.close()

    @contextmanager
    def _counting(self) -> Iterator[Sequence[Other]]:
        """Yield the others while none of them takes anything."""
        if self._machine is None:
            yield ()
        else:
            with self._machine.counting() as others:
                yield others

    def _total(self) -> int:
        return sum(held.memory_bytes for held in self._held)

    def _idle(self, but: Held | None = None) -> list[Held]:
        """Return what may go, what was not used for longest first."""
        return sorted((one for one in self._held if one is not but and one.is_idle()), key=lambda one: one.last_used)

    def _take(self, held: Held, wanted: int, free: int, idle: Sequence[Held]) -> list[Callable[[], None]]:
        closing, _ = self._forget(idle, wanted - free)
        held.memory_bytes = wanted
        self._held.add(held)
        self._publish()
        return closing

    def _forget(self, idle: Sequence[Held], wanted: int) -> tuple[list[Callable[[], None]], int]:
        """Forget as much as is wanted; returns what is to be called, and how much memory that gives back."""
        closing: list[Callable[[], None]] = []
        given = 0
        for one in idle:
            if given >= wanted:
                break
            given += one.memory_bytes
            if (close := one.let_go()) is not None:
                closing.append(close)
            one.memory_bytes = 0
            self._held.discard(one)
        return closing, given

    def _let_go(self, wanted: int) -> int:
        """Give back what is idle, for another process; it is told only when the memory is free."""
        with self.lock:
            closing, given = self._forget(self._idle(), wanted)
        for close in closing:
            close()
        with self.lock:
            self._publish()
        return given

    def _publish(self) -> None:
        if self._machine is not None:
            self._machine.show(self._total())


__all__ = ["Held", "Memory"]
