"""What there is to say of a store in a file: pure rules from facts to findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from mainspring.cli.doctor import work
from mainspring.cli.doctor.finding import Finding, Level
from mainspring.cli.screen import size
from mainspring.config import MIB, StoreConfig
from mainspring.store.sqlite.connection import SCHEMA_VERSION
from mainspring.store.sqlite.inspection import FileFacts
from mainspring.store.sqlite.shape import Difference

_MENDED_IN: Final[Mapping[tuple[int, ...], int]] = {(3, 44): 6, (3, 50): 7}
_WAL_RESET: Final = "https://sqlite.org/wal.html#walresetbug"


def findings(facts: FileFacts, versions: Mapping[str, str]) -> Iterator[Finding]:
    """Yield all that the facts give reason to say."""
    yield from _versions(versions)
    yield from _file(facts)
    yield from _workers(facts)
    yield from work.findings(facts, "this machine's clock")


def damage(found: Sequence[str]) -> Iterator[Finding]:
    """What the integrity check says."""
    for line in found:
        yield Finding(
            level="problem",
            about="integrity",
            what=f"StoreDamaged: {line}",
            remedy="stop the workers, keep a copy of the file, and restore a backup (`mainspring restore`)",
        )


def shape(found: Sequence[Difference]) -> Iterator[Finding]:
    """Where the file is not made as this version makes one."""
    for item in found:
        if item.kind == "foreign":
            remedy = "keep it in a file of its own: `mainspring migrate` moves no store with what it does not know"
        elif item.mend:
            remedy = f"stop the workers, take a backup, and run this with sqlite3: {item.mend}"
        else:
            remedy = "stop the workers, keep a copy of the file, and restore a backup (`mainspring restore`)"
        level: Level = "warning" if item.kind == "foreign" else "problem"
        yield Finding(level=level, about="schema", what=item.what, remedy=remedy)


def no_folder(folder: Path, referred: int) -> Iterator[Finding]:
    """Where a file that was renamed, or copied alone, has no blobs beside it."""
    if referred:
        yield Finding(
            level="problem",
            about="blobs",
            what=f"rows refer to {referred:,} blobs, and there is no folder {folder}",
            remedy="if the file was renamed or copied, give the folder that lay beside it the same name with `-blobs`, "
            "or name it with --blobs; else put it back from a backup",
            figures={"referred": referred},
        )


def _versions(versions: Mapping[str, str]) -> Iterator[Finding]:
    if _can_corrupt(versions["sqlite"]):
        yield Finding(
            level="warning",
            about="versions",
            what=f"SQLite {versions['sqlite']} can corrupt a write-ahead log that several processes use ({_WAL_RESET})",
            remedy="install a newer apsw: 3.51.3 is the first that brings a sound one",
        )


def _can_corrupt(version: str) -> bool:
    number = tuple(int(part) for part in version.split("."))
    mended_in = _MENDED_IN.get(number[:2])
    return number < (3, 51, 3) and (mended_in is None or number[2] < mended_in)


def _file(facts: FileFacts) -> Iterator[Finding]:
    file = facts.file
    if file.names > 1:
        yield Finding(
            level="warning",
            about="file",
            what=f"the file has {file.names} names (hard links)",
            remedy="keep one: a process that opens it by another name does not find its log",
        )
    if file.schema < SCHEMA_VERSION:
        yield Finding(
            level="note",
            about="file",
            what=f"schema {file.schema} is that of an older version; the next opening makes it {SCHEMA_VERSION}",
            remedy="stop the workers of the older version and take a backup first: it can't open the file afterwards",
        )
    share = file.disk_free_bytes / file.disk_bytes if file.disk_bytes else 1.0
    if share < 0.10:
        full = share < 0.05
        yield Finding(
            level="warning",
            about="disk",
            what=f"{size(file.disk_free_bytes)} ({share:.0%}) of the disk are free"
            + ("; submits are refused below 5 %" if full else ""),
            remedy="free space, or move the store to a larger disk (`mainspring backup`, then `restore` there)",
            figures={"free_bytes": file.disk_free_bytes, "disk_bytes": file.disk_bytes},
        )
    limit = StoreConfig().wal_limit_bytes
    if file.log_bytes > limit:
        yield Finding(
            level="warning",
            about="log",
            what=f"the write-ahead log has {size(file.log_bytes)}, more than {size(limit)}",
            remedy="somebody reads for very long: end long looks at the file (backups, sqlite3 shells, scripts); "
            "it shrinks by itself then",
            figures={"log_bytes": file.log_bytes},
        )
    free = file.free_pages * file.page_size
    if free > 64 * MIB and file.free_pages * 2 > file.pages:
        yield Finding(
            level="note",
            about="file",
            what=f"{size(free)} of the file's {size(file.bytes)} are free inside; they are used before it grows",
            remedy="whoever leads gives them back to the disk in steps; a file made by an early version shrinks by a "
            "restore of `mainspring backup --compact`",
            figures={"free_bytes": free, "file_bytes": file.bytes},
        )


def _workers(facts: FileFacts) -> Iterator[Finding]:
    for worker in facts.workers:
        who = f"worker {worker.name} (pid {worker.pid})"
        if not worker.is_here and not worker.is_alive:
            yield Finding(
                level="warning",
                about="workers",
                what=f"{who} was started on {worker.host}, which is not this machine, and holds no lock here",
                remedy="open a store from one machine alone: locks do not reach another, so its claims pass for lost",
            )
        elif not worker.is_alive:
            yield work.dead(who, worker)
        elif worker.has_file is False:
            yield Finding(
                level="problem",
                about="workers",
                what=f"{who} has another file open than the one that is here now, and records its work there",
                remedy="stop it: the file was moved or replaced under it",
            )
        elif worker.turns is False:
            yield work.silent(who, worker, facts)
    for name in facts.strangers:
        yield Finding(
            level="problem",
            about="workers",
            what=f"process {name} lives beside this store and does not stand in it",
            remedy="find and stop it (`lsof` on the store's `-live` folder): the file was replaced under it",
        )
