"""How much memory attempts have used: the peaks of large ones, by type and size of the input."""

from __future__ import annotations

from mainspring.store.base import BLOB_INPUT, HAS_REFS, Claimed

_MOST_KEPT = 1_000
_IN_BLOB = 1 << 62  # bytes, more than any that are not
_FALLS_BY = 8
"""A smaller peak lowers what is expected by this part of the difference; a larger one raises it at once."""


class Peaks:
    """Knows those that were large when they were last seen, and which sizes of their types are not; bounded, and gone
    with the process."""

    def __init__(self) -> None:
        self._peaks: dict[tuple[str, int | None], float] = {}  # the latest that came last; 0: not worth knowing

    def add(self, kind: str, input_bytes: int | None, used: int, large: float) -> None:
        """Note what an attempt used.

        Args:
            input_bytes: the size of its input; None where that is not known.
            large: what is worth knowing; a type that is far below is forgotten.
        """
        key = (kind, _size(input_bytes))
        expected = self._peaks.pop(key, 0.0)
        least = large / 2 if expected else large
        if used >= expected:
            expected = float(used)
        else:
            expected -= (expected - used) / _FALLS_BY
        if expected >= least:
            self._peaks[key] = expected
        elif kind in self.types:  # or what smaller ones need would be expected of it
            self._peaks[key] = 0.0
        else:
            self._peaks = {key: much for key, much in self._peaks.items() if key[0] != kind}
        if len(self._peaks) > _MOST_KEPT:
            del self._peaks[next(iter(self._peaks))]

    def of(self, kind: str, input_bytes: int | None) -> float:
        """Return what to expect: of inputs that size, else of the next smaller ones that are known; 0 where that is
        little, or nothing is known. Inputs of unknown sizes are known by themselves."""
        size = _size(input_bytes)
        if size is None:
            return self._peaks.get((kind, None), 0.0)
        sizes = [at for one, at in self._peaks if one == kind and at is not None and at <= size]
        return self._peaks[kind, max(sizes)] if sizes else 0.0

    @property
    def types(self) -> set[str]:
        return {kind for (kind, _), much in self._peaks.items() if much}


def input_bytes(claim: Claimed) -> int | None:
    """Return the size of an input as far as it is known before that is in its place: not that of parents' results, and
    of what is in a blob that it is larger than all that is not."""
    if claim.flags & BLOB_INPUT:
        return _IN_BLOB
    return None if claim.flags & HAS_REFS else len(claim.input)


def _size(input_bytes: int | None) -> int | None:
    """Return the class of an input: each is four times as large as the one before."""
    return None if input_bytes is None else input_bytes.bit_length() // 2
