"""The blocking face has what a script needs, and is one engine however often it is entered."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.engine.support import LIMIT_S, engine_on

from mainspring import Custom, InvalidInput, ProcessingFailed, Task, TaskId, TaskNotFound, TaskType


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
