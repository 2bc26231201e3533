"""The crew of processes, and whoever takes them down at random moments and starts them again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import apsw
import asyncpg
import psutil

from mainspring.store.postgres.address import parse
from mainspring.store.postgres.connection import OUTAGES
from proof import ROOT
from proof.kills.ledger import FOLDER
from proof.kills.outages import ON_SERVER, SCHEMA, Outages
from proof.server import OwnServer

STALL_S = 1.5
"""Of the store, so that a stop can be long enough for claims to be taken back and short enough for many stops."""
_LONGEST_STOP_S = 2 * STALL_S
_LEAVES_WITHIN_S = 20.0
"""Drain, grace, twice a busy machine's delay: who takes longer after SIGTERM hangs."""
_WHILE_STARTING = 0.15
"""Share of deeds that don't wait until their victim is up."""
_LONGEST_WAIT_S = 0.8
HOW = {"kill": 5, "stop": 3, "term": 2}
"""What is done to a victim, so many of ten times."""
HOW_ON_A_SERVER = {"kill": 3, "stop": 1, "term": 1, "cut": 2, "backend": 2, "server": 2}
"""What is done to a victim or to the server, so many of eleven times."""


@dataclass(eq=False)
class Member:
    """A process of the crew, that is started again under the same name whenever it is gone."""

    name: str
    arguments: Sequence[str]
    log: Path
    process: asyncio.subprocess.Process | None = None
    starts: int = 0

    async def start(self) -> None:
        self.starts += 1
        arguments = [argument.replace("{starts}", str(self.starts)) for argument in self.arguments]
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself, which its exit code tells
            os.kill(self.pid, number)

    async def gone(self) -> int:
        assert self.process is not None
        return await self.process.wait()


