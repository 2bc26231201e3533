"""Blobs in a local folder."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3

from mainspring.blobs import LocalBlobStore
from mainspring.environment import Environment
from mainspring.errors import InternalError, InvalidInput, StoreUnavailable, TaskNotFound


class Clock(Environment):
    now_ms = 1_700_000_000_000

    def wall_ms(self) -> int:
        return self.now_ms


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobStore:
    return LocalBlobStore(tmp_path / "blobs")


def files(blobs: LocalBlobStore) -> list[Path]:
    return [path for path in blobs.folder.rglob("*") if path.is_file()]


def test_looking_makes_nothing(tmp_path: Path, blobs: LocalBlobStore) -> None:
    """`make=False` reads what is there, and takes a missing folder for an empty one."""
    digest = blobs.put(b"here").digest
    looking = LocalBlobStore(blobs.folder, make=False)
    assert [found for found, _ in looking.digests()] == [digest]
    assert looking.get(digest) == b"here"
    nowhere = LocalBlobStore(tmp_path / "nowhere", make=False)
    assert (list(nowhere.digests()), nowhere.info(digest)) == ([], None)
    assert not nowhere.folder.exists()


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 5000])
def test_round_trip(blobs: LocalBlobStore, data: bytes) -> None:
    """What was put comes back under its blake3 hash, with its size."""
    info = blobs.put(data)
    assert info.digest == blake3(data).hexdigest()
    assert (info.size, blobs.info(info.digest), blobs.get(info.digest)) == (len(data), info, data)


def test_equal_content_is_stored_once(blobs: LocalBlobStore) -> None:
    """Putting the same bytes again leaves one file and nothing temporary."""
    first, second = blobs.put(b"same"), blobs.put(b"same")
    assert first == second
    assert len(files(blobs)) == 1


def test_only_the_owner_may_read(blobs: LocalBlobStore) -> None:
    """Files are 0600 and folders 0700, whatever the umask allows."""
    before = os.umask(0)
    try:
        blobs.put(b"secret")
    finally:
        os.umask(before)
    for path in (blobs.folder, *blobs.folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_ranges(blobs: LocalBlobStore) -> None:
    """A range is [start, end), shortened at the blob's end; what is no range is refused."""
    digest = blobs.put(b"0123456789").digest
    assert blobs.get(digest, 2, 5) == b"234"
    assert blobs.get(digest, 8, 99) == b"89"
    assert blobs.get(digest, 20) == b""
    for start, end in ((-1, None), (5, 2)):
        with pytest.raises(InvalidInput):
            blobs.get(digest, start, end)


def test_damage_is_noticed(blobs: LocalBlobStore) -> None:
    """A whole read of changed content raises instead of returning it; putting a blob again that was cut off or changed
    heals it."""
    digest = blobs.put(b"precious").digest
    (path,) = files(blobs)
    for damaged in (b"precioux", b"prec"):
        path.write_bytes(damaged)
        with pytest.raises(InternalError, match=digest):
            blobs.get(digest)
        blobs.put(b"precious")
        assert blobs.get(digest) == b"precious"


