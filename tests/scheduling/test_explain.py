"""Why a task is not running: a sentence for each cause, with its figures, from a real engine on each store."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.engine.support import LIMIT_S, engine_on, shows, value

from mainspring import Engine, Retry, TaskCancelled, TaskHandle, TaskStatus
from mainspring.config import is_server
from mainspring.scheduling.explain import sentence
from mainspring.store.sql.obstacles import OWN_SLOT
from mainspring.store.standing import Pause

pytestmark = pytest.mark.anyio
MOMENT = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"


class Held:
    """An engine with one slot a lane, whose async lane is busy until it is let go."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.go, self.busy = asyncio.Event(), asyncio.Event()

        @engine.task
        async def hold() -> None:
            self.busy.set()
            await self.go.wait()

        @engine.task(cache="1h")
        async def idle(n: int = 0) -> int:
            return n

        self.hold, self.idle = hold, idle


@asynccontextmanager
async def held(place: str, tmp_path: Any) -> AsyncIterator[Held]:
    """On a store of the test's own: what others left in it would go first."""
    where = place if is_server(place) else str(tmp_path / "work.db")
    async with engine_on(where, async_slots=1) as engine:
        one = Held(engine)
        holder = await engine.submit(one.hold)
        await one.busy.wait()
        try:
            yield one
        finally:
            one.go.set()
            await value(holder)


@pytest.fixture
async def here(place: str, tmp_path: Any) -> AsyncIterator[Held]:
    async with held(place, tmp_path) as one:
        yield one


async def said(handle: TaskHandle, pattern: str) -> None:
    sentence = await handle.explain()
    assert re.fullmatch(pattern, sentence), sentence


async def test_shares(here: Held) -> None:
    """Whose turn comes before, with figures."""
    await here.engine.share(1, group="a")
    await here.engine.share(3, namespace="n")
    for kind in ({"group": "a"}, {"namespace": "n"}):
        await here.engine.submit_all([here.engine.build(here.idle, (n,), dict(kind)) for n in range(10)])
    mine = await here.engine.submit(here.idle, 99, group="a")
    other = await here.engine.submit(here.idle, 98, group="b")
    await said(
        mine,
        r"It is ready and its share \(group a, weight 1\) takes turns with 2 others in the async lane: 10 of its own "
        r"and at most 11 of theirs go first; it starts when a slot falls free\.",
    )
    await said(
        other,
        r"It is ready and its share \(what has no share of its own, weight 1\) takes turns with 2 others in the async "
        r"lane: 0 of its own and at most 4 of theirs go first; it starts when a slot falls free\.",
    )
    for kind in ({"group": "a"}, {"namespace": "n"}):
        await here.engine.share(None, **kind)


async def test_parents(here: Held) -> None:
    """Their ids and how they stand, the first three of many."""
    parents = [await here.engine.submit(here.idle, n, delay=3600) for n in range(5)]
    over = await here.engine.submit(here.engine.text, "a")
    await value(over)
    child = await here.engine.submit(here.idle, after=[*parents[:2], over])
    first, second = (re.escape(str(parent.id)) for parent in parents[:2])
    await said(child, rf"It waits for 2 of its 3 parents: {first} \(delayed\), {second} \(delayed\)\.")
    child = await here.engine.submit(here.idle, after=parents)
    await said(
        child, r"It waits for 5 of its 5 parents: \S+ \(delayed\), \S+ \(delayed\), \S+ \(delayed\) and 2 more\."
    )


async def test_delayed(here: Held) -> None:
    """Until when, and how long that is."""
    handle = await here.engine.submit(here.idle, delay=3600 * 3)
    await said(handle, rf"It is not to start before {MOMENT}, in 3 h\.")


async def test_retry(here: Held) -> None:
    """The error, when the next try comes, and which one it is of how many."""

    @here.engine.task(retry=Retry(max_retries=4, delay=3600, max_delay=3600), lane="thread")
    def fails() -> None:
        raise ValueError("the disk is on fire")

    handle = await here.engine.submit(fails)
    await shows(handle, reason="retry")
    await said(
        handle,
        rf"Attempt 1 failed \(the disk is on fire\); the next one, retry 1 of 4, comes at {MOMENT}, in \d+ \w+\.",
    )


async def test_paused(here: Held) -> None:
    """What is paused, since when, by whom, and how to go on."""
    await here.engine.manager.pause(type="custom:idle", group="blue")
    handle = await here.engine.submit(here.idle, group="blue")
    whom = rf"process {os.getpid()} on {re.escape(socket.gethostname())}"
    await said(
        handle,
        rf"Its kind is paused \(type custom:idle, group blue\) since {MOMENT} by {whom}; "
        r"`mainspring resume --type custom:idle --group blue` lets it go on\.",
    )
    await here.engine.manager.pause(namespace="default")
    await said(
        handle,
        rf"Its kind is paused \(type custom:idle, .*\) since .* and \(namespace default\) since {MOMENT} by {whom}; "
        r"`mainspring resume --type .* --group blue` and `mainspring resume --namespace default` let it go on\.",
    )
    assert await here.engine.manager.resume(namespace="default")
    assert await here.engine.manager.resume(type="custom:idle", group="blue")
    await said(handle, r"It is ready and .*|Worker \w+ has claimed it .*")


