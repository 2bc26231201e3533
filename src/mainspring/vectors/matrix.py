"""A collection's vectors in memory, as of one version: exact search is one matrix product for all queries together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec

from mainspring.vectors.unit import exact_scores, margin

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NARROW: Final = 0.2  # below this share of a collection it is quicker to gather the vectors that a filter leaves
_BLOCK: Final = 1 << 24  # scores held at once: 64 MiB
_CHUNK: Final = 4096  # vectors read or scored again at once
_ID_BYTES: Final = 80  # of a short text in a list


class Nearest(msgspec.Struct, frozen=True):
    """What was found for one query: best first, ties by id."""

    slots: list[int]
    scores: list[float]


class Matrix(msgspec.Struct, frozen=True, kw_only=True):
    """Vectors in slots, in the order of their rows. Never changes: newer versions share its buffers and only append.

    A deleted record's slot stays, named in `dead`, until a newer version moves to buffers of its own.
    """

    version: int
    dim: int
    count: int  # slots in use, dead ones included
    vectors: NDArray[np.float32]  # shape (capacity, dim)
    rows: NDArray[np.int64]  # ascending
    ids: list[str]
    dead: NDArray[np.int64]  # slots, ascending

    @classmethod
    def empty(cls, dim: int, capacity: int) -> Matrix:
        import numpy as np

        return cls(
            version=0,
            dim=dim,
            count=0,
            vectors=np.empty((capacity, dim), np.float32),
            rows=np.empty(capacity, np.int64),
            ids=[],
            dead=np.empty(0, np.int64),
        )

    @property
    def last_row(self) -> int:
        return int(self.rows[self.count - 1]) if self.count else 0

    @property
    def alive(self) -> int:
        return self.count - len(self.dead)

    @property
    def memory_bytes(self) -> int:
        """An estimate; memory reserved for growth is not counted, since the system gives it when it is first used."""
        return self.count * (self.dim * 4 + 8 + _ID_BYTES) + self.dead.nbytes

    def slots_of(self, rows: Sequence[int]) -> NDArray[np.int64]:
        """Return the slots of those rows that are here, ascending."""
        import numpy as np

        wanted = np.array(rows, np.int64)
        wanted.sort()
        known = self.rows[: self.count]
        slots: NDArray[np.int64] = np.searchsorted(known, wanted)
        slots = slots[slots < self.count]
        here: NDArray[np.bool_] = known[slots] == wanted[: len(slots)]
        return slots[here]

    def without(self, rows: Sequence[int]) -> Matrix:
        """Return a version in which these rows are dead."""
        import numpy as np

        return msgspec.structs.replace(self, dead=np.union1d(self.dead, self.slots_of(rows)))

    def with_room(self, more: int) -> Matrix:
        """Return a version that can take so many more records, moved to larger buffers where it must.

        Moving drops the dead; it also happens when they are more than a quarter.
        """
        import numpy as np

        if self.count + more <= len(self.rows) and len(self.dead) <= self.count // 4:
            return self
        slots = np.delete(np.arange(self.count), self.dead)
        alive = len(slots)
        larger = Matrix.empty(self.dim, max(2 * alive, alive + more))
        np.take(self.vectors, slots, axis=0, out=larger.vectors[:alive], mode="clip")  # other modes copy twice
        larger.rows[:alive] = self.rows[slots]
        larger.ids.extend([self.ids[slot] for slot in slots.tolist()])
        return msgspec.structs.replace(larger, version=self.version, count=alive)

    def with_records(self, records: Iterable[tuple[int, str, bytes]], version: int) -> Matrix:
        """Return the given version: with these (row, id, vector) appended. Call it on the newest version alone."""
        import numpy as np

        count = self.count
        del self.ids[count:]  # left by a call that failed
        records = iter(records)
        while chunk := list(islice(records, _CHUNK)):
            rows, ids, vectors = zip(*chunk, strict=True)
            end = count + len(chunk)
            self.rows[count:end] = rows
            self.vectors[count:end] = np.frombuffer(b"".join(vectors), "<f4").reshape(-1, self.dim)
            self.ids.extend(ids)
            count = end
        return msgspec.structs.replace(self, count=count, version=version)

    def search(
        self,
        queries: NDArray[np.float32],
        top_k: Sequence[int],
        within: Sequence[NDArray[np.int64] | None],
    ) -> list[Nearest]:
        """Find for each unit-length query its `top_k` nearest, among the slots `within` where they are given.

        Queries that share the same array `within` are computed together.
        """
        import numpy as np

        found: list[Nearest] = [Nearest([], [])] * len(queries)
        wide, narrow = self._sort_out(within)
        size = max(1, _BLOCK // max(1, self.count))
        for start in range(0, len(wide), size):
            block = wide[start : start + size]
            scores = queries[block] @ self.vectors[: self.count].T
            scores[:, self.dead] = -np.inf
            for index, line in zip(block, scores, strict=True):
                slots = within[index]
                found[index] = self._best(queries[index], line if slots is None else line[slots], slots, top_k[index])
        for block in narrow:
            slots = within[block[0]]
            assert slots is not None
            scores = queries[block] @ self.vectors[slots].T
            for index, line in zip(block, scores, strict=True):
                found[index] = self._best(queries[index], line, slots, top_k[index])
        return found

    def _sort_out(self, within: Sequence[NDArray[np.int64] | None]) -> tuple[list[int], list[list[int]]]:
        wide: list[int] = []
        narrow: dict[int, list[int]] = {}
        for index, slots in enumerate(within):
            if slots is None or len(slots) > _NARROW * self.count:
                wide.append(index)
            else:
                narrow.setdefault(id(slots), []).append(index)
        return wide, list(narrow.values())

    def _best(
        self, query: NDArray[np.float32], scores: NDArray[np.float32], slots: NDArray[np.int64] | None, top_k: int
    ) -> Nearest:
        """Pick the best by the given scores, then order them by scores computed again in double precision.

        Single precision depends on a vector's place in the product; the second look does not, so equal vectors get
        equal scores, and a query gets the same answer alone and in a batch.
        """
        import numpy as np

        k = min(top_k, self.alive if slots is None else len(slots))
        if k == 0:
            return Nearest([], [])
        worst = np.partition(scores, len(scores) - k)[len(scores) - k]
        near = np.flatnonzero(scores >= worst - margin(self.dim))
        if slots is not None:
            near = slots[near]
        exact = self._exact(query, near)
        ids, places = self.ids, near.tolist()
        order = sorted(range(len(places)), key=lambda i: (-exact[i], ids[places[i]]))[:k]
        return Nearest([places[i] for i in order], [exact[i] for i in order])

    def _exact(self, query: NDArray[np.float32], slots: NDArray[np.int64]) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(slots), _CHUNK):
            scores += exact_scores(query, self.vectors[slots[start : start + _CHUNK]])
        return scores
