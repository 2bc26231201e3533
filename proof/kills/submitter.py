"""A submitter to be killed: `python -m proof.kills.submitter STORE STALL_S SEED NAME SLOWNESS`; submits until SIGTERM.

It notes what it is about to ask and what it was told. Started again under the same name it submits its last keys anew:
whether they were stored the first time nobody has told it.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections import deque
from pathlib import Path
from typing import Any

from mainspring import Engine, StoreUnavailable, SubmitIndeterminate, TaskHandle, TaskId, TaskTimeout
from proof.kills import handlers
from proof.kills.ledger import FOLDER, Word, read, say

_CLIENTS = 4
_MOST_UNFINISHED = 400
_KEYS_AGAIN = 6


class Submitter:
    def __init__(self, engine: Engine, name: str, rng: random.Random, slowness: float) -> None:
        self._engine = engine
        self._name = name
        self._rng = rng
        self._slowness = slowness
        self._recent: deque[TaskHandle] = deque(maxlen=40)
        self._n = 0
        self.stopping = asyncio.Event()

    async def begin_again(self) -> None:
        """Submit the last keys of whoever had this name before."""
        words = read(Path(os.environ[FOLDER]), "words", Word)
        keys = [word.key for word in words if word.event == "asked" and word.key.startswith(f"{self._name}-")]
        for key in keys[-_KEYS_AGAIN:]:
            await self._keyed(key)
        self._n = len(keys)

    async def client(self) -> None:
        kinds = [self._plain] * 5 + [self._key] * 2 + [self._chain, self._joins, self._family] * 2
        kinds += [self._retried, self._doomed, self._timed, self._stored, self._stored_again, self._vectors]
        kinds += [self._cancel] * 3 + [self._await] * 3
        while not self.stopping.is_set():
            try:
                if await self._unfinished() > _MOST_UNFINISHED:
                    await asyncio.sleep(0.2)
                    continue
                await self._rng.choice(kinds)()
            except StoreUnavailable:  # of a question: whoever submits notes what it was told
                say("unanswered", self._name)
            await asyncio.sleep(self._rng.uniform(0, 0.12))

    async def _unfinished(self) -> int:
        stats = await self._engine.manager.stats()
        return int(stats["pending"] + stats["running"])

    # Ways in

    async def _submit(self, function: Any, *args: Any, key: str = "", **options: Any) -> TaskHandle | None:
        id = TaskId.new()
        say("asked", id, key=key)
        if key:
            options["idempotency_key"] = key
        try:
            handle = await self._engine.submit(function, *args, task_id=id, **options)
        except SubmitIndeterminate:
            say("in_doubt", id, key=key)
        except StoreUnavailable:
            say("refused", id, key=key)
        else:
            say("accepted", handle.id, key=key)
            self._recent.append(handle)
            return handle
        return None

    def _number(self) -> int:
        self._n += 1
        return self._n

    def _seconds(self) -> float:
        return self._slowness * self._rng.choice((0.0, 0.005, 0.02, 0.08, 0.3))

    async def _plain(self, parents: Any = None) -> TaskHandle | None:
        function = self._rng.choice((handlers.waits, handlers.waits, handlers.blocks, handlers.computes))
        return await self._submit(function, self._number(), self._seconds(), parents, priority=self._rng.randrange(4))

    async def _key(self) -> None:
        await self._keyed(f"{self._name}-{self._number()}")

    async def _keyed(self, key: str) -> None:
        for _ in range(self._rng.randint(1, 2)):
            await self._submit(handlers.waits, int(key.rpartition("-")[2]), 0.01, key=key)

    async def _chain(self) -> None:
        handle = await self._plain()
        for _ in range(self._rng.randint(1, 3)):
            if handle is not None:
                handle = await self._plain(handle)

    async def _joins(self) -> None:
        parents = [handle for _ in range(3) if (handle := await self._plain()) is not None]
        await self._plain(parents)

    async def _family(self) -> None:
        parent = await self._submit(handlers.has_children, self._number(), self._rng.randint(1, 4))
        if parent is not None:
            await self._plain(parent)

    async def _retried(self) -> None:
        await self._submit(handlers.fails_first, self._number(), self._rng.randint(1, 3))

    async def _doomed(self) -> None:
        parent = await self._submit(handlers.never_works, self._number())
        if parent is not None:
            policy = self._rng.choice(("require", "skip"))
            await self._submit(handlers.waits, self._number(), 0.0, after=parent, on_dependency_failure=policy)

    async def _timed(self) -> None:
        function = self._rng.choice((handlers.waits, handlers.computes))
        await self._submit(function, self._number(), self._seconds(), timeout=0.15, max_retries=1)

    async def _stored(self) -> None:
        key = f"{self._name}/{TaskId.new()}"
        await self._submit(self._engine.store, os.urandom(self._rng.choice((10, 1_000, 100_000))), key)

    async def _stored_again(self) -> None:
        """The same content under another name: one blob for both."""
        await self._submit(self._engine.store, b"the same", f"{self._name}/{TaskId.new()}")

    async def _vectors(self) -> None:
        prefix = str(TaskId.new())
        vectors = [[self._rng.random() for _ in range(8)] for _ in range(3)]
        await self._submit(self._engine.upsert, "proof", vectors, id_prefix=prefix, metadata={"prefix": prefix})

    # Questions

    async def _cancel(self) -> None:
        if self._recent:
            handle = self._rng.choice(self._recent)
            answer = await handle.cancel()
            say("cancel", handle.id, answer=answer)

    async def _await(self) -> None:
        if self._recent:
            handle = self._rng.choice(self._recent)
            try:
                result = await self._engine.manager.get_task_result(handle.id, timeout=1.0)
            except TaskTimeout:
                return
            say("seen", handle.id, answer=result.status.value)


async def main(store: str, stall_s: float, seed: str, name: str, slowness: float) -> None:
    async with await handlers.started(store, worker=False, stall_s=stall_s) as engine:
        submitter = Submitter(engine, name, random.Random(seed), slowness)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, submitter.stopping.set)
        await submitter.begin_again()
        async with asyncio.TaskGroup() as clients:
            for _ in range(_CLIENTS):
                clients.create_task(submitter.client())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), sys.argv[3], sys.argv[4], float(sys.argv[5])))
