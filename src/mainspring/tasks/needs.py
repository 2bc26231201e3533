"""What an attempt needs while it runs, in amounts by kind, and what is missing where it does not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
_UNITS: Final = ((999.95e6, 1e9, "GB"), (0.05e6, 1e6, "MB"), (50.0, 1e3, "kB"))
"""From where on, what it is in bytes and its name: nothing is written as 1000.0 MB, nor anything but nothing as 0.0."""


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
        return apart(_bytes, 1, much)
    numbers = apart(lambda one, digits: f"{one:.{digits}g}", 6, much)
    if kind == CHILD:
        return [f"{number} child process{'' if number == '1' else 'es'}" for number in numbers]
    if kind == "cpu":
        return [f"{number} core{'' if number == '1' else 's'}" for number in numbers]
    return [f"{number} {kind}" for number in numbers]


def shares(*much: float) -> list[str]:
    """Return parts of a whole as people read them, as `amounts` does."""
    return apart(_percent, 0, much)


def _bytes(much: float, digits: int) -> str:
    for least, size, unit in _UNITS:
        if much >= least:
            return f"{much / size:.{digits}f} {unit}"
    if much <= 0:
        return f"{0:.{digits}f} MB"
    return f"{much:.{digits + 1}g} byte{'' if much == 1 else 's'}"


def _percent(share: float, digits: int) -> str:
    """What would be written as nothing, and is something, has digits enough to show."""
    is_shown = share == 0 or round(100 * share, digits) != 0
    return f"{share:.{digits}%}" if is_shown else f"{100 * share:.{digits + 1}g}%"


def apart(write: Callable[[float, int], str], digits: int, numbers: Sequence[float]) -> list[str]:
    """Write numbers with so many digits, or as many more as show which of them differ."""
    differ = len({f"{number:.{_MOST_DIGITS}g}" for number in numbers})
    while True:
        texts = [write(number, digits) for number in numbers]
        if len(set(texts)) >= differ or digits == _MOST_DIGITS:
            return texts
        digits += 1
