"""Redis and Postgres of our own for the peers: on this machine alone, gone afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

_START_WITHIN_S = 20.0


def redis_program() -> str | None:
    return shutil.which("redis-server")


def postgres_folder() -> Path | None:
    """Return the folder of Postgres' programs; Debian keeps them off the path."""
    on_path = shutil.which("initdb")
    found = [Path(on_path).parent] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return found[-1] if found and (found[-1] / "postgres").exists() else None


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[tuple[str, int]]:
    """Give URL and process id of a Redis that appends every write to its log and syncs it once a second."""
    program = redis_program()
    assert program is not None
    port = _free_port()
    command = [
        program,
        "--bind",
        "127.0.0.1",
        "--port",
        str(port),
        "--dir",
        str(folder),
        "--save",
        "",
        "--loglevel",
        "warning",
    ]
    server = subprocess.Popen([*command, "--appendonly", "yes", "--appendfsync", "everysec"], stdout=subprocess.DEVNULL)
    with _ended(server):
        _until_open(port, server)
        yield f"redis://127.0.0.1:{port}/0", server.pid


@contextlib.contextmanager
def postgres(folder: Path, *chosen: str) -> Iterator[tuple[str, int]]:
    """Give address and process id of a Postgres: every commit is synced before it is acknowledged.

    `chosen` are settings, as NAME=VALUE; all others are its defaults.
    """
    programs = postgres_folder()
    assert programs is not None
    data = folder / "postgres"
    data.mkdir()
    as_user: list[str] = []
    if os.geteuid() == 0:  # it refuses to run as root
        shutil.chown(data, "postgres")
        folder.chmod(0o711)
        as_user = ["runuser", "-u", "postgres", "--"]
    subprocess.run(
        [*as_user, str(programs / "initdb"), "-D", str(data), "-A", "trust", "-U", "bench"],
        stdout=subprocess.DEVNULL, check=True, cwd="/",
    )  # fmt: skip
    port = _free_port()
    settings = ["-h", "127.0.0.1", "-p", str(port), "-k", str(data)]
    for setting in chosen:
        settings += ["-c", setting]
    with (folder / "postgres.log").open("wb") as log:
        server = subprocess.Popen(
            [*as_user, str(programs / "postgres"), "-D", str(data), *settings], stderr=log, cwd="/"
        )
        with _ended(server):
            _until_open(port, server)
            pid = int((data / "postmaster.pid").read_text(encoding="utf-8").splitlines()[0])
            yield f"postgresql://bench@127.0.0.1:{port}/postgres", pid


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _until_open(port: int, server: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + _START_WITHIN_S
    while server.poll() is None and time.monotonic() < give_up:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{server.args!r} did not start")


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
