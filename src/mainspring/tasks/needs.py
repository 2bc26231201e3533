"""What an attempt needs while it runs, in amounts by kind, and what is missing where it does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from mainspring.tasks.task import Resources

Need = Mapping[str, float]
"""Amounts by kind: `cpu` in cores, `memory` in bytes, `gpu`, users' own names, and a child of the process lane."""

CHILD: Final = "children"
ONE_CORE: Final = Resources().cpu
CLOSE: Final = 1e-9
"""Sums of fractions are not exact."""
_MOST_DIGITS: Final = 12
_GB: Final = (1e9, "GB")
_MB: Final = (1e6, "MB")
_FROM_GB: Final = 999.95e6
"""What would be written as 1000.0 MB."""


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
        if self.is_for_ever:
            needs, all_of_it = amounts(self.kind, self.needs, self.capacity)
            return f"needs {needs}, more than the {all_of_it} that there is"
        needs, free = amounts(self.kind, self.needs, max(0.0, self.free))
        free = f"{free} is free, of {amount(self.kind, self.capacity)}"
        if self.kept_for and self.needs <= self.free + CLOSE:
            return f"needs {needs}; {free}, and kept for {self.kept_for}"
        return f"needs {needs} and {free}"


class Passes(msgspec.Struct, frozen=True):
    """What a worker has in all, and the types of which it has met a task that needs more."""

    has: dict[str, float] = {}  # a kind that is not named: none
    types: dict[str, dict[str, float]] = {}  # and what their tasks need that say nothing themselves; else nothing

    def short(self, kind: str, said: Resources | None) -> Short | None:
        """Return what there is too little of for a task of a type; None where it can run here."""
        need = self.types.get(kind, {}) if said is None else need_of(said, "") or {}
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
    return amounts(kind, much)[0]


def amounts(kind: str, *much: float) -> list[str]:
    """Return them as people read them, those that differ with as many digits as show that."""
    if kind == "memory":
        units = [_GB if one >= _FROM_GB else _MB for one in much]
        numbers = apart("f", 1, [one / size for one, (size, _) in zip(much, units, strict=True)])
        return [f"{number} {unit}" for number, (_, unit) in zip(numbers, units, strict=True)]
    numbers = apart("g", 6, much)
    if kind == CHILD:
        return [f"{number} child process{'' if number == '1' else 'es'}" for number in numbers]
    if kind == "cpu":
        return [f"{number} core{'' if number == '1' else 's'}" for number in numbers]
    return [f"{number} {kind}" for number in numbers]


def shares(*much: float) -> list[str]:
    """Return parts of a whole as people read them, as `amounts` does."""
    return apart("%", 0, much)


def apart(form: str, digits: int, numbers: Sequence[float]) -> list[str]:
    """Write numbers with so many digits, or as many more as show which of them differ."""
    differ = len({f"{number:.{_MOST_DIGITS}g}" for number in numbers})
    while True:
        texts = [f"{number:.{digits}{form}}" for number in numbers]
        if len(set(texts)) >= differ or digits == _MOST_DIGITS:
            return texts
        digits += 1
