"""Whatever is given that is of another kind is refused by its name, in an error of the caller's; numbers of numpy are
numbers."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
from tests.engine.support import engine_on, value

from mainspring import (
    Context,
    Engine,
    InvalidInput,
    ModelConfig,
    ResourceMonitor,
    RetrievalConfig,
    Retry,
    SchedulerConfig,
    StoreConfig,
    Task,
    TaskExecutor,
    TaskManager,
    TaskManagerConfig,
    TaskScheduler,
    TaskType,
    Text,
)

pytestmark = pytest.mark.anyio
NO_NAMES: list[Any] = [True, float("nan"), [], 0]
NO_LANES: list[Any] = ["", 0, [], False]
WRONG: Any = 3
np: Any = numpy  # whose numbers are not of the types that we declare


def same(x: Any = None) -> Any:
    return x


def declared(**options: Any) -> None:
    Engine().task(**options)(same)


@pytest.mark.parametrize(
    ("call", "field", "says"),
    [
        *((partial(declared, name=bad), "name", "is no text") for bad in NO_NAMES),
        *((partial(declared, lane=bad), "lane", "use one of async") for bad in NO_LANES),
        (lambda: TaskScheduler(None), "manager", "is no TaskManager; .*as engine.manager"),  # type: ignore[arg-type]
        (lambda: TaskScheduler(Engine()), "manager", "is no TaskManager"),  # type: ignore[arg-type]
        (lambda: TaskScheduler(TaskManager(), WRONG), "monitor", "is no ResourceMonitor"),
        (lambda: TaskScheduler(TaskManager(), config=WRONG), "config", "is no SchedulerConfig"),
        (lambda: TaskManager(store=WRONG), "store", "is no path or address"),
        (lambda: TaskManager(WRONG), "config", "is no TaskManagerConfig"),
        (lambda: TaskManager({}), "config", "is no TaskManagerConfig"),  # type: ignore[arg-type]
        (lambda: TaskManager(monitor=WRONG), "monitor", "is no ResourceMonitor"),
        (lambda: ResourceMonitor(WRONG), "folder", "is no path"),
        (lambda: ResourceMonitor(limits=WRONG), "limits", "is no SchedulerConfig"),
        (lambda: TaskExecutor("x"), "config", "is no ExecutorConfig"),  # type: ignore[arg-type]
        (lambda: ModelConfig(folders="/tmp"), "folders", "use a tuple"),  # type: ignore[arg-type]
        (lambda: ModelConfig(folders=None), "folders", "use a tuple"),  # type: ignore[arg-type]
        (lambda: ModelConfig(folders=(WRONG,)), "folders", "use a tuple"),
        (lambda: ModelConfig(cache_folder=WRONG), "cache_folder", "use a Path"),
        (lambda: ModelConfig(default_embedding=WRONG), "default_embedding", "name a model"),
        (lambda: StoreConfig(blobs=WRONG), "blobs", "use a Path"),
        (lambda: RetrievalConfig(max_bytes=-1), "max_bytes", "use 1 or more"),
        (lambda: RetrievalConfig(allowed_roots="/tmp"), "allowed_roots", "use a tuple"),  # type: ignore[arg-type]
        (lambda: TaskType.custom(None), "name", "is no name of a handler"),  # type: ignore[arg-type]
        (lambda: Engine().task(retry=Retry(factor=True))(same), "retry.factor", "use about 2"),
        (lambda: Engine().task(retry=Retry(max_retries=True))(same), "retry.max_retries", "use 0 for no retry"),
        (lambda: Engine().task(retry=True)(same), "retry", "or the number of retries"),
        (lambda: TaskManagerConfig(queue_size=True), "queue_size", "use 1 or more"),
    ],
)
def test_what_is_of_another_kind(call: Any, field: str, says: str) -> None:
    """It is refused when it is given, naming the field, the value and the remedy."""
    with pytest.raises(InvalidInput, match=says) as caught:
        call()
    assert caught.value.field == field


def test_a_name_that_no_handler_can_have() -> None:
    """The error says which characters names have, and how to give another one than the function's."""

    def greets() -> None: ...

    greets.__name__ = "grüße"
    with pytest.raises(InvalidInput, match=r"'grüße': is no name of a handler; use .*A-Z a-z 0-9 _ \. - .*name="):
        Engine().task(greets)
    Engine().task(name="greetings")(greets)


def test_folders_may_be_texts() -> None:
    """They are paths from the start, as is what is given as a list."""
    assert ModelConfig(folders=["/a", Path("/b")]).folders == (Path("/a"), Path("/b"))  # type: ignore[arg-type]
    assert StoreConfig(blobs="/a").blobs == Path("/a")  # type: ignore[arg-type]
    assert RetrievalConfig(allowed_roots=["/a"]).allowed_roots == (Path("/a"),)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [3, None, [3], ["id"], [None]])
