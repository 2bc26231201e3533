"""The program of the helper: it beats for a worker as long as that lives, and says so when it has died.

It shares nothing with the worker but a pipe and the life file: what keeps a worker busy does not keep it from beating,
and the pipe ends exactly when the worker does.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from pathlib import Path

import asyncpg
import msgspec

from mainspring.children.frames import BlockingPipe
from mainspring.children.parent import take_pipe
from mainspring.config import StoreConfig
from mainspring.environment import SYSTEM
from mainspring.errors import TaskError
from mainspring.store.liveness import note_heard, running_in, turns_of
from mainspring.store.postgres.connection import NOT_LET_IN, OUTAGES, connect
from mainspring.store.postgres.pulse import Orders
from mainspring.store.postgres.statements import SQL

_FAREWELL_S = 60.0
_AGAIN_S = 0.5
_BROKEN = (*OUTAGES, *NOT_LET_IN, TaskError)


class Helper:
    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._life = Path(orders.life)
        self._connection: asyncpg.Connection | None = None

    async def run(self, pipe: socket.socket) -> None:
        beating = asyncio.create_task(self._beat())
        await _end_of(pipe)
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
        with contextlib.suppress(TimeoutError):  # then the others miss its beats
            async with asyncio.timeout(_FAREWELL_S):
                await self._say_farewell()

    async def _beat(self) -> None:
        while True:
            at_ns = int(SYSTEM.monotonic() * 1e9)  # before: others count from when it arrived at the latest
            try:
                connection = await self._open()
                row = await connection.fetchrow(SQL["beat"], turns_of(self._life) or 0, self._orders.name)
            except _BROKEN:
                self._drop()
                await asyncio.sleep(_AGAIN_S)
                continue
            if row is not None:  # else the worker was taken for dead, and begins anew with its next transaction
                note_heard(self._life, at_ns, row[0])
            await asyncio.sleep(self._orders.every_s)

    async def _say_farewell(self) -> None:
        """The marks of what ran outlive the worker: whoever rescues its tasks learns from them what may be to blame."""
        marks = [number for mark in sorted(running_in(self._life)) for number in mark]
        while True:
            try:
                connection = await self._open()
                await connection.execute(SQL["farewell"], marks, self._orders.name)
                await connection.close(timeout=2.0)
                return
            except asyncpg.UndefinedTableError:  # the store was taken away: nobody is left to be told
                return
            except _BROKEN:
                self._drop()
                await asyncio.sleep(_AGAIN_S)

    async def _open(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            config = StoreConfig(durability="relaxed")  # a beat that is lost with the server's power is no loss
            self._connection = await connect(self._orders.server, f"helper {self._orders.name}", config)
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


async def _end_of(pipe: socket.socket) -> None:
    """Return when the worker has closed its end, or died."""
    pipe.setblocking(False)
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while await loop.sock_recv(pipe, 4096):
            pass


def main() -> int:
    pipe = take_pipe()
    frames = BlockingPipe(pipe).receive()
    if frames is None:
        return 0  # the worker died before it could say anything
    asyncio.run(Helper(msgspec.msgpack.decode(frames[0], type=Orders)).run(pipe))
    return 0


if __name__ == "__main__":
    sys.exit(main())
