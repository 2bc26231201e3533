"""Submitting within a user's transaction: a row in the inbox, which commits or goes with everything else in there.

The transaction takes no lock and touches no row that others need. What can be told before it commits is checked before
the row is written: by what is committed, and by what the transaction itself has put in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import asyncpg
import msgspec

from mainspring.errors import InvalidInput, StoreReadOnly, TaskNotFound, invalid
from mainspring.store.base import Accepted, Line, NewTask, Pledged
from mainspring.store.postgres.address import Server
from mainspring.store.postgres.arrivals import decode
from mainspring.store.postgres.borrowed import Borrowed, borrow
from mainspring.store.postgres.line import POSTED, channel_of
from mainspring.store.postgres.parts import ROW_BYTES, parts
from mainspring.store.postgres.statements import WITHIN
from mainspring.store.sql import reads
from mainspring.store.sql.intake import (
    id_conflict,
    is_same_work,
    key_conflict,
    no_parent,
    refuse_no_id,
    refuse_too_many,
)
from mainspring.store.sql.reads import View
from mainspring.store.sql.store import SqlStore
from mainspring.store.sql.transaction import Row
from mainspring.store.standing import Standing
from mainspring.tasks import TaskId, TaskInfo, TaskResult

T = TypeVar("T")
_HERE, _COMING, _PRUNED = range(3)
_encode = msgspec.msgpack.Encoder(enc_hook=str.__str__).encode  # a task type is more than a str


class _Found(NamedTuple):
    """What is committed."""

    unfinished: int
    places: dict[bytes, int]  # of tasks and parents, by id
    pledged: dict[bytes, Pledged]  # for tasks that there are already, by the id that was submitted


class _Home(NamedTuple):
    """Which store the engine has."""

    identity: str
    database: str
    table: int  # number of `store` in the catalog


class _Inbox:
    """The inbox of a store, as a user's transaction sees it."""

    def __init__(self, borrowed: Borrowed, server: Server, home: _Home) -> None:
        self._borrowed = borrowed
        self._server = server
        self._home = home

    async def look(self) -> None:
        """Raises InvalidInput: it leads elsewhere, or gives no texts. StoreReadOnly: nothing may be put in there."""
        database, table, is_read_only, may = (await self._fetch("look"))[0]
        schema = self._server.schema
        if not isinstance(database, str):
            why = "gives texts as bytes, as psycopg does with the encoding SQL_ASCII"
            raise invalid("connection", "a connection", why, "SET client_encoding TO UTF8")
        if (database, table) != self._home[1:]:
            raise self._elsewhere(database, "no store" if table is None else "another store")
        if is_read_only:
            raise StoreReadOnly("the transaction of this connection is read-only; submit in one that may write")
        if not may:
            raise StoreReadOnly(
                f"the user of this connection lacks rights; GRANT USAGE ON SCHEMA {schema}, GRANT SELECT, INSERT ON "
                f"{schema}.inbox, GRANT SELECT ON {schema}.store, and GRANT EXECUTE ON FUNCTION {schema}.inbox_of_ids, "
                f"{schema}.inbox_of_keys"
            )

    async def ask(self, name: str, *values: Any) -> list[Row]:
        """Raises InvalidInput: the connection leads to the store of another server."""
        rows = await self._fetch(name, self._home.identity, *values)
        if not rows:
            raise self._elsewhere(self._home.database, "another store")
        return rows

    async def _fetch(self, name: str, *values: Any) -> list[Row]:
        return await self._borrowed.fetch(WITHIN[name].replace("STORE", self._server.schema), *values)

    def _elsewhere(self, database: str, where: str) -> InvalidInput:
        return invalid(
            "connection",
            f"a connection to database {database}",
            f"leads to {where} in schema {self._server.schema}",
            f"connect to the engine's database, {self._server.shown}",
        )


