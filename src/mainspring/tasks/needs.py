"""What an attempt needs while it runs, in amounts by kind, and what is missing where it does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from mainspring.tasks.task import Resources

Need = Mapping[str, float]
"""Amounts by kind: `cpu` in cores, `memory` in bytes, `gpu`, users' own names, and a child of the process lane."""

CHILD: Final = "children"
ONE_CORE: Final = Resources().cpu
CLOSE: Final = 1e-9
"""Sums of fractions are not exact."""


class Short(NamedTuple):
    """What is missing of one kind."""

    kind: str
    needs: float
    free: float
    capacity: float
    kept_for: str = ""  # for what that is set aside which is free

    @property
    def is_for_ever(self) -> bool:
        return self.needs > self.capacity + CLOSE

    def __str__(self) -> str:
        needs = f"needs {amount(self.kind, self.needs)}"
        if self.is_for_ever:
            return f"{needs}, more than the {amount(self.kind, self.capacity)} that there is"
        free = f"{amount(self.kind, max(0.0, self.free))} is free, of {amount(self.kind, self.capacity)}"
        if self.kept_for and self.needs <= self.free + CLOSE:
            return f"{needs}; {free}, and kept for {self.kept_for}"
        return f"{needs} and {free}"


class Passes(msgspec.Struct, frozen=True):
    """What a worker has in all, and the types of which it has met a task that needs more."""

    has: dict[str, float] = {}  # a kind that is not named: none
    types: dict[str, dict[str, float]] = {}  # and what their tasks need that say nothing themselves

    def short(self, kind: str, said: Resources | None) -> Short | None:
        """Return what there is too little of for a task of one of the types; None where it can run here."""
        need = self.types[kind] if said is None else need_of(said, "") or {}
        return too_much(need, self.has)


NOTHING: Final = Passes()


def need_of(declared: Resources, lane: str) -> dict[str, float] | None:
    """Return what a declaration means; None where it needs nothing."""
    amounts = {"cpu": declared.cpu, "memory": declared.memory, "gpu": declared.gpu, **declared.custom}
    need = {kind: float(much) for kind, much in amounts.items() if much}
    if need and lane == "process":
        need[CHILD] = 1.0  # so that nothing is reserved by those that wait for one
    return need or None


def at_most(need: Need, cores: float) -> Need:
    """Return what is really reserved: a core or less, which is what is needed where nothing is said, is never more than
    there is."""
    cpu = need.get("cpu", 0.0)
    return {**need, "cpu": cores} if cores < cpu <= ONE_CORE else need


def too_much(need: Need, has: Need) -> Short | None:
    """Return the first kind of which more is needed than there is."""
    for kind, much in at_most(need, has.get("cpu", 0.0)).items():
        short = Short(kind, much, 0.0, has.get(kind, 0.0))
        if short.is_for_ever:
            return short
    return None


def amount(kind: str, much: float) -> str:
    """Return it as people read it."""
    if kind == "memory":
        return f"{much / 1e9:.1f} GB" if much >= 1e8 else f"{much / 1e6:.1f} MB"
    if kind == CHILD:
        return f"{much:g} child process{'' if much == 1 else 'es'}"
    return f"{much:g} {'core' if much == 1 else 'cores'}" if kind == "cpu" else f"{much:g} {kind}"
