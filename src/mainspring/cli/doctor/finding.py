"""What `doctor` says: findings, each with its remedy, and the report that they stand in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Literal

import msgspec

from mainspring.blobs.local import LocalBlobStore
from mainspring.cli import exits
from mainspring.store.moving.marks import Mark, arriving, moved_away
from mainspring.store.sql.inspection import Facts
from mainspring.testing import Violation

Level = Literal["problem", "warning", "note"]
_ORDER: Final = ("problem", "warning", "note")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something to know (note), to attend to (warning), or that is broken (problem)."""

    level: Level
    about: str
    what: str
    remedy: str
    figures: dict[str, Any] = {}


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that one look found; facts are missing where damage kept them from being read."""

    store: str
    versions: dict[str, str]
    checks: tuple[str, ...]
    facts: Facts | None
    blobs: int
    blob_bytes: int
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        levels = {finding.level for finding in self.findings}
        return exits.STORE if "problem" in levels else exits.NOT_COMPLETED if "warning" in levels else exits.OK


def in_order(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return what is worst first."""
    return tuple(sorted(found, key=lambda finding: _ORDER.index(finding.level)))


_REPORT: Final = "keep a copy of the store and report this; a backup from before is the safe way back"
_REMEDIES: Final = {
    "blobs": "put its file back from a backup (it is named by the digest); tasks that need it fail until then",
    "identity": "whoever asks for that id may get another's task: cancel it, and submit its work under a new id; "
    + _REPORT,
    "delays": "it would start at the wrong time, or not at all: cancel it, and submit its work again; " + _REPORT,
    "keys": "a submit with that key may make a second task: submit no more with it until a backup is restored; "
    + _REPORT,
    "dependencies": "it would run without a result that it needs: cancel it, and submit its work again; " + _REPORT,
    "numbers": "stop whoever submits, for new tasks are refused or take the place of old ones; " + _REPORT,
    "ranks": "it would go before, or after, all others: cancel it, and submit its work again; " + _REPORT,
}
"""What to do first about what breaks an invariant."""


def broken(found: Sequence[Violation]) -> Iterator[Finding]:
    """What breaks an invariant."""
    for item in found:
        yield Finding(
            level="problem",
            about=f"invariant {item.invariant}",
            what=str(item),
            remedy=_REMEDIES.get(item.invariant, _REPORT),
            figures=item.figures,
        )


def moves(marks: Sequence[Mark]) -> Iterator[Finding]:
    """Why no engine opens this store: its tasks are elsewhere, or are still on their way here."""
    if (away := moved_away(marks)) is not None:
        yield Finding(
            level="warning",
            about="move",
            what=f"its tasks were moved to {away.other}",
            remedy="open that one: no engine opens this store any more",
        )
    elif (coming := arriving(marks)) is not None:
        yield Finding(
            level="warning",
            about="move",
            what=f"it is being filled from {coming.other} and is not whole yet",
            remedy="let `mainspring migrate` come to its end, or run it again",
        )


def shared_folder(blobs: LocalBlobStore, identity: str) -> Iterator[Finding]:
    """Where stores can't tell whose blobs nobody needs any more."""
    if others := len(blobs.users() - {identity}):
        who = "another store keeps its blobs" if others == 1 else f"{others} other stores keep their blobs"
        yield Finding(
            level="warning",
            about="blobs",
            what=f"{who} in {blobs.folder} too: none are lost, and none are collected",
            remedy="give each a folder of its own (StoreConfig.blobs), with a copy of this one; for a store that is no "
            "more remove the file of its identity in the folder's `stores`",
            figures={"others": others},
        )