async def test_a_pause_of_any_name(here: Held) -> None:
    """The command can be pasted into a shell, whatever is paused is called."""
    handle = await here.engine.submit(here.idle, 4711, delay=3600)
    standing = await here.engine.manager.standing(handle.id.bytes)
    for group in ("tenant a", "a; rm -rf b", "it's"):
        pause = Pause("", "", group, datetime.now(UTC), "")
        _, command, _ = sentence(standing._replace(reason="paused", pauses=(pause,)), 0).split("`")
        assert shlex.split(command) == ["mainspring", "resume", "--group", group]


async def test_no_worker(place: str, tmp_path: Any) -> None:
    """Nobody serves its type any more, and how many workers there are all the same."""
    where = place if is_server(place) else str(tmp_path / "work.db")
    async with engine_on(where) as first:

        @first.task
        async def rare() -> None: ...

        task = first.build(rare, (), {})
    async with engine_on(where) as engine:
        handle = await engine.submit(task)
        others = r"\(1 live and serve other types\)"
        await said(handle, rf"No living worker serves custom:rare {others}; start one that registers it\.")


async def test_no_worker_at_all(tmp_path: Any) -> None:
    """An engine that only submits serves nothing."""
    async with engine_on(tmp_path / "work.db", worker=False) as engine:
        handle = await engine.submit(engine.text, "a")
        await said(handle, r"No living worker serves text_processing; start one that registers it\.")


async def test_same_work(here: Held) -> None:
    """Which task does it, and how that one stands."""
    first = await here.engine.submit(here.idle, 777)  # on a server the results of other tests' numbers are kept
    second = await here.engine.submit(here.idle, 777)
    id = re.escape(str(first.id))
    await said(
        second, rf"Task {id} \((claimed|ready)\) does the same work; what comes of it will do for this one too\."
    )


async def test_ready(here: Held) -> None:
    """How many go first in its lane, of all kinds; and once some have ended, about how long that takes."""

    @here.engine.task
    async def other(n: int) -> None: ...

    many = [*await here.engine.map(other, range(40)), *await here.engine.map(here.idle, range(100, 140))]
    async with asyncio.timeout(LIMIT_S):  # what was claimed ahead is handed back, as the slot does not fall free
        while "and 79 tasks go first" not in await many[-1].explain():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    sentence = r"It is ready and 79 tasks go first in the async lane; it starts when a slot falls free\."
    await said(many[-1], sentence)
    await said(many[-2], sentence.replace("79", "78"))
    await said(many[1], sentence.replace("79 tasks go", "1 task goes"))
    await said(many[0], r"It is ready and the next one in the async lane; it starts when a slot falls free\.")
    await here.engine.gather(await here.engine.map(here.engine.text, [f"{n}" for n in range(10)]))
    await said(many[-1], sentence)  # what other lanes do says nothing


def test_types_with_a_slot_of_their_own() -> None:
    """The store knows those that have one."""
    types = engine_on().executor.types
    assert {kind for kind, one in types.items() if getattr(one, "has_own_slot", False)} == OWN_SLOT


async def test_ready_with_a_rate(place: str, tmp_path: Any) -> None:
    """While its lane moves, what goes first is told with the time that it takes."""
    where = place if is_server(place) else str(tmp_path / "work.db")
    async with engine_on(where, thread_slots=1) as engine:
        steps = asyncio.Semaphore(0)
        loop = asyncio.get_running_loop()

        @engine.task(lane="thread")
        def step(n: int) -> None:
            asyncio.run_coroutine_threadsafe(steps.acquire(), loop).result()

        handles = await engine.map(step, range(60))
        for handle in handles[:4]:
            steps.release()
            await value(handle)
        await said(
            handles[-1],
            r"It is ready and \d+ tasks go first in the thread lane, about \d+ \w+ at the present rate; "
            r"it starts when a slot falls free\.",
        )
        for _ in handles:
            steps.release()
        await engine.gather(handles)


async def test_running_and_ended(here: Held) -> None:
    """What is not waiting is told as well; a wish to stop is part of it."""
    asked, loop = asyncio.Event(), asyncio.get_running_loop()

    @here.engine.task(lane="thread")
    def stubborn() -> None:
        asyncio.run_coroutine_threadsafe(asked.wait(), loop).result()

    handle = await here.engine.submit(stubborn)
    await shows(handle, status=TaskStatus.RUNNING)
    await said(handle, r"It runs: attempt 1, on worker \w+\.")
    await handle.cancel()
    await said(handle, r"It runs: attempt 1, on worker \w+; it was asked to stop\.|It ended as cancelled .*")
    asked.set()
    with pytest.raises(TaskCancelled, match="cancel"):
        await handle.result(timeout=LIMIT_S)
    await said(handle, r"It ended as cancelled \(.*\)\.")


async def test_an_error_is_told_in_short(tmp_path: Any) -> None:
    """Its first line, cut, and nothing that moves the cursor of whoever reads it."""
    async with engine_on(str(tmp_path / "work.db")) as engine:

        @engine.task(retry=Retry(max_retries=3, delay=60))
        async def fail(words: str) -> None:
            raise ValueError(words)

        for words, told in (("\n  one\x1b[2J line\n two", "one[2J line"), ("x" * 4_000, f"{'x' * 300} ...")):
            handle = await engine.submit(fail, words)
            await shows(handle, reason="retry")
            assert f"failed ({told}); the next one" in await handle.explain()
        ended = await engine.submit(fail, "a\nb\nc", max_retries=0)
        await shows(ended, status=TaskStatus.FAILED)
        assert await ended.explain() == "It ended as failed (a)."
        silent = await engine.submit(fail, "", max_retries=0)
        await shows(silent, status=TaskStatus.FAILED)
        assert await silent.explain() == "It ended as failed (ValueError)."