def test_what_is_wrong_with_a_blob_is_told(blobs: LocalBlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """That it is gone, damaged or can't be read; a file that was found whole is read again when it has been changed."""
    digest = blobs.put(b"precious").digest
    (path,) = files(blobs)
    with monkeypatch.context() as patch:
        assert blobs.fault(digest) is None
        patch.setattr(blobs, "get", None)  # it is not read again
        assert blobs.fault(digest) is None
    path.write_bytes(b"precioux")
    assert f"blob {digest} in {blobs.folder} is damaged" in str(blobs.fault(digest))
    blobs.put(b"precious")
    assert blobs.fault(digest) is None
    path.unlink()
    assert f"no blob {digest} in {blobs.folder}" in str(blobs.fault(digest))
    path.mkdir()
    assert "can't be used" in str(blobs.fault(digest))
    assert "no blake3 hash" in str(blobs.fault("../../etc/passwd"))


def test_unknown_and_malformed_digests(blobs: LocalBlobStore) -> None:
    """An unknown blob is TaskNotFound; a digest that could lead out of the folder is refused."""
    unknown = "0" * 64
    with pytest.raises(TaskNotFound):
        blobs.get(unknown)
    assert blobs.info(unknown) is None
    blobs.delete(unknown)
    for digest in ("", "../../etc/passwd", "A" * 64, "0" * 63 + "\n"):
        with pytest.raises(InvalidInput):
            blobs.get(digest)


def test_delete_spares_what_was_put_again(tmp_path: Path) -> None:
    """A blob's age counts from its last put, so that a collector never takes what a task just stored."""
    clock = Clock()
    blobs = LocalBlobStore(tmp_path, env=clock)
    digest = blobs.put(b"old").digest
    clock.now_ms += 100_000
    assert list(blobs.digests()) == [(digest, 100.0)]
    blobs.put(b"old")
    blobs.delete(digest, older_than_s=50)
    assert blobs.get(digest) == b"old"
    clock.now_ms += 100_000
    blobs.delete(digest, older_than_s=50)
    assert blobs.info(digest) is None
    assert list(blobs.digests()) == []


def test_a_put_between_a_deletes_look_and_its_act_is_not_lost(tmp_path: Path) -> None:
    """A put that comes while a collector decides about the same old blob waits for it and writes the blob again."""
    clock = Clock()
    blobs = LocalBlobStore(tmp_path, env=clock)
    digest = blobs.put(b"old").digest
    clock.now_ms += 100_000
    putting = threading.Thread(target=blobs.put, args=(b"old",))

    class Slow(LocalBlobStore):
        def _age_s(self, path: Path) -> float:
            age = super()._age_s(path)
            putting.start()
            putting.join(timeout=0.3)  # ends in vain, unless nothing holds the put back
            return age

    Slow(tmp_path, env=clock).delete(digest, older_than_s=50)
    putting.join()
    assert blobs.get(digest) == b"old"


def test_threads_put_and_delete_the_same_content(blobs: LocalBlobStore) -> None:
    """After any put returned, a delete that spares young blobs never takes it, however they interleave."""

    def put(n: int) -> None:
        digest = blobs.put(b"contested").digest
        blobs.delete(digest, older_than_s=3600)
        assert blobs.get(digest) == b"contested"

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(200)))
    assert len(files(blobs)) == 1


def test_processes_put_the_same_content(blobs: LocalBlobStore) -> None:
    """Several processes that store the same values at once leave each of them once and whole."""
    program = (
        "import sys; from mainspring.blobs import LocalBlobStore; blobs = LocalBlobStore(sys.argv[1])\n"
        "for n in range(60): blobs.put(b'value %d' % n * 1000)"
    )
    running = [subprocess.Popen([sys.executable, "-c", program, str(blobs.folder)]) for _ in range(3)]
    assert [process.wait(timeout=60) for process in running] == [0, 0, 0]
    assert {digest for digest, _ in blobs.digests()} == {blake3(b"value %d" % n * 1000).hexdigest() for n in range(60)}
    assert len(files(blobs)) == 60


def test_a_full_disk_leaves_nothing_behind(blobs: LocalBlobStore) -> None:
    """When the system refuses to write on, put raises StoreUnavailable, and neither a blob nor a piece of one stays."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(StoreUnavailable, match="20000 bytes"):
            blobs.put(b"x" * 20_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(blobs) == []
    assert blobs.put(b"x" * 20_000).size == 20_000


def test_a_folder_that_can_not_be(tmp_path: Path) -> None:
    """A place that can't be made, or that vanished, is StoreUnavailable, which may be tried again."""
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailable, match="file"):
        LocalBlobStore(tmp_path / "file" / "blobs")
    blobs = LocalBlobStore(tmp_path / "blobs")
    (blobs.folder / "tmp").rmdir()
    blobs.folder.rmdir()
    with pytest.raises(StoreUnavailable):
        blobs.put(b"x")


def test_what_a_dead_writer_left_is_removed(tmp_path: Path) -> None:
    """Opening the folder a day later removes half-written files, and only those."""
    clock = Clock()
    blobs = LocalBlobStore(tmp_path, env=clock)
    blobs.put(b"kept")
    left = tmp_path / "tmp" / "half"
    left.write_bytes(b"ha")
    os.utime(left, (clock.now_ms / 1000, clock.now_ms / 1000))
    LocalBlobStore(tmp_path, env=clock)
    assert left.exists()
    clock.now_ms += 25 * 3_600_000
    LocalBlobStore(tmp_path, env=clock)
    assert not left.exists()
    assert len(files(blobs)) == 1


def test_put_syncs_content_before_name(blobs: LocalBlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content is on the disk before it has its name, and the name before put returns; also when it was there."""
    done: list[str] = []
    real_sync, real_rename = os.fsync, Path.rename

    def fsync(descriptor: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real_sync(descriptor)

    def rename(path: Path, target: Path) -> Path:
        done.append("rename")
        return real_rename(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    blobs.put(b"durable")
    assert done == ["folder", "file", "rename", "folder"]
    del done[:]
    LocalBlobStore(blobs.folder).put(b"durable")
    assert done[-1] == "folder"
    assert "rename" not in done
