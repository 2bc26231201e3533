"""The steps of moving a store: look, settle what dead processes left, copy, compare, hand over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from mainspring.blobs.local import LocalBlobStore
from mainspring.cli.opening import is_missing, run, server_of
from mainspring.cli.stages import Stages
from mainspring.config import MAX_DURATION_S, EngineConfig, StoreConfig, is_server, refuse_address
from mainspring.dispatch.parts import FILE_SCHEMA, blob_folder, server_schema
from mainspring.environment import SYSTEM
from mainspring.errors import InternalError, StoreUnavailable, invalid
from mainspring.store.liveness import is_held
from mainspring.store.moving import marks
from mainspring.store.moving.comparing import differences, missing_blobs
from mainspring.store.moving.copying import copy_blobs, copy_rows, copy_vectors
from mainspring.store.moving.end import End, T, Worker, refuse_living
from mainspring.store.moving.file import FileEnd
from mainspring.store.moving.marks import Mark, arriving, moved_away, refuse_moved
from mainspring.store.moving.tables import KEYS, plan
from mainspring.store.sqlite.backup import blobs_beside, live_folder
from mainspring.store.sqlite.connection import look
from mainspring.tasks.lifecycle import STATUS_OF
from mainspring.testing import check_history

if TYPE_CHECKING:
    from mainspring.engine import Engine

_PATIENCE_S: Final = 5.0
"""Beyond the time after which a silent process on a server is dead."""
_AGAIN_S: Final = 0.1
_KEEP_ALL: Final = StoreConfig(
    keep_completed_s=MAX_DURATION_S,
    keep_failed_s=MAX_DURATION_S,
    keep_tombstones_s=MAX_DURATION_S,
    max_completed=1 << 62,
    cache_bytes=1 << 62,
)
"""Whoever settles a store looks after it meanwhile, and does not know for how long its engines keep what has ended."""
_SHOWN: Final = 5
Note = Callable[[str], None]


class Place:
    """A store by its name, whether or not it is there."""

    def __init__(self, name: str, blobs: Path | None) -> None:
        if name == ":memory:":
            raise invalid("store", name, "is gone when this command ends", "name a file or a server")
        refuse_address("store", name)
        self.name = name
        self._blobs = blobs

    @property
    def shown(self) -> str:
        return server_of(self.name).named if is_server(self.name) else str(self._path)

    @property
    def _path(self) -> Path:
        return Path(self.name).resolve()

    @property
    def blob_folder(self) -> Path:
        if self._blobs is not None:
            return self._blobs.absolute()
        return blob_folder(server_of(self.name)) if is_server(self.name) else blobs_beside(self._path).folder

    def blobs(self, *, make: bool = False) -> LocalBlobStore:
        return LocalBlobStore(self.blob_folder, make=make)

    def peek(self, run: Callable[[End], T]) -> T | None:
        """Return what a function finds in it, changing nothing; None where there is no store yet.

        Raises: what opening a store raises.
        """
        if is_server(self.name):
            from mainspring.store.moving.server import ServerEnd
            from mainspring.store.postgres.looking import look_if_any

            server = server_of(self.name)
            return look_if_any(server, lambda session: run(ServerEnd(server, session)))
        path = self._path
        return None if is_missing(self.name) else look(path, lambda connection: run(FileEnd(path, connection)))

    def open(self) -> End:
        """Open or make it for a move. Raises: what opening a store raises."""
        if is_server(self.name):
            from mainspring.store.moving.server import ServerEnd

            return ServerEnd.open(server_of(self.name), server_schema())
        return FileEnd.open(self._path, FILE_SCHEMA)

    def settle(self) -> None:
        """Take back what dead processes held, by the rules of the store, and see that none lives.

        Raises: StoreUnavailable: some do.
        """
        run(self._settle())

    async def _settle(self) -> None:
        from mainspring.engine import Engine

        config = msgspec.structs.replace(_KEEP_ALL, blobs=self._blobs)
        async with Engine(self.name, EngineConfig(store=config), worker=False) as engine:
            if is_server(self.name):
                await _settle_server(engine, self.shown, config.dead_s + _PATIENCE_S)
            else:
                await _settle_file(engine, self.shown, live_folder(self._path))


async def _settle_file(engine: Engine, shown: str, folder: Path) -> None:
    """Who holds its lock lives; whoever does not is rescued by this process, which looks after the store meanwhile."""
    store = engine.manager.store
    while others := [
        row for row in await store.view(lambda view: view.rows("open_workers")) if row[1] != store.worker_id
    ]:
        living = [Worker(name, pid, host) for _, name, pid, host in others if is_held(folder / f"{name}.life")]
        refuse_living(shown, living)
        await asyncio.sleep(_AGAIN_S)


async def _settle_server(engine: Engine, shown: str, limit_s: float) -> None:
    """Who beats lives; whoever does not for long enough is rescued by whoever leads."""
    store = engine.manager.store
    first: dict[str, int] = {}
    until = SYSTEM.monotonic() + limit_s
    while others := [
        row for row in await store.view(lambda view: view.rows("signs_of_life")) if row[1] != store.worker_id
    ]:
        beats = {name: beat for _, name, _, beat, *_ in others}
        is_over = SYSTEM.monotonic() > until
        living = [row for row in others if is_over or beats[row[1]] != first.get(row[1], beats[row[1]])]
        refuse_living(shown, [Worker(name, pid, "its host") for _, name, pid, *_ in living])
        first = {**beats, **first}
        await asyncio.sleep(_AGAIN_S)
    await _take_in(store)


async def _take_in(store: Any) -> None:
    """Make tasks of what users have submitted within their own transactions."""
    while await store.view(lambda view: view.one("arrivals")):
        await store.write(lambda tx: None)  # each transaction begins with taking in what has come


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """What there is in a store to move."""

    store: str
    tasks: dict[str, int]  # by status
    rows: dict[str, int]  # by table
    collections: dict[str, int]  # records
    blobs: int
    workers: list[Worker]  # that have not signed off
    marks: list[Mark]
    origin: str


def contents(end: End) -> Contents:
    return Contents(
        store=end.shown,
        tasks={STATUS_OF[code].value: n for code, n in end.statuses().items()},
        rows={name: end.count(name) for name in sorted(end.tables()) if name in KEYS},
        collections={row[0]: row[-1] for row in end.collections()},
        blobs=len(end.digests()),
        workers=end.open_workers(),
        marks=end.marks(),
        origin=end.origin(),
    )


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a move has done."""

    source: str
    target: str
    tasks: dict[str, int]
    rows: int
    records: int
    blobs: int
    is_resumed: bool
    was_over: bool = False  # an earlier run had done it all
    broken: tuple[str, ...] = ()  # invariants that the source breaks, and so does the target


