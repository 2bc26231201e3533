"""What a group of tasks may do, at once and in a time."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple, Self

import msgspec

from mainspring.config import plain, seconds
from mainspring.errors import InvalidInput, invalid

_UNITS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}  # the largest first
_RATE = re.compile(r"([\d_,]+)\s*/\s*(.+)")
_MOST = 1_000_000_000
_OF_MODEL = "model:"
_MOST_COST = 1_000_000_000_000
_EXAMPLES = 'use text such as "10/s", "60/m", "5000/h" or "5/30s"'


def _read(text: str, field: str) -> tuple[int, int]:
    """Return the number and the milliseconds of "60/m". Raises InvalidInput."""
    found = _RATE.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None:
        raise invalid(field, text, "is no rate", _EXAMPLES)
    try:
        ms = _UNITS.get(found[2]) or round(seconds(found[2], field) * 1_000)
    except InvalidInput as exc:
        raise invalid(field, text, "is no rate", _EXAMPLES) from exc
    return int(re.sub("[_,]", "", found[1]) or 0), ms


def _shown(n: int, ms: int) -> str:
    """Return what `_read` reads as these, in the largest unit of which it is whole ones."""
    unit, unit_ms = next(one for one in _UNITS.items() if ms % one[1] == 0)
    return f"{n}/{unit if ms == unit_ms else f'{ms // unit_ms}{unit}'}"


class Rate(NamedTuple):
    """So many in a time, as a bucket that holds all of them and fills evenly: a spurt of `n` is let through, then one
    each `ms / n`. One number tells how much is in it: when it will be full, in microseconds.
    """

    n: int
    ms: int

    @classmethod
    def parse(cls, text: str, field: str) -> Self:
        """Read "60/m". Raises InvalidInput."""
        n, ms = _read(text, field)
        if not 0 < n <= min(_MOST, ms * 1_000):
            raise invalid(field, text, "is out of range", "use at least one, and at most one each microsecond")
        return cls(n, ms)

    def __str__(self) -> str:
        return _shown(self.n, self.ms)

    @property
    def _each_us(self) -> int:
        return -(-self.ms * 1_000 // self.n)

    def _lag_us(self, full_us: int, now_us: int) -> int:
        """How long it takes to be full. It is never emptier than empty, also where another clock was ahead."""
        return min(max(0, full_us - now_us), self.n * self._each_us)

    def left(self, full_us: int, now_us: int) -> int:
        """Return how many may begin now."""
        return self.n - -(-self._lag_us(full_us, now_us) // self._each_us)

    def after(self, full_us: int, now_us: int, n: int) -> int:
        """Return when it will be full once n more have begun."""
        return now_us + self._lag_us(full_us, now_us) + n * self._each_us

    def rest_us(self, full_us: int, now_us: int) -> int:
        """Return how much of what one took is not filled up yet, where it was to be full at that moment with that."""
        return min(max(0, full_us - now_us), self._each_us)

    def next_us(self, full_us: int, now_us: int) -> int:
        """Return when the next one may begin."""
        return now_us + max(0, self._lag_us(full_us, now_us) - (self.n - 1) * self._each_us)


class CostRate(NamedTuple):
    """So much in a time, in any unit, as a bucket that fills evenly. What is kept of it is how much was used, and when
    that was so: more than the bucket holds is a debt, which is paid before anything else is let through.
    """

    n: int
    ms: int

    @classmethod
    def parse(cls, text: str, field: str) -> Self:
        """Read "90000/m". Raises InvalidInput."""
        n, ms = _read(text, field)
        if not (0 < n <= _MOST_COST and ms > 0):
            raise invalid(field, text, "is out of range", f"use at least one, and at most {_MOST_COST:,}")
        return cls(n, ms)

    def __str__(self) -> str:
        return _shown(self.n, self.ms)

    def used(self, used: float, at_ms: int, now_ms: int) -> float:
        """Return how much of what was used then counts now. Where another clock was ahead, no time has passed."""
        return max(0.0, used - max(0, now_ms - at_ms) * self.n / self.ms)

    def needed(self, cost: float) -> float:
        """Return how much must be there before so much may begin: more than there can be waits for a full bucket."""
        return min(cost, float(self.n))

    def wait_ms(self, left: float, needed: float) -> int:
        """Return how long it takes until so much is there."""
        return max(0, math.ceil((needed - left) * self.ms / self.n))


class GroupLimit(msgspec.Struct, frozen=True, kw_only=True):
    """A limit as it is set, and what it counts now."""

    group: str  # empty: of a whole namespace, which has a share alone
    namespace: str | None = None  # None: tasks of the group in all namespaces count together
    concurrency: int | None = None  # claimed and running tasks at once; None: any number
    held: int = 0  # tasks that are claimed or run now
    rate: str | None = None  # tasks that may begin in a time, as "60/m"; None: any number
    left: int | None = None  # how many may begin at once now, by the rate
    cost_rate: str | None = None  # what those that begin may cost in a time, as "90000/m"; None: any amount
    cost_left: float | None = None  # how much of that is left now; below zero it is a debt
    cost_next: float | None = None  # what the one that goes first is to cost, where it waits for that
    next_in: float | None = None  # seconds until the next may begin, where none may by the rates
    share: float | None = None  # weight of its share of the lanes; None: it has none of its own


def concurrency_of(value: Any, field: str) -> int | None:
    """Return how many tasks at once, as an int; None for any number. Raises InvalidInput for what is neither."""
    number = plain(value)
    if number is not None and (type(number) is not int or not 0 < number <= _MOST):
        raise invalid(field, value, "is no number of tasks", "use 1 or more, None for no limit, or pause the group")
    return number


def weight_of(value: Any) -> float | None:
    """Return the weight of a share as a float; None for no share. Raises InvalidInput for what is neither."""
    number = plain(value)
    if number is None:
        return None
    if type(number) not in (int, float) or not 1e-3 <= number <= 1e3:
        raise invalid("weight", value, "is no weight", "use a number from 0.001 to 1000, or None for no share")
    return float(number)


def group_of_model(model_id: str) -> str:
    """Return the group of a model's tasks that name no other."""
    return _OF_MODEL + model_id


def model_of_group(group: str) -> str | None:
    """Return the model whose tasks a group has; None: it is another kind of group."""
    return group.removeprefix(_OF_MODEL) if group.startswith(_OF_MODEL) else None