@dataclass(kw_only=True)
class Crew:
    """Workers and submitters on one store."""

    folder: Path
    seed: int
    workers: int
    submitters: int
    server: OwnServer | None = None  # that holds the store; without one it is a file
    without: Sequence[str] = ()
    slowness: float = 1.0  # of the handlers: the slower, the more stops find them at work, and the next attempt too
    members: list[Member] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def store(self) -> str:
        return str(self.folder / "work.db") if self.server is None else f"{self.server.url}&schema={SCHEMA}"

    @property
    def blobs(self) -> Path:
        return self.folder / ("work.db-blobs" if self.server is None else "blobs")

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger"

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Start all; none is left afterwards."""
        self.ledger.mkdir(parents=True)
        os.environ[FOLDER] = str(self.ledger)
        store, stall_s = self.store, str(STALL_S)
        for n in range(self.workers):
            self._add(f"worker{n}", "proof.kills.worker", store, stall_s, *self.without)
        for n in range(self.submitters):
            seed = f"{self.seed}-submitter{n}-{{starts}}"
            self._add(
                f"submitter{n}", "proof.kills.submitter", store, stall_s, seed, f"submitter{n}", str(self.slowness)
            )
        try:
            await asyncio.gather(*(member.start() for member in self.members))
            yield
        finally:
            for member in self.members:
                if member.process is not None and member.process.returncode is None:
                    member.process.kill()
                    await member.process.wait()

    def _add(self, name: str, *arguments: str) -> None:
        self.members.append(Member(name, arguments, self.folder / f"{name}.log"))

    def those(self, kind: str) -> list[Member]:
        return [member for member in self.members if member.name.startswith(kind)]

    async def harass(self, cycles: int, at_once: int, how: Mapping[str, int], among: str = "") -> None:
        """Send so many signals to random processes, each at a random moment, and start again whom that ends."""
        rng = random.Random(self.seed)
        free = self.those(among)
        places = asyncio.Semaphore(min(at_once, len(free)))
        outages = Outages(self.server, self.done) if self.server is not None else None

        async def deed(victim: Member | None, what: str, chances: Sequence[float]) -> None:
            if victim is not None:
                await self._do(victim, what, chances)
                free.append(victim)
            elif outages is not None:
                await asyncio.sleep(_LONGEST_WAIT_S * chances[0])
                await outages.do(what, *chances[1:3])
            places.release()

        async with asyncio.TaskGroup() as deeds:
            for what in _deeds(rng, how, cycles):
                await places.acquire()
                victim = None if what in ON_SERVER else free.pop(rng.randrange(len(free)))
                deeds.create_task(deed(victim, what, [rng.random() for _ in range(4)]))

    async def _do(self, victim: Member, what: str, chances: Sequence[float]) -> None:
        """One deed. Its chances are drawn beforehand, so that a seed means the same deeds."""
        when, how_long, whom, which = chances
        if when > _WHILE_STARTING:
            await self._up(victim)
        await asyncio.sleep(_LONGEST_WAIT_S * when)
        if what == "stop":
            await self._stop(victim, _LONGEST_STOP_S * how_long)
        elif what == "term":
            await self._end(victim)
            await victim.start()
        elif whom < 0.25 and (child := _child_of(victim, which)) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            self.done["kill of a child"] += 1
        else:
            await self._kill(victim, how_long)

    async def _up(self, member: Member) -> None:
        """Wait until a process stands in the store, or is gone."""
        assert member.process is not None
        is_up = f"SELECT 1 FROM worker WHERE pid = {member.pid} AND ended_ms IS NULL"
        while member.process.returncode is None:
            with contextlib.suppress(apsw.Error, *OUTAGES):  # it may not be made yet, or be down
                if await self.look(is_up):
                    break
            await asyncio.sleep(0.05)

    async def look(self, sql: str) -> bool:
        """Return whether a statement finds anything in the store."""
        if self.server is None:
            with contextlib.closing(apsw.Connection(self.store, flags=apsw.SQLITE_OPEN_READONLY)) as file:
                return file.execute(sql).fetchone() is not None
        server = parse(self.store)
        connection = await asyncpg.connect(server.url, server_settings={"search_path": server.schema})
        try:
            return await connection.fetchrow(sql) is not None
        finally:
            await connection.close()

    async def _kill(self, victim: Member, pause: float) -> None:
        victim.send(signal.SIGKILL)
        self.done["kill"] += 1
        code = await victim.gone()
        if code != -signal.SIGKILL:
            self.faults.append(f"{victim.name} had ended by itself, with exit code {code}")
        await asyncio.sleep(0.3 * pause)
        await victim.start()

    async def _stop(self, victim: Member, seconds: float) -> None:
        victim.send(signal.SIGSTOP)
        self.done["long stop" if seconds > STALL_S else "short stop"] += 1
        await asyncio.sleep(seconds)
        victim.send(signal.SIGCONT)

    async def _end(self, victim: Member) -> None:
        """Ask a process to leave; it does so in time, and with a clean exit unless it was still starting."""
        victim.send(signal.SIGTERM)
        self.done["term"] += 1
        began = time.monotonic()
        code = await victim.gone()
        took = time.monotonic() - began
        if code not in (0, -signal.SIGTERM):
            self.faults.append(f"{victim.name} left with exit code {code} after SIGTERM")
        if took > _LEAVES_WITHIN_S:
            self.faults.append(f"{victim.name} took {took:.1f} s to leave after SIGTERM")

    async def dismiss(self, kind: str) -> None:
        await asyncio.gather(*(self._end(member) for member in self.those(kind)))


def _deeds(rng: random.Random, how: Mapping[str, int], cycles: int) -> list[str]:
    """Return what is done, in the order in which it begins: each as often as it has to be, whatever the seed."""
    each = [what for what, weight in how.items() for _ in range(weight)]
    deeds = [each[n % len(each)] for n in range(cycles)]
    rng.shuffle(deeds)
    return deeds


def _child_of(victim: Member, chance: float) -> int | None:
    try:
        children = psutil.Process(victim.pid).children()
    except psutil.Error:
        return None
    return children[int(chance * len(children))].pid if children else None
