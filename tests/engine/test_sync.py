"""The blocking face has what a script needs, and is one engine however often it is entered."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.engine.support import LIMIT_S, engine_on

from mainspring import Custom, Engine, InvalidInput, ProcessingFailed, Task, TaskId, TaskNotFound, TaskType
from mainspring.results.cache import ResultCache


def test_what_a_script_needs(tmp_path: Path) -> None:
    """Stored tasks by their id, many at once, pauses, counts, and another try."""
    engine = engine_on(tmp_path / "work.db")
    failing = [True]

    @engine.task(retry=0)
    async def halve(n: int) -> int:
        if n % 2 and failing[0]:
            raise ValueError(n)
        return n // 2

    with engine.sync as sync:
        first = sync.submit(halve, 4)
        assert sync.handle(str(first.id)).result(LIMIT_S) == 2
        with pytest.raises(TaskNotFound):
            sync.handle(TaskId()).info()
        tasks = [Task(task_type=TaskType.custom("halve"), input=Custom({"n": n})) for n in (2, 6)]
        assert sync.gather(sync.submit_all(tasks)) == [1, 3]
        sync.pause(type="custom:halve")
        waiting = sync.submit(halve, 8)
        assert waiting.info().reason == "paused"
        assert sync.stats()["pending"] == 1
        assert sync.resume(type="custom:halve")
        assert waiting.result(LIMIT_S) == 4
        odd = sync.submit(halve, 3)
        with pytest.raises(ProcessingFailed):
            odd.result(LIMIT_S)
        failing[0] = False
        again = sync.retry(odd.id)
        assert (again.id != odd.id, again.result(LIMIT_S)) == (True, 1)


def test_it_has_whatever_the_engine_lets_wait_for(tmp_path: Path) -> None:
    """Under the same name with the same parameters, but for what opens and closes the engine."""
    with engine_on(tmp_path / "work.db").sync as sync:
        for there, here in ((Engine, sync), (ResultCache, sync.cache)):
            waited = {
                name: function
                for name, function in inspect.getmembers(there)
                if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
                if not name.startswith("_") and name not in ("start", "stop", "run")
            }
            assert waited
            for name, function in waited.items():
                asked = {*inspect.signature(function).parameters} - {"self"}
                has = inspect.signature(getattr(here, name)).parameters
                assert asked <= has.keys() or any(one.kind is one.VAR_KEYWORD for one in has.values()), name


def test_what_is_kept_is_told_and_forgotten(tmp_path: Path) -> None:
    """The cache and the metrics of the engine, without asyncio."""
    engine = engine_on(tmp_path / "work.db")

    @engine.task(cache="1h")
    async def double(n: int) -> int:
        return n + n

    with engine.sync as sync:
        assert sync.submit(double, 4).result(LIMIT_S) == 8
        assert [(kept.type, kept.entries) for kept in sync.cache.stats()] == [("custom:double", 1)]
        assert b'mainspring_cache_results{type="custom:double"} 1.0' in sync.metrics()
        assert sync.cache.purge(type=double) == 1
        assert sync.cache.stats() == []


def test_entered_twice() -> None:
    """The inner `with` leaves the engine to the outer one."""
    engine = engine_on()

    @engine.task
    async def same(n: int) -> int:
        return n

    with engine.sync as outer:
        with engine.sync as inner:
            assert inner is outer
            assert inner.submit(same, 1).result(LIMIT_S) == 1
        assert outer.submit(same, 2).result(LIMIT_S) == 2
    with pytest.raises(InvalidInput, match="not open"):
        outer.submit(same, 3)


def test_nobody_serves_it(tmp_path: Path) -> None:
    """Said by the reason, as `explain` does."""
    with engine_on(tmp_path / "work.db").sync as sync:
        sync.submit_all([])
    engine = engine_on(tmp_path / "work.db", worker=False)

    @engine.task
    async def unserved() -> None: ...

    other = engine_on(tmp_path / "work.db")
    other.task(unserved)
    with other.sync:
        pass
    with engine.sync as sync:
        assert sync.submit(unserved).info().reason == "no_worker"


def said_by_a_copy(*asks: Callable[[], Any]) -> list[str]:
    """Return what these calls raise in a process that is forked here."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        for ask in asks:
            try:
                said = f"returned {ask()!r}"
            except BaseException as exc:  # noqa: BLE001 - nothing may leave the copy
                said = f"{type(exc).__name__}: {exc}"
            os.write(write, f"{said}\n".encode())
        os._exit(0)
    os.close(write)
    with open(read) as told:
        lines = told.read().splitlines()
    os.waitpid(pid, 0)
    return lines


def test_a_forked_copy_is_refused(tmp_path: Path) -> None:
    """The loop and the store's threads are not in a process that a handler forks: it is told so, and waits for nothing.
    The original goes on; an engine that was only made before a fork is no copy.
    """
    engine = engine_on(tmp_path / "work.db")
    later = engine_on(tmp_path / "later.db")

    @engine.task
    def same(n: int) -> int:
        return n

    @engine.task
    def forks() -> list[str]:
        def enter() -> None:
            with engine.sync as sync:
                sync.submit(same, 1)

        return said_by_a_copy(
            lambda: engine.sync.submit(same, 1), enter, engine.sync.stats, lambda: asyncio.run(engine.stop())
        )

    def opens() -> int:
        with later.sync as sync:
            return int(sync.stats()["pending"])

    with engine.sync as sync:
        told = sync.submit(forks).result(LIMIT_S)
        assert [line.partition(":")[0] for line in told] == ["InvalidInput"] * 4
        assert all("before the fork" in line for line in told)
        assert sync.submit(same, 2).result(LIMIT_S) == 2
    assert said_by_a_copy(opens) == ["returned 0"]


def test_an_engine_that_another_loop_has(tmp_path: Path) -> None:
    """A handler of an engine that was entered with `async with` is not told that it is closed, nor to open it."""
    engine = engine_on(tmp_path / "work.db")

    @engine.task
    def asks() -> list[str]:
        said = []
        for ask in (engine.sync.stats, engine.sync.__enter__):
            try:
                ask()
            except InvalidInput as exc:
                said.append(str(exc))
        return said

    async def run(engine: Engine) -> Any:
        async with engine:
            return await (await engine.submit(asks)).result(LIMIT_S)

    said = asyncio.run(run(engine))
    assert ["another event loop" in line for line in said] == [True, True]
