"""Where vector stores of the tests live: a file, and a schema of the tests' server."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from tests import postgres

from mainspring.config import StoreConfig
from mainspring.store.postgres.address import parse
from mainspring.store.postgres.connection import connect, our_errors
from mainspring.store.postgres.lookers import PLANS, Lookers
from mainspring.store.postgres.session import Session
from mainspring.vectors import SqliteVectorStore, VectorStore
from mainspring.vectors.postgres import SCHEMA, PostgresVectorStore


class Home(Protocol):
    def open(self) -> VectorStore:
        """A store of its own, as another process has one."""

    def drop(self) -> None: ...


class SqliteHome:
    def __init__(self, folder: Path) -> None:
        self._path = folder / "work.db"
        self._opened: list[SqliteVectorStore] = []

    def open(self) -> SqliteVectorStore:
        self._opened.append(SqliteVectorStore(self._path))
        return self._opened[-1]

    def drop(self) -> None:
        for store in self._opened:
            store.close()


class PostgresHome:
    """Sessions as the store on a server has them, and a writer for each store that waits for no other."""

    def __init__(self, folder: Path, address: str | None = None) -> None:
        self.server = parse(address or postgres.address_of(folder))
        self._ends: list[Callable[[], object]] = []
        with self.session() as session:
            session.command(f"CREATE SCHEMA {self.server.schema}; {SCHEMA}")

    def session(self, **settings: str) -> _Closing:
        return _Closing(Session(lambda: connect(self.server, "tests", StoreConfig(), settings)))

    def open(self) -> PostgresVectorStore:
        lookers = Lookers(lambda: Session(lambda: connect(self.server, "tests", StoreConfig(), PLANS)), self.server)
        thread = ThreadPoolExecutor(1)
        session = thread.submit(lambda: Session(lambda: connect(self.server, "tests", StoreConfig()))).result()

        def write(apply: Callable[[Any], int]) -> int:
            with our_errors(self.server):
                return thread.submit(in_transaction, session, apply).result()

        self._ends += [lookers.close, session.close, thread.shutdown]
        return PostgresVectorStore(lookers.run, write)

    def drop(self) -> None:
        self.close()
        postgres.drop(self.server.schema)

    def close(self) -> None:
        for end in self._ends:
            end()
        self._ends.clear()


class _Closing:
    def __init__(self, session: Session) -> None:
        self._session = session

    def __enter__(self) -> Session:
        return self._session

    def __exit__(self, *exc: object) -> None:
        self._session.close()


def in_transaction(session: Session, apply: Callable[[Any], int]) -> int:
    session.command("BEGIN")
    try:
        changed = apply(session)
    except BaseException:
        session.command("ROLLBACK")
        raise
    session.command("COMMIT")
    return changed


HOMES: dict[str, Callable[[Path], Home]] = {"sqlite": SqliteHome, "postgres": PostgresHome}