async def test_what_is_no_handle(bad: Any) -> None:
    """With the remedy, also in the blocking face."""
    engine = engine_on(worker=False)
    async with engine:
        with pytest.raises(InvalidInput, match=r"handles = .*engine.handle\(id\) makes one of an id"):
            await engine.gather(bad)
        with pytest.raises(InvalidInput, match="handles"):
            await anext(engine.as_completed(bad))

    def script() -> None:
        with engine_on(worker=False).sync as sync:
            with pytest.raises(InvalidInput, match="handles"):
                sync.gather(bad)
            with pytest.raises(InvalidInput, match="handles"):
                next(sync.as_completed(bad))

    await asyncio.to_thread(script)


@pytest.mark.parametrize("bad", [("x", 10), (1, None), (10**400, 1), (1, float("nan")), ("1", "2")])
async def test_progress_that_is_no_number(bad: Any) -> None:
    """The attempt fails with InvalidInput, which is not tried again."""
    engine = engine_on()

    @engine.task
    async def tells(ctx: Context) -> None:
        ctx.progress(*bad)

    async with engine:
        with pytest.raises(InvalidInput, match="are no finite numbers; pass how much is done") as caught:
            await value(await engine.submit(tells))
    assert (caught.value.field, caught.value.attempts) == ("progress", 1)


@pytest.mark.parametrize("count", [-1, 7, "x", None, True, 1.0])
async def test_a_new_task_was_not_tried_yet(count: Any) -> None:
    """A count of retries that it brings along is refused, and not dropped."""
    task = Task(task_type=TaskType.TEXT_PROCESSING, input=Text("a"), retry_count=count)
    engine = engine_on(worker=False)
    async with engine:
        for submit in (engine.manager.submit_task, engine.scheduler.schedule_task, engine.submit):
            with pytest.raises(InvalidInput, match="leave it out: it begins at 0") as caught:
                await submit(task)
            assert caught.value.field == "retry_count"


async def test_counts_and_weights_of_numpy(place: str) -> None:
    """Calls, declarations and settings take them as they take Python's own."""
    three = np.int64(3)
    engine = engine_on(place, queue_size=np.int32(100), async_slots=np.int16(2))
    engine.task(retry=Retry(max_retries=np.int8(2), factor=np.float32(1.5), delay=np.float32(0.5)))(same)

    def once(x: Any) -> Any:
        return x

    engine.task(retry=three)(once)
    async with engine:
        called = await engine.submit(same, 1, max_retries=three)
        mapped = await engine.map(same, [1], max_retries=three)
        declared = await engine.submit(same, 1)
        ready = Task(
            task_type=TaskType.custom("once"), input=called_input((await called.info()).task), max_retries=three
        )
        handed = await engine.submit(ready)
        handles = [called, *mapped, declared, handed, await engine.submit(once, 1)]
        assert await engine.gather(handles) == [1] * 5
        assert [(await handle.info()).task.max_retries for handle in handles] == [3, 3, 2, 3, 3]
        await engine.limit("g", concurrency=three)
        await engine.share(np.float64(3), group="g")
        (limit,) = await engine.limits()
        assert (limit.concurrency, limit.share) == (3, 3.0)
        wrong: Any
        for wrong in (True, np.float64(0.5), np.bool_(True), "3"):
            with pytest.raises(InvalidInput, match="use 0 for no retry"):
                await engine.submit(same, 1, max_retries=wrong)
            with pytest.raises(InvalidInput, match="is no number of tasks"):
                await engine.limit("g", concurrency=wrong)
        with pytest.raises(InvalidInput, match="is no weight"):
            await engine.share(True, group="g")


def called_input(task: Task) -> Any:
    return task.input


def test_settings_of_numpy() -> None:
    """They are Python's own from the start."""
    config = TaskManagerConfig(
        queue_size=np.int64(5),
        cpu_capacity=np.float32(1.5),
        gpu_capacity=np.int64(1),
        custom_capacity={"seat": np.int64(2)},
    )
    kept = (config.queue_size, config.cpu_capacity, config.gpu_capacity, config.custom_capacity["seat"])
    assert [(type(one), one) for one in kept] == [(int, 5), (float, 1.5), (int, 1), (int, 2)]
    limits = SchedulerConfig(max_memory_bytes=np.int64(10**9), max_cpu_usage=np.float32(0.5))
    assert [type(one) for one in (limits.max_memory_bytes, limits.max_cpu_usage)] == [int, float]
