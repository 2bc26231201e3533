"""An engine that can't begin its work leaves nothing behind that looks like a worker."""

from __future__ import annotations

import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests import postgres
from tests.engine.support import engine_on

from mainspring import InvalidInput, StoreUnavailable

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["sqlite", "postgres"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield str(tmp_path / "work.db")
        return
    yield postgres.address_of(tmp_path)
    postgres.drop(postgres.schema_of(tmp_path))


async def test_a_store_that_goes_while_an_engine_starts(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was open, and what is served could not be told: the start is refused, and no row of a living worker stays, no
    thread and no helper. A new engine starts."""
    threads, children = set(threading.enumerate()), set(psutil.Process().children())  # of whatever ran before
    engine = engine_on(address)

    @engine.task
    async def same(n: int) -> int:
        return n

    async def gone(*_: Any) -> None:
        raise StoreUnavailable("the server is gone")

    monkeypatch.setattr(engine.manager.store, "register", gone)
    with pytest.raises(StoreUnavailable):
        await engine.start()
    left = set(threading.enumerate()) - threads
    assert [thread.name for thread in left if thread.name.startswith("mainspring")] == []
    assert set(psutil.Process().children()) <= children
    with pytest.raises(InvalidInput, match="make a new Engine"):
        await engine.start()
    async with engine_on(address, worker=False) as other:
        workers: Any = await other.manager.store.view(lambda view: view.rows("open_workers"))
        assert len(workers) == 1


async def test_calls_of_an_engine_that_is_not_open(address: str) -> None:
    """Before the start they are a mistake of the caller's, and say how to open it; after the end the store is gone, in
    the same errors whatever is called."""
    engine = engine_on(address)

    @engine.task
    async def same(n: int) -> int:
        return n

    def calls() -> list[Coroutine[Any, Any, Any]]:
        task = engine.build(same, (1,), {})
        return [
            engine.submit(same, 1),
            engine.submit(same, 1, wait_for_room=1),
            engine.map(same, [1]),
            engine.submit_all([task]),
            engine.embed("text"),
            engine.limit("group"),
            engine.manager.submit_task(task),
            engine.scheduler.schedule_task(task),
        ]

    for call in calls():
        with pytest.raises(InvalidInput, match="not open yet; use `async with engine:`") as caught:
            await call
        assert caught.value.field == "start"
    async with engine:
        assert await (await engine.submit(same, 1)).result() == 1
    for call in calls():
        with pytest.raises(StoreUnavailable, match=r"closed; open .* with a new"):
            await call