def move(source: Place, target: Place, shown: Stages, note: Note, *, anew: bool) -> Report:
    """Move everything; see `mainspring migrate`."""
    if source.shown == target.shown:
        raise invalid("target", target.shown, "is the source itself", "name another store")
    ours, theirs = source.peek(_Known.of), target.peek(_Known.of)
    if ours is None:
        raise StoreUnavailable(f"there is no store at {source.shown}; check the name")
    if (away := moved_away(ours.marks)) is not None:
        return _hand_over(source, target, away, ours, theirs)
    begun = None if theirs is None else arriving(theirs.marks)
    if begun is None or begun.origin != ours.origin:
        if begun is None and theirs is not None:
            refuse_moved(target.shown, theirs.marks)
            if theirs.workers:
                target.settle()
        source.settle()
    with closing(source.open()) as one, closing(target.open()) as other:
        try:
            return _move(source, target, one, other, shown, note, anew=anew)
        except StoreUnavailable as exc:
            raise StoreUnavailable(f"{exc} (nothing is lost: run the same command again to go on)") from exc


class _Known(msgspec.Struct, frozen=True):
    """What decides how to begin."""

    marks: list[Mark]
    workers: list[Worker]
    origin: str

    @classmethod
    def of(cls, end: End) -> _Known:
        return cls(end.marks(), end.open_workers(), end.origin())


