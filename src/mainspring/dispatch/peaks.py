"""How much memory attempts have used: the peaks of large ones, by type and size of the input."""

from __future__ import annotations

_MOST_KEPT = 1_000
_FALLS_BY = 8
"""A smaller peak lowers what is expected by this part of the difference; a larger one raises it at once."""


class Peaks:
    """Knows those that were large when they were last seen; bounded, and gone with the process."""

    def __init__(self) -> None:
        self._peaks: dict[tuple[str, int], float] = {}  # the latest that came last

    def add(self, kind: str, input_bytes: int, used: int, large: float) -> None:
        """Note what an attempt used. `large`: what is worth knowing; a type that is far below is forgotten."""
        key = (kind, _size(input_bytes))
        expected = self._peaks.pop(key, None)
        least = large if expected is None else large / 2
        if expected is None or used >= expected:
            expected = float(used)
        else:
            expected -= (expected - used) / _FALLS_BY
        if expected < least:
            return
        self._peaks[key] = expected
        if len(self._peaks) > _MOST_KEPT:
            del self._peaks[next(iter(self._peaks))]

    def of(self, kind: str, input_bytes: int) -> float:
        """Return what to expect: of inputs that size, else of the next smaller ones that are known; 0 where none is."""
        size = _size(input_bytes)
        known = [(at, much) for (one, at), much in self._peaks.items() if one == kind and at <= size]
        return max(known, default=(0, 0.0))[1]

    @property
    def types(self) -> set[str]:
        return {kind for kind, _ in self._peaks}


def _size(input_bytes: int) -> int:
    """Return the class of an input: each is four times as large as the one before."""
    return input_bytes.bit_length() // 2
