"""A real pooler before the tests' server: pgbouncer in transaction mode, started for who asks and gone with them."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import pytest

_STARTS_WITHIN_S = 30.0
_PORT = 6432


def program() -> str | None:
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def required() -> str:
    """Return the program. Where it is missing a test is skipped, but not where a change is judged."""
    found = program()
    if found is None:
        assert not os.environ.get("CI"), "pgbouncer is not installed; .ci/run brings it"
        pytest.skip("pgbouncer is not installed: apt-get install pgbouncer, or brew install pgbouncer")
    return found


class Pooler:
    """Lends so many sessions of a server, each for a transaction."""

    def __init__(self, server: str, sessions: int) -> None:
        self._server = server
        self.folder = Path(tempfile.mkdtemp(prefix="mainspring-pooler-"))
        self._user = _other_than_root(_where(server)[0])
        self._process: subprocess.Popen[bytes] | None = None
        self._write(sessions)

    @property
    def address(self) -> str:
        """The address of a store behind it, without a schema."""
        parts = urlsplit(self._server)
        host, port = _where(self._server)
        options = {"host": str(self.folder), "port": str(_PORT), "pooler": "transaction", "direct": f"{host}:{port}"}
        user = parts.netloc.rpartition("@")[0]
        return f"postgresql://{user}@{parts.path}?{urlencode(options)}"

    def _write(self, sessions: int) -> None:
        parts, (host, port) = urlsplit(self._server), _where(self._server)
        user, password = unquote(parts.username or "postgres"), unquote(parts.password or "")
        behind = f"host='{host}' port={port} user='{user}'" + (f" password='{password}'" if password else "")
        (self.folder / "users").write_text(f'"{user}" "{password}"\n', encoding="utf-8")
        (self.folder / "pgbouncer.ini").write_text(
            f"""[databases]
* = {behind}
[pgbouncer]
pool_mode = transaction
default_pool_size = {sessions}
max_client_conn = 500
unix_socket_dir = {self.folder}
listen_port = {_PORT}
auth_type = trust
auth_file = {self.folder / "users"}
logfile = {self.folder / "log"}
server_login_retry = 1
query_wait_timeout = 2
""",
            encoding="utf-8",
        )
        if self._user is not None:
            os.chown(self.folder, self._user, -1)

    def start(self) -> None:
        command = [required(), "-q", str(self.folder / "pgbouncer.ini")]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL, user=self._user, cwd=self.folder)
        give_up = time.monotonic() + _STARTS_WITHIN_S
        while time.monotonic() < give_up and self._process.poll() is None:
            with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(self.folder / f".s.PGSQL.{_PORT}"))
                return
            time.sleep(0.02)
        raise RuntimeError(f"pgbouncer does not start:\n{(self.folder / 'log').read_text(encoding='utf-8')[-2_000:]}")

    def kill(self) -> None:
        """Let it die at once, and with it all connections through it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        (self.folder / f".s.PGSQL.{_PORT}").unlink()

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
        shutil.rmtree(self.folder)


def _other_than_root(host: str) -> int | None:
    """It refuses to run as root, and must reach the server: then it runs as whom that runs as, on this machine."""
    if os.geteuid() != 0:
        return None
    return os.stat(host).st_uid if host.startswith("/") else pwd.getpwnam("nobody").pw_uid


def _where(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    options = parse_qs(parts.query)
    host = options.get("host", [parts.hostname or "localhost"])[0]
    return host, int(options.get("port", [str(parts.port or 5432)])[0])


@contextmanager
def pooling(server: str, sessions: int = 3) -> Iterator[Pooler]:
    """Give a pooler that runs; so few sessions mean that hardly any serves the same client twice in a row."""
    required()
    pooler = Pooler(server, sessions)
    try:
        pooler.start()
        yield pooler
    finally:
        pooler.end()


__all__ = ["Pooler", "pooling", "program"]