def _hand_over(source: Place, target: Place, away: Mark, ours: _Known, theirs: _Known | None) -> Report:
    """The source is moved already: all that may be left is to open the target to engines."""
    mark = next((mark for mark in theirs.marks if mark.id == away.id), None) if theirs is not None else None
    if mark is None:
        refuse_moved(source.shown, ours.marks)
        raise InternalError(f"{source.shown} was moved and is not refused; please report this")
    with closing(target.open()) as end:
        if mark.ended_ms is None:
            with end.transaction():
                end.end(mark.id, SYSTEM.wall_ms())
        return _report(source, target, end, is_resumed=True, was_over=mark.ended_ms is not None)


def _move(source: Place, target: Place, one: End, other: End, shown: Stages, note: Note, *, anew: bool) -> Report:
    with one.hold():
        refuse_living(one.shown, one.open_workers())
        one.refuse_coming()
        refuse_moved(one.shown, one.marks())
        tables = plan(one.columns(), other.columns())
        mark, is_resumed = _begin(one, other, note, anew=anew)
        digests = one.digests()
        theirs, ours = source.blobs(), target.blobs(make=bool(digests))
        if theirs.folder != ours.folder:
            copy_blobs(digests, theirs, ours, shown.of("blobs"))
        copy_rows(one, other, tables, mark, shown.of("rows"))
        copy_vectors(one, other, shown.of("vectors"))
        with other.transaction():
            other.set_numbers(one.numbers())
        faults = [
            *differences(one, other, tables, shown.of("rows compared")),
            *missing_blobs(digests, theirs, ours, shown.of("blobs compared")),
        ]
        broken, known = _broken(target, ours), frozenset[str]()
        if broken:
            known = frozenset(_broken(source, theirs))
            faults += [fault for fault in broken if fault not in known]
        if faults:
            more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
            raise InternalError(
                f"{other.shown} is not what {one.shown} is, which was left as it was: "
                f"{'; '.join(faults[:_SHOWN])}{more}; run it with --anew, and please report this"
            )
        one.ask(marks.SCHEMA)
        one.put_mark(Mark(mark.id, "source", other.shown, mark.origin, mark.began_ms, SYSTEM.wall_ms()))
        one.part()
    with other.transaction():
        other.end(mark.id, SYSTEM.wall_ms())
    return _report(source, target, other, is_resumed=is_resumed, broken=tuple(broken))


def _begin(one: End, other: End, note: Note, *, anew: bool) -> tuple[Mark, bool]:
    """Return the mark to go on from, and whether an earlier run has left it."""
    origin, known = one.origin(), other.marks()
    begun = arriving(known)
    if begun is None:
        refuse_moved(other.shown, known)
    elif not anew:
        _refuse_part(begun, one, other)
        if begun.origin == origin:
            return begun, True
        note(f"{one.shown} was opened since its move began: it begins anew")
    mark = Mark(SYSTEM.new_id().hex(), "target", one.shown, origin, SYSTEM.wall_ms())
    with other.transaction():
        refuse_living(other.shown, other.open_workers())
        if begun is None:
            other.refuse_filled()
        other.clear()
        other.ask(marks.SCHEMA)
        other.put_mark(mark)
    return mark, False


def _refuse_part(begun: Mark, one: End, other: End) -> None:
    if begun.other != one.shown:
        raise invalid(
            "target",
            other.shown,
            f"holds a part of {begun.other}, whose move has not come to its end",
            "run that one again, or throw away what is there with --anew",
        )


def _broken(place: Place, blobs: LocalBlobStore) -> list[str]:
    return [str(violation) for violation in check_history(place.name, blobs=blobs)]


def _report(source: Place, target: Place, end: End, **told: Any) -> Report:
    return Report(
        source=source.shown,
        target=target.shown,
        tasks={STATUS_OF[code].value: n for code, n in end.statuses().items()},
        rows=sum(end.count(name) for name in KEYS if name in end.tables()),
        records=sum(row[-1] for row in end.collections()),
        blobs=len(end.digests()),
        **told,
    )
