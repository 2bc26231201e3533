"""What is left on a disk: after a process died, and after the power went, at any moment of a log.

A process that dies takes nothing along: what was written is in the system's memory. When the power goes, each write
that no sync followed is there, is not, or is there in some of its sectors; a new or deleted name is there or not until
its folder was synced.
"""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

from proof.faults.vfs import Create, Delete, Disk, Entry, Sync, Truncate, Write

SECTOR = 512
Image = dict[str, bytes]
"""The files of a folder by name."""


class _Pending:
    """A change of a file that may not be on the disk yet."""

    __slots__ = ("change", "doomed", "sure")

    def __init__(self, change: Write | Truncate) -> None:
        self.change = change
        self.sure = False
        self.doomed = False


class Replay:
    """The state of the disk after the entries so far.

    Args:
        forgetful: after a failed sync the system takes the pages for clean, as Linux does: what was written before it
            can be read, but no later sync saves it. Otherwise a later sync saves it.
    """

    def __init__(self, disk: Disk, *, forgetful: bool) -> None:
        self._forgetful = forgetful
        self._durable = {file: bytearray(data) for file, data in disk.start.values()}
        self._pending: dict[int, list[_Pending]] = defaultdict(list)
        self._names: dict[str, list[int | None]] = {name: [file] for name, (file, _) in disk.start.items()}

    def step(self, entry: Entry) -> None:
        if isinstance(entry, (Write, Truncate)):
            self._pending[entry.file].append(_Pending(entry))
        elif isinstance(entry, Sync):
            self._sync(entry)
        elif isinstance(entry, Create):
            self._names.setdefault(entry.name, [None]).append(entry.file)
            self._durable.setdefault(entry.file, bytearray())
        elif isinstance(entry, Delete):
            self._names[entry.name].append(None)
            if entry.synced:
                self._sync_folder()

    def _sync(self, sync: Sync) -> None:
        pending = self._pending[sync.file]
        for one in pending:
            if sync.failed:
                one.doomed = one.doomed or (self._forgetful and not one.sure)
            elif not one.doomed:
                one.sure = True
        n = 0
        while n < len(pending) and pending[n].sure:
            _apply(self._durable[sync.file], pending[n].change)
            n += 1
        del pending[:n]
        if sync.folder:
            self._sync_folder()

    def _sync_folder(self) -> None:
        for states in self._names.values():
            del states[:-1]

    def after_death(self) -> Image:
        """What the next process finds when this one dies now."""
        return {name: self._content(file, None) for name, (*_, file) in sorted(self._names.items()) if file is not None}

    def after_power_cut(self, rng: random.Random) -> Image:
        """What is left when the power goes now: one of the many possibilities."""
        chosen = {name: rng.choice(states) for name, states in sorted(self._names.items())}
        return {name: self._content(file, rng) for name, file in chosen.items() if file is not None}

    def _content(self, file: int, rng: random.Random | None) -> bytes:
        content = bytearray(self._durable[file])
        for one in self._pending[file]:
            change = one.change
            if rng is None or one.sure:
                _apply(content, change)
                continue
            fate = rng.randrange(3)
            if fate == 0:
                continue
            if fate == 2 and isinstance(change, Write):
                for sector in _sectors(change):
                    if rng.random() < 0.5:
                        _apply(content, sector)
            else:
                _apply(content, change)
        return bytes(content)


def _apply(content: bytearray, change: Write | Truncate) -> None:
    if isinstance(change, Truncate):
        del content[change.size :]
        return
    if change.offset > len(content):
        content.extend(bytes(change.offset - len(content)))
    content[change.offset : change.offset + len(change.data)] = change.data


def _sectors(write: Write) -> list[Write]:
    """Cut a write where the disk's sectors end."""
    sectors, at = [], 0
    while at < len(write.data):
        size = SECTOR - (write.offset + at) % SECTOR
        sectors.append(Write(write.file, write.offset + at, write.data[at : at + size]))
        at += size
    return sectors


def put(image: Image, folder: Path) -> None:
    """Lay an image into an empty folder."""
    for name, content in image.items():
        Path(folder, name).write_bytes(content)
