"""A transaction on the server: beside those of other processes, or alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mainspring.store.postgres.session import Found, Session
from mainspring.store.postgres.statements import BESIDE_OTHERS, WIDE
from mainspring.store.sql.transaction import Crowded, Memory, Row, Transaction


class PostgresTransaction(Transaction):
    """The session's owner begins and commits.

    Most transactions run side by side. What follows the dependencies between tasks, or touches what another worker
    holds, needs rows that stand still: it raises Crowded there, and is done again alone.
    """

    __slots__ = ("alone",)
    cursor: Session

    def __init__(self, cursor: Session, memory: Memory, now_ms: int, *, alone: bool = True) -> None:
        super().__init__(cursor, memory, now_ms)
        self.alone = alone

    def part(self) -> PostgresTransaction:
        part = super().part()
        part.alone = self.alone
        return part

    @property
    def is_alone(self) -> bool:
        return self.alone

    def run(self, name: str, *values: Any) -> Found:
        if name in WIDE:
            self.run_wide(name, [values])
            return Found()
        self._refuse_crowd(name)
        return self.cursor.run(name, values)

    def run_many(self, name: str, rows: Iterable[tuple[Any, ...]]) -> None:
        if name in WIDE:
            self.run_wide(name, list(rows))
            return
        self._refuse_crowd(name)
        self.cursor.run_many(name, rows)

    def run_wide(self, name: str, rows: Sequence[tuple[Any, ...]]) -> int:
        if not rows:
            return 0
        self._refuse_crowd(name)
        if name == "add_tally":
            rows = [(*row, self.memory.owner) for row in rows]
        return self.cursor.changed(name, tuple(zip(*rows, strict=True)))

    def changed(self, name: str, *values: Any) -> int:
        self._refuse_crowd(name)
        return self.cursor.changed(name, values)

    def _refuse_crowd(self, name: str) -> None:
        if not self.alone and name not in BESIDE_OTHERS:
            raise Crowded(name)

    def listed(self, numbers: Sequence[int]) -> list[int]:
        return list(numbers)

    def numbers(self, n: int) -> Iterator[int]:
        return iter([row[0] for row in self.run("numbers", n)])

    def ready_classes(self) -> Iterator[Row]:
        return iter(self.run("ready_classes"))
