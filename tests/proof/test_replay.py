"""The simulated disk itself: what it loses, and what it never does."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest
from proof.faults.replay import SECTOR, Image, Replay
from proof.faults.vfs import Create, Delete, Disk, Entry, Fault, Sync, Truncate, Write
from tests.conformance.kit import SqliteFactory, new, opened, submit

OLD, NEW = b"o" * 2048, b"n" * 2048
DONE, FAILED = Sync(1, False, False), Sync(1, True, False)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """A disk with one file on it."""
    disk = Disk(tmp_path)
    disk.start = {"file": (1, OLD)}
    return disk


Left = Callable[..., list[Image]]


@pytest.fixture
def left(disk: Disk) -> Left:
    """What 200 power cuts leave after these entries."""

    def images(*entries: Entry, forgetful: bool = False) -> list[Image]:
        replay = Replay(disk, forgetful=forgetful)
        for entry in entries:
            replay.step(entry)
        return [replay.after_power_cut(random.Random(seed)) for seed in range(200)]

    return images


def test_an_unsynced_write_is_lost_whole_or_torn(left: Left) -> None:
    """All three happen; a tear goes along the disk's sectors, wherever the write begins, and touches nothing else."""
    found = {image["file"] for image in left(Write(1, 100, NEW[:1000]))}
    whole = OLD[:100] + NEW[:1000] + OLD[1100:]
    assert {OLD, whole} < found
    for torn in found:
        assert len(torn) == len(OLD)
        for at in range(0, len(OLD), SECTOR):
            assert torn[at : at + SECTOR] in (OLD[at : at + SECTOR], whole[at : at + SECTOR])


def test_what_is_synced_stays(left: Left) -> None:
    assert {image["file"] for image in left(Write(1, 0, NEW), Truncate(1, 1024), DONE)} == {NEW[:1024]}


def test_what_comes_after_the_sync_is_open_again(left: Left) -> None:
    assert {image["file"] for image in left(Write(1, 0, NEW), DONE, Truncate(1, 0))} == {NEW, b""}


def test_a_failed_sync_forgets(left: Left) -> None:
    """A later sync saves what an earlier one could not, or, as Linux does it, only what was written since."""
    entries = (Write(1, 0, NEW), FAILED, Write(1, 0, b"x"), DONE)
    assert {image["file"] for image in left(*entries)} == {b"x" + NEW[1:]}
    forgetful = {image["file"] for image in left(*entries, forgetful=True)}
    assert {b"x" + OLD[1:], b"x" + NEW[1:]} < forgetful
    assert {content[:1] for content in forgetful} == {b"x"}


def test_names_are_open_until_the_folder_is_synced(left: Left) -> None:
    made = (Create("log", 2), Write(2, 0, NEW), Sync(2, False, False))
    assert {tuple(image) for image in left(*made)} == {("file",), ("file", "log")}
    assert {tuple(image) for image in left(*made, Sync(2, False, True))} == {("file", "log")}
    assert {tuple(image) for image in left(Delete("file", False))} == {("file",), ()}
    assert {tuple(image) for image in left(Delete("file", True))} == {()}


def test_death_takes_nothing_along(disk: Disk) -> None:
    """What was written is there for the next process, synced or not."""
    replay = Replay(disk, forgetful=True)
    for entry in (Write(1, 0, NEW), FAILED, Create("log", 2), Write(2, 5, b"x")):
        replay.step(entry)
    assert replay.after_death() == {"file": NEW, "log": bytes(5) + b"x"}


@pytest.mark.anyio
async def test_the_log_tells_what_the_real_files_hold(tmp_path: Path) -> None:
    """Whatever a store does, with failures among it, playing the log again gives its files byte for byte."""
    factory = SqliteFactory(tmp_path)
    with Disk(tmp_path) as disk:
        async with opened(factory.make()) as store:
            await submit(store, *(new("x" * 3000) for _ in range(20)))
            disk.break_(lambda operation: Fault(apsw.IOError, 0.5) if operation.number == 3 else None)
            with pytest.raises(Exception, match="nothing was stored"):
                await submit(store, new("y" * 9000))
            disk.heal()
            await submit(store, new("z"))
    replay = Replay(disk, forgetful=False)
    for entry in disk.log:
        replay.step(entry)
    assert replay.after_death() == {factory.path.name: factory.path.read_bytes()}
    assert disk.failed == 1