class InboxStore(SqlStore):
    """A store that also takes tasks from users' transactions. Who asks for one that has just come has it taken in."""

    server: Server

    def borrow(self, connection: Any) -> Borrowed:
        return borrow(connection, self.env)

    async def submit_within(self, tasks: Sequence[NewTask], borrowed: Borrowed) -> list[Pledged]:
        home = _Home(*await self.view(lambda view: view.one("identity")))
        inbox = _Inbox(borrowed, self.server, home)
        await inbox.look()
        found = await self.view(lambda view: _look(view, tasks))
        if self._memory.queue_size is not None:
            unfinished = found.unfinished + len(tasks) - len(found.pledged)
            refuse_too_many(unfinished, self._memory.queue_size, self._memory)
        pledged = {**found.pledged, **await _under_own_keys(inbox, tasks, found)}
        fresh = [task for task in tasks if task.id not in pledged]
        pledged.update(await _under_own_ids(inbox, fresh, found.places))
        new = [task for task in fresh if task.id not in pledged]
        for part in parts(map(_size, new)):  # nothing is in there before all is checked
            pledged.update(await self._put(inbox, new[part]))
        mine = (pledged[task.id] for task in tasks)
        return [pledged.get(pledge.id, pledge) for pledge in mine]  # one of a key is that of the first of the call

    async def _put(self, inbox: _Inbox, tasks: Sequence[NewTask]) -> dict[bytes, Pledged]:
        ((n, origin, _),) = await inbox.ask(
            "put",
            [task.id for task in tasks],
            [None if task.key is None else task.class_key[0] for task in tasks],
            [task.key for task in tasks],
            [_encode(task) for task in tasks],
            channel_of(self.server.schema),
            POSTED,
        )
        pledged = {task.id: Pledged(task.id, origin) for task in tasks}
        if n < len(tasks):  # some ids are there already: the transaction repeats itself
            ours = {task.id: task for task in tasks}
            pledged.update(_same_ids(ours, await _of_ids(inbox, ours)))
        return pledged

    async def has_come(self, id: bytes, origin: str) -> bool:
        status, place = await self.view(lambda view: _fate(view, id, origin))
        if place == _PRUNED:
            raise await self.view(lambda view: reads.not_found(view, id))
        if place is None and status != "in progress":
            raise TaskNotFound(
                f"task {TaskId(id)} was never stored: the transaction that submitted it was rolled back, as a whole or "
                "to a savepoint before it",
                field="task id",
                value=TaskId(id),
            )
        return place is not None

    # What asks for single tasks

    async def _found(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call that did not find a task which has come: it waits to be taken in, or has been since."""
        while True:
            try:
                return await call()
            except TaskNotFound as exc:
                place = await self.view(partial(_place, id=exc.value.bytes))
                if place not in (_HERE, _COMING):
                    raise
            if place == _COMING:
                await self.write(_nothing)  # alone: after whoever may be taking it in, or by itself

    async def submit(self, tasks: Sequence[NewTask], line: Line | None = None) -> list[Accepted]:
        lines = [line]

        def submit() -> Awaitable[list[Accepted]]:
            """The first answer breaks its line: what comes behind is refused, and this one goes first all the same."""
            again = None if line is None else Line()
            return super(InboxStore, self).submit(tasks, lines.pop() if lines else again)

        return await self._found(submit)

    async def info(self, id: bytes) -> TaskInfo:
        return await self._found(partial(super().info, id))

    async def standing(self, id: bytes, *, in_line: bool = False) -> Standing:
        return await self._found(partial(super().standing, id, in_line=in_line))

    async def result(self, id: bytes) -> TaskResult | None:
        return await self._found(partial(super().result, id))

    async def require(self, ids: Sequence[bytes]) -> None:
        await self._found(partial(super().require, ids))

    async def cancel(self, id: bytes) -> str:
        return await self._found(partial(super().cancel, id))

    async def retry(self, id: bytes) -> bytes:
        return await self._found(partial(super().retry, id))


def _nothing(tx: object) -> None:
    """What has come is taken in at the beginning of every transaction."""


def _look(view: View, tasks: Sequence[NewTask]) -> _Found:
    """Return what is committed of these tasks, of their keys and of their parents. Raises Conflict, InvalidInput."""
    own = {task.id for task in tasks}
    for id in own:
        refuse_no_id(id)
    ids = [*own, *{id for task in tasks for id in task.after if id not in own}]
    places: dict[bytes, int] = dict(view.rows("whereabouts", ids))
    pledged: dict[bytes, Pledged] = {}
    for task in tasks:
        found = _by_id(view, task, places.get(task.id)) or (None if task.key is None else _by_key(view, task))
        if found is not None:
            pledged[task.id] = found
    return _Found(view.one("unfinished")[0], places, pledged)


def _by_id(view: View, task: NewTask, place: int | None) -> Pledged | None:
    if place is None:
        return None
    row = view.one("task_by_id", task.id)
    coming = None if row is not None else view.one("inbox_of_id", task.id)
    if row is not None and not is_same_work(view.one("class_by_id", row[2])[1], row[3], row[5], task):
        raise id_conflict(task)
    if coming is not None and not _is_same(decode(coming[0]), task):
        raise id_conflict(task)
    return Pledged(task.id, None)


def _by_key(view: View, task: NewTask) -> Pledged | None:
    row = view.one("task_by_key", task.class_key[0], task.key)
    if row is not None:
        if not is_same_work(view.one("class_by_id", row[2])[1], row[3], row[5], task):
            raise key_conflict(task, row[6])
        return Pledged(row[6], None)
    coming = view.one("inbox_of_key", task.class_key[0], task.key)
    return None if coming is None else _same_key(decode(coming[0]), task, coming[1])


def _same_key(first: NewTask, task: NewTask, origin: str | None) -> Pledged:
    if not _is_same(first, task):
        raise key_conflict(task, first.id)
    return Pledged(first.id, origin)


def _is_same(first: NewTask, task: NewTask) -> bool:
    return is_same_work(first.class_key[1], first.input, first.spec, task)


async def _under_own_keys(inbox: _Inbox, tasks: Sequence[NewTask], found: _Found) -> dict[bytes, Pledged]:
    """Return what tasks of this call and of this transaction have keys of this call. Raises Conflict."""
    keyed = [task for task in tasks if task.key is not None and task.id not in found.pledged]
    if not keyed:
        return {}
    rows = await inbox.ask("of_keys", [task.class_key[0] for task in keyed], [task.key for task in keyed])
    firsts: dict[tuple[str, str | None], tuple[NewTask, str | None]] = {}
    for namespace, key, raw, origin in rows:
        if raw is not None:
            firsts.setdefault((namespace, key), (decode(raw), origin))
    pledged: dict[bytes, Pledged] = {}
    for task in keyed:
        first, origin = firsts.setdefault((task.class_key[0], task.key), (task, None))
        if first.id != task.id:
            pledged[task.id] = _same_key(first, task, origin)
    return pledged


async def _under_own_ids(inbox: _Inbox, tasks: Sequence[NewTask], places: dict[bytes, int]) -> dict[bytes, Pledged]:
    """Return what tasks of this transaction have ids of this call.

    Raises: Conflict. TaskNotFound: a parent is neither committed nor submitted before in this transaction.
    """
    ours: dict[bytes, NewTask] = {}
    unknown: set[bytes] = set()
    for task in tasks:
        unknown.update(id for id in task.after if id not in ours and places.get(id) not in (_HERE, _COMING))
        if not _is_same(ours.setdefault(task.id, task), task):
            raise id_conflict(task)
    asked = {*unknown, *ours} if len(ours) > 1 else unknown  # one alone leaves nothing behind where it is refused later
    found = await _of_ids(inbox, asked) if asked else {}
    for id in unknown - found.keys():
        raise no_parent(id, is_pruned=places.get(id) == _PRUNED)
    return _same_ids(ours, found)


async def _of_ids(inbox: _Inbox, ids: Iterable[bytes]) -> dict[bytes, tuple[bytes, str]]:
    """Return what waits to be taken in under these ids, also of this transaction: encoded, and where it is from."""
    rows = await inbox.ask("of_ids", list(ids))
    return {bytes(id): (raw, origin) for id, raw, origin in rows if raw is not None}


def _same_ids(ours: dict[bytes, NewTask], found: dict[bytes, tuple[bytes, str]]) -> dict[bytes, Pledged]:
    """Raises Conflict: a task that was found is another than ours of its id."""
    pledged: dict[bytes, Pledged] = {}
    for id in ours.keys() & found.keys():
        raw, origin = found[id]
        if not _is_same(decode(raw), ours[id]):
            raise id_conflict(ours[id])
        pledged[id] = Pledged(id, origin)
    return pledged


def _size(task: NewTask) -> int:
    """Return how many bytes a row has, as near as it matters."""
    return ROW_BYTES + len(task.input) + len(task.spec or b"") + 18 * len(task.after)


def _fate(view: View, id: bytes, origin: str) -> tuple[str | None, int | None]:
    """Return how a transaction stands, and then where the task is: what it committed is seen by the later look."""
    try:
        status = view.one("fate", origin)[0]
    except asyncpg.InvalidParameterValueError:  # a server that took over has not come so far: it is lost
        status = None
    return status, _place(view, id)


def _place(view: View, id: bytes) -> int | None:
    places: dict[bytes, int] = dict(view.rows("whereabouts", [id]))
    return places.get(id)
