"""What a group of tasks may do, at once and in a time."""

from __future__ import annotations

import re
from typing import Any, NamedTuple, Self

import msgspec

from mainspring.config import seconds
from mainspring.errors import InvalidInput, invalid

_UNITS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_RATE = re.compile(r"([\d_,]+)\s*/\s*(.+)")
_MOST = 1_000_000_000
_OF_MODEL = "model:"
_EXAMPLES = 'use text such as "10/s", "60/m", "5000/h" or "5/30s"'


class Rate(NamedTuple):
    """So many in a time, as a bucket that holds all of them and fills evenly: a spurt of `n` is let through, then one
    each `ms / n`. One number tells how much is in it: when it will be full, in microseconds.
    """

    n: int
    ms: int

    @classmethod
    def parse(cls, text: str, field: str) -> Self:
        """Read "60/m". Raises InvalidInput."""
        found = _RATE.fullmatch(text.strip()) if isinstance(text, str) else None
        if found is None:
            raise invalid(field, text, "is no rate", _EXAMPLES)
        n = int(re.sub("[_,]", "", found[1]) or 0)
        try:
            ms = _UNITS.get(found[2]) or round(seconds(found[2], field) * 1_000)
        except InvalidInput as exc:
            raise invalid(field, text, "is no rate", _EXAMPLES) from exc
        if not 0 < n <= min(_MOST, ms * 1_000):
            raise invalid(field, text, "is out of range", "use at least one, and at most one each microsecond")
        return cls(n, ms)

    def __str__(self) -> str:
        unit = next((name for name, ms in _UNITS.items() if ms == self.ms), None)
        return f"{self.n}/{unit or f'{self.ms / 1_000:g}s'}"

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
        """Return when it will be full once n more have begun; fewer than none: once so many were given back."""
        return now_us + max(0, self._lag_us(full_us, now_us) + n * self._each_us)

    def next_us(self, full_us: int, now_us: int) -> int:
        """Return when the next one may begin."""
        return now_us + max(0, self._lag_us(full_us, now_us) - (self.n - 1) * self._each_us)


class GroupLimit(msgspec.Struct, frozen=True, kw_only=True):
    """A limit as it is set, and what it counts now."""

    group: str  # empty: of a whole namespace, which has a share alone
    namespace: str | None = None  # None: tasks of the group in all namespaces count together
    concurrency: int | None = None  # claimed and running tasks at once; None: any number
    held: int = 0  # tasks that are claimed or run now
    rate: str | None = None  # tasks that may begin in a time, as "60/m"; None: any number
    left: int | None = None  # how many may begin at once now, by the rate
    next_in: float | None = None  # seconds until the next may begin, where none may by the rate
    share: float | None = None  # weight of its share of the lanes; None: it has none of its own


def check_concurrency(value: Any, field: str) -> None:
    """Raises InvalidInput for what is no number of tasks at once."""
    if value is not None and (type(value) is not int or not 0 < value <= _MOST):
        raise invalid(field, value, "is no number of tasks", "use 1 or more, None for no limit, or pause the group")


def group_of_model(model_id: str) -> str:
    """Return the group of a model's tasks that name no other."""
    return _OF_MODEL + model_id


def model_of_group(group: str) -> str | None:
    """Return the model whose tasks a group has; None: it is another kind of group."""
    return group.removeprefix(_OF_MODEL) if group.startswith(_OF_MODEL) else None
