"""A transaction on the server: beside those of other processes, or alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from operator import itemgetter
from types import MappingProxyType
from typing import Any, Final

from mainspring.store.postgres.parts import Columns, parts_of
from mainspring.store.postgres.session import Found, Session
from mainspring.store.postgres.statements import BESIDE_OTHERS, WIDE
from mainspring.store.ready import Place
from mainspring.store.sql.transaction import Crowded, IdempotencyKey, Memory, Row, Transaction

_ADD = "ON CONFLICT (class, status, worker) DO UPDATE SET n = old.n + excluded.n"
_DUE, _DEADLINE = 13, 14
"""Columns of a new task's row."""
_own = itemgetter(0, 1, 3, 18)
"""Of these, what each task has of its own: number, id, rank and input."""
_shared = itemgetter(2, *range(4, 18), 19)
"""All others, which most tasks of a call have in common."""
_FIRST = itemgetter(0)
_PAYLOADS: Final = MappingProxyType(
    {
        "insert_task": (18, 19),
        "insert_done": (13, 14, 15),
        "insert_attempt": (13,),
        "again_many": (1, 6),
        "end_many": (2,),
        "keep": (4,),
    }
)
"""Where statements have columns whose values may be large."""
_OUTPUTS: Final = (1,)
_MOVING = frozenset("again again_many again_after_crash delay_children give_back hand_back promote overdue".split())
"""Statements after which something else may be the next to fall due."""


class PostgresTransaction(Transaction):
    """The session's owner begins and commits.

    Most transactions run side by side. What follows the dependencies between tasks, or touches what another worker
    holds, needs rows that stand still: it raises Crowded there, and is done again alone.
    """

    __slots__ = ("alone", "drawn", "has_arrivals", "is_anybody_waiting", "moves_times", "unfinished")
    cursor: Session

    def __init__(self, cursor: Session, memory: Memory, now_ms: int, *, alone: bool = True) -> None:
        super().__init__(cursor, memory, now_ms)
        self.alone = alone
        self.drawn: list[int] = []  # numbers for new tasks
        self.unfinished: int | None = None  # tasks when it began
        self.is_anybody_waiting: bool | None = None  # as a statement has just told on the way
        self.moves_times = False  # it may have made something due sooner
        self.has_arrivals = False  # more tasks of users' transactions may be there to be taken in

    def part(self) -> PostgresTransaction:
        part = super().part()
        part.alone, part.drawn, part.unfinished = self.alone, self.drawn, self.unfinished
        return part

    def keep(self, part: Transaction) -> None:
        super().keep(part)
        assert isinstance(part, PostgresTransaction)
        self.drawn = part.drawn
        self.moves_times = self.moves_times or part.moves_times

    def one(self, name: str, *values: Any) -> Any:
        if name == "unfinished" and self.unfinished is not None:
            return (self.unfinished,)
        if name == "any_waiting" and self.is_anybody_waiting is not None:
            told, self.is_anybody_waiting = self.is_anybody_waiting, None  # it holds for this moment
            return (1,) if told else None
        return super().one(name, *values)

    def complete(self, ends: Sequence[Row], attempts: Sequence[Row]) -> int:
        columns = (*zip(*ends, strict=True), *zip(*attempts, strict=True))
        return sum(self._complete(part) for part in parts_of(columns, _OUTPUTS))

    def _complete(self, columns: Columns) -> int:
        ended, outputs, flags, _, _, _, *attempt = columns
        seqs, numbers, _, owners, started, _, duration, cpu, memory, network, batches, wait, lanes, _ = attempt
        own = (seqs, outputs, ended, started, duration, cpu, wait)
        shared = (numbers, owners, flags, batches, lanes, memory, network)
        if _are_alike(shared):
            name, values = "complete_alike", (*own, *map(_FIRST, shared))
        else:
            name, values = "complete_and_note", (*own, *shared)
        ((done, self.is_anybody_waiting),) = self.cursor.run(name, values)
        return int(done)

    # What has died in front of a bound stays in the index while anybody's old transaction is open

    def heads(self, class_id: int, most: int, bound: Place) -> list[Row]:
        return self.run("heads", class_id, most, *bound)

    def claim_of_class(self, class_id: int, most: int, bound: Place) -> tuple[list[Row], Place]:
        rows = self.run("claim_of_class", self.memory.owner, class_id, most, *bound)
        return [row[:-2] for row in rows], rows[0][-2:] if rows else bound

    def tasks_by_key(self, keys: Collection[IdempotencyKey]) -> Iterator[tuple[IdempotencyKey, Row]]:
        for row in self.run("tasks_by_keys", *zip(*keys, strict=True)) if keys else ():
            yield (row[0], row[1]), row[2:]

    def write_tally(self) -> None:
        """It goes with the commit."""

    def closing(self) -> str:
        """Return what is left to write, as statements: numbers alone."""
        rows, totals = [], Counter[int]()
        for (class_id, status), n in self.tally.items():
            if n:
                rows.append((class_id, status, n))
                totals[status] += n
        rows += [(0, status, n) for status, n in totals.items() if n]
        sql = ""
        if rows:
            values = ", ".join(f"({class_id}, {status}, {n}, {self.memory.owner})" for class_id, status, n in rows)
            sql += f"INSERT INTO tally AS old (class, status, n, worker) VALUES {values} {_ADD}; "  # noqa: S608 - ints
        if self.ready and self.memory.has_peers:
            classes = ", ".join(f"({class_id}, {rank})" for class_id, rank in self.ready.told())
            sql += f"INSERT INTO news (class, rank) VALUES {classes}; "  # noqa: S608 - ints
        return sql

    @property
    def is_alone(self) -> bool:
        return self.alone

    def hold_limit(self, limit_id: int) -> bool:
        return self.one("hold_limit", limit_id) is not None

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
        columns = tuple(zip(*rows, strict=True))
        return sum(self._put(name, part) for part in parts_of(columns, _PAYLOADS.get(name, ())))

    def _put(self, name: str, columns: Columns) -> int:
        if name == "insert_task":
            self.moves_times = self.moves_times or any(columns[_DUE]) or any(columns[_DEADLINE])
            if len(columns[0]) > 1 and _are_alike(_shared(columns)):
                name = "insert_alike"
                columns = (*_own(columns), *map(_FIRST, _shared(columns)))
        return self.cursor.changed(name, columns)

    def changed(self, name: str, *values: Any) -> int:
        self._refuse_crowd(name)
        return self.cursor.changed(name, values)

    def _refuse_crowd(self, name: str) -> None:
        self.moves_times = self.moves_times or name in _MOVING
        if not self.alone and name not in BESIDE_OTHERS:
            raise Crowded(name)

    def listed(self, numbers: Sequence[int]) -> list[int]:
        return list(numbers)

    def listed_keys(self, keys: Sequence[bytes]) -> list[bytes]:
        return list(keys)

    def numbers(self, n: int) -> Iterator[int]:
        if len(self.drawn) < n:
            self.drawn = [row[0] for row in self.run("numbers", n)]
        some, self.drawn = self.drawn[:n], self.drawn[n:]
        return iter(some)

    def ready_classes(self) -> Iterator[Row]:
        return iter(self.run("ready_classes"))


def _are_alike(columns: Iterable[Sequence[Any]]) -> bool:
    """Whether each of these holds nothing but one value."""
    return all(column.count(column[0]) == len(column) for column in columns)
