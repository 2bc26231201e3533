"""`backup` and `restore`: whole copies of a store, checked before they count."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from mainspring.cli.opening import existing, file_named, run
from mainspring.cli.options import DEFAULT_STORE, AsJson, StorePath
from mainspring.cli.screen import Screen, size
from mainspring.cli.stages import Stages, stages
from mainspring.config import is_server, without_password
from mainspring.dispatch.parts import FILE_SCHEMA
from mainspring.environment import SYSTEM
from mainspring.errors import StoreDamaged, StoreUnavailable, invalid
from mainspring.store.sqlite import backup as copying
from mainspring.store.sqlite.connection import look
from mainspring.store.sqlite.inspection import integrity, unfinished
from mainspring.store.sqlite.shape import differences
from mainspring.testing import check_history

_SHOWN = 3
Force = Annotated[bool, typer.Option("--force", help="Replace a store that is there and that nobody has open.")]


def backup(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="File for the copy; its blobs go beside it.")],
    force: Force = False,
    compact: Annotated[bool, typer.Option("--compact", help="Leave out what is free inside the file.")] = False,
    store: StorePath = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Copy a store as it is at this moment, with its blobs, while workers go on. The copy is checked before it counts.

    A copy that is not sound, because the store is not, is kept as TARGET.unsound. Exit code 4 then.
    """
    remedy = "copy its schema with pg_dump, which is one moment while workers go on, then its blobs"
    _refuse_servers(remedy, target=target, store=store)
    screen, source, copy = Screen(as_json), existing(store), file_named("target", target)
    if copy.exists() and copy.samefile(source):
        raise invalid("target", str(copy), "is the store itself", "name another file")
    copying.refuse_taken(copy, is_forced=force)
    began = SYSTEM.monotonic()
    with stages(as_json=as_json) as shown, _draft(copy) as draft:
        _copy(source, draft, copy, shown, is_compact=compact)
        if faults := _faults(draft, copy, source, shown):
            copying.bring_blobs(copy, unsound(copy))
            copying.publish(draft, unsound(copy))
            raise _refusal(f"the copy of {source} is kept as {unsound(copy)} and is not sound", faults)
        copying.publish(draft, copy)
    digests = copying.digests_of(copy)
    _forget_others(copy, digests)
    _tell(screen, "backup", copy, digests, began)


def restore(
    backup: Annotated[str, typer.Argument(metavar="BACKUP", help="A file that `mainspring backup` wrote.")],
    force: Force = False,
    store: StorePath = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Make a store of a backup. Attempts that ran when it was made are handed back, uncharged, and run again.

    With --force a store that is there is kept beside it as PATH-replaced (PATH-replaced-2 where there is one, and on).
    """
    remedy = "put back what pg_dump wrote with psql or pg_restore, and the blobs beside it"
    _refuse_servers(remedy, backup=backup, store=store)
    screen, source, target = Screen(as_json), file_named("backup", backup), file_named("store", store)
    if not source.exists():
        raise StoreUnavailable(f"there is no backup at {source}; check the path")
    if target.exists() and target.samefile(source):
        raise invalid("backup", backup, "is the store itself", "name another file")
    copying.refuse_taken(target, is_forced=force)
    began = SYSTEM.monotonic()
    with stages(as_json=as_json) as shown, _draft(target) as draft:
        _copy(source, draft, target, shown, is_compact=False)
        if faults := _faults(draft, target, source, shown):
            raise _refusal(f"{source} is not sound; nothing was restored", faults)
        run(_recover(draft))
        copying.refuse_taken(target, is_forced=force)  # nobody came meanwhile
        replaced = copying.replace(draft, target)
    if replaced is not None:
        screen.note(f"the store that was there is now {replaced}")
    _tell(screen, "restored", target, copying.digests_of(target), began)


def _refuse_servers(remedy: str, **words: str) -> None:
    for field, value in words.items():
        if is_server(value):
            raise invalid(field, without_password(value), "is on a server, and this copies files alone", remedy)


def unsound(target: Path) -> Path:
    return target.with_name(target.name + ".unsound")


@contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """The file to write, which gets its name at the end; whatever happens, no half of a copy stays."""
    draft = copying.draft_of(target)
    blobs = copying.blobs_beside(target).folder
    had_blobs = blobs.exists()
    try:
        yield draft
    except BaseException:
        if not had_blobs:
            shutil.rmtree(blobs, ignore_errors=True)
        raise
    finally:
        copying.discard(draft)


def _copy(source: Path, draft: Path, target: Path, shown: Stages, *, is_compact: bool) -> None:
    blobs = copying.blobs_beside(source)
    copying.copy_blobs(copying.digests_of(source), blobs, target, shown.of("blobs"))
    copying.copy_rows(source, draft, shown.of("pages"))
    copying.copy_blobs(copying.digests_of(draft), blobs, target, shown.of("blobs"))
    if is_compact:
        copying.compact(draft)


def _faults(draft: Path, target: Path, source: Path, shown: Stages) -> list[str]:
    """Return what is wrong with a copy: damage, another schema, broken invariants, blobs missing or damaged."""
    if damage := look(draft, lambda connection: integrity(connection, is_thorough=True)):
        return damage
    made_otherwise = look(draft, lambda connection: differences(connection, FILE_SCHEMA))
    found = [item.what for item in made_otherwise if item.kind != "foreign"]
    if any(item.kind == "lost" for item in made_otherwise):
        return found
    found += [str(violation) for violation in check_history(draft)]
    blobs, theirs = copying.blobs_beside(target), copying.blobs_beside(source)
    return found + list(copying.blob_faults(copying.digests_of(draft), blobs, theirs, shown.of("blobs checked")))


def _refusal(what: str, faults: list[str]) -> StoreDamaged:
    more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    return StoreDamaged(f"{what}: {'; '.join(faults[:_SHOWN])}{more}; `mainspring doctor --check` tells all")


async def _recover(draft: Path) -> None:
    """Open the copy once: it is migrated, and what its dead workers held is handed back."""
    from mainspring.engine import Engine

    async with Engine(draft, worker=False):
        pass


def _forget_others(target: Path, digests: list[str]) -> None:
    """Remove blobs of a backup that this one replaced."""
    blobs, kept = copying.blobs_beside(target), set(digests)
    for digest in [digest for digest, _ in blobs.digests() if digest not in kept]:
        blobs.delete(digest)


def _tell(screen: Screen, what: str, target: Path, digests: list[str], began: float) -> None:
    blobs = copying.blobs_beside(target)
    sizes = [info.size for digest in digests if (info := blobs.info(digest)) is not None]
    waiting, took, bytes = look(target, unfinished), SYSTEM.monotonic() - began, target.stat().st_size
    if screen.as_json:
        screen.document(
            {
                what: str(target),
                "bytes": bytes,
                "blobs": len(sizes),
                "blob_bytes": sum(sizes),
                "unfinished": waiting,
                "seconds": round(took, 3),
            }
        )
        return
    screen.text(
        f"{target}: {size(bytes)} and {len(sizes):,} blobs ({size(sum(sizes))}), {waiting:,} unfinished tasks, "
        f"checked, in {took:.1f} s"
    )


__all__ = ["backup", "restore"]
