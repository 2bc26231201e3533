"""The line between processes on one server: hints by NOTIFY, and the lock of whoever looks after the store.

On a connection of its own, which the event loop reads: what is said there must not wait for anything else.
"""

from __future__ import annotations

import asyncio
import logging
from base64 import b85decode, b85encode
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final

import asyncpg

from mainspring.environment import Environment
from mainspring.errors import TaskError
from mainspring.store.bell import HELLO, LOOK, WELCOME, Bell
from mainspring.store.postgres.connection import LOST, NOT_LET_IN, OUTAGES, UPKEEP

logger = logging.getLogger("mainspring.store")

BYE = b"b"
_MOST_IDS = 350
"""A message may have 8,000 bytes."""
_MOST_WAITING = 1_000
"""Messages that wait to be sent; more are dropped: they are hints."""
_AGAIN_S, _MOST_AGAIN_S = 0.1, 3.2
_BROKEN = (*OUTAGES, *NOT_LET_IN, TaskError)
POSTED: Final = f" {b85encode(LOOK).decode()}"
"""What a user's transaction says with its commit; it comes from no process."""


def channel_of(schema: str) -> str:
    """Return the name under which processes on one store talk."""
    return f"mainspring.{schema}"


class Line(Bell):
    """See `store.bell.Bell`. Cut off, it is made anew by itself, and whoever was cut off looks for what it missed."""

    def __init__(
        self,
        connect: Callable[[], Coroutine[Any, Any, asyncpg.Connection]],
        channel: str,
        name: str,
        heard: Callable[[bytes, bytes], None],
        env: Environment,
    ) -> None:
        self._connect = connect
        self._channel = channel
        self._name = name
        self._heard = heard
        self._env = env
        self._peers: set[str] = set()
        self._outbox: list[str] = []
        self._wake = asyncio.Event()
        self._lock = asyncio.Lock()  # one statement at a time
        self._connection: asyncpg.Connection | None = None
        self._talking: asyncio.Task[None] | None = None

    async def open(self, number: int) -> None:
        """Join in. Raises what the driver does when the server can't be reached."""
        self._number = number
        await self._join()
        self._talking = asyncio.get_running_loop().create_task(self._talk(), name="line")

    async def _join(self) -> None:
        connection = await self._connect()
        try:
            connection.add_termination_listener(self._terminated)
            await connection.add_listener(self._channel, self._read)
        except BaseException:
            connection.terminate()
            raise
        self._connection = connection
        self.ring(HELLO, self._name.encode())

    def _terminated(self, connection: asyncpg.Connection) -> None:
        if connection is self._connection:
            self._connection = None
            self._wake.set()

    def _read(self, connection: Any, pid: int, channel: str, message: Any) -> None:
        sender, _, text = message.partition(" ")
        if sender == self._name:
            return
        data = b85decode(text)
        kind, payload = data[:1], data[1:]
        if kind == BYE:
            self._peers.discard(sender)
            return
        if sender:
            self._peers.add(sender)
        if kind == HELLO:
            self.ring(WELCOME)
        self._heard(kind, payload)

    @property
    def has_peers(self) -> bool:
        return bool(self._peers)

    def forget(self, name: str) -> None:
        """A process is gone without a word."""
        self._peers.discard(name)

    def ring(self, kind: bytes, payload: bytes = b"") -> None:
        if len(self._outbox) < _MOST_WAITING:
            self._outbox.append(f"{self._name} {b85encode(kind + payload).decode()}")
            self._wake.set()

    def ring_ids(self, kind: bytes, ids: Iterable[bytes]) -> None:
        if not self._peers:
            return
        together = b"".join(ids)
        for at in range(0, len(together), _MOST_IDS * 16):
            self.ring(kind, together[at : at + _MOST_IDS * 16])

    async def _talk(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                if self._connection is None:
                    await self._rejoin()
                await self._send()
            except Exception:  # else others would be heard of late for as long as this process lives
                logger.exception("the line to other processes broke, and is tried again; please report this")
                await asyncio.sleep(_MOST_AGAIN_S)
                self._wake.set()

    async def _send(self) -> None:
        some, self._outbox = self._outbox, []
        connection = self._connection
        if not some or connection is None:
            return
        try:
            async with self._lock:
                await connection.execute(
                    "SELECT pg_notify($1, message) FROM unnest($2::text[]) AS message", self._channel, some
                )
        except OUTAGES as exc:
            logger.debug("a hint was not sent: %s", exc)  # a cut is told by the connection itself

    async def _rejoin(self) -> None:
        delay = _AGAIN_S
        while True:
            try:
                await self._join()
            except _BROKEN as exc:
                logger.debug("the line is cut: %s", exc)
                await asyncio.sleep(delay)
                delay = min(2 * delay, _MOST_AGAIN_S)
            else:
                self._heard(WELCOME, b"")  # what was said meanwhile is missed
                return

    async def lead(self) -> bool:
        """Return whether this process looks after the store, trying to become the one that does.

        The lock falls with the connection: the server takes it from whoever is gone.
        """
        connection = self._connection
        if connection is None:
            return False
        try:
            async with self._lock:
                if getattr(self, "_led", None) is connection:
                    return True
                if not await connection.fetchval("SELECT pg_try_advisory_lock($1, $2)", UPKEEP, self._number):
                    return False
                self._led = connection
                return True
        except LOST:
            return False

    def hang_up(self) -> None:
        """Be gone without a word."""
        if self._talking is not None:
            self._talking.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def close(self) -> None:
        if self._talking is not None:
            self._talking.cancel()
            await asyncio.gather(self._talking, return_exceptions=True)
        connection, self._connection = self._connection, None
        if connection is None:
            return
        connection.remove_termination_listener(self._terminated)
        try:
            bye = f"{self._name} {b85encode(BYE).decode()}"
            await connection.execute("SELECT pg_notify($1, $2)", self._channel, bye)
            await connection.close(timeout=2.0)
        except OUTAGES:
            connection.terminate()
