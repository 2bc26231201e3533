"""Bad input: each refused by a typed error that names field, value and remedy, before anything is written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import numpy as np
import pytest
from tests.engine.support import LIMIT_S, engine_on, quick, value

from mainspring import (
    Binary,
    Conflict,
    Context,
    Custom,
    Engine,
    EngineConfig,
    ExecutorConfig,
    InvalidInput,
    ModelInput,
    QueueFull,
    Resources,
    Retry,
    SchedulerConfig,
    SearchQuery,
    StoreConfig,
    Task,
    TaskId,
    TaskManagerConfig,
    TaskNotFound,
    TaskStatus,
    TaskType,
    Text,
    UnsupportedTaskType,
)
from mainspring.tasks import Ref

pytestmark = pytest.mark.anyio
NAN = float("nan")
PAST = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
async def engine(anyio_backend: str, place: str) -> AsyncIterator[Engine]:
    async with engine_on(place) as engine:
        yield engine


@pytest.fixture(scope="module")
def echo(engine: Engine) -> Any:
    @engine.task
    async def echo(x: int) -> int:
        return x

    return echo


async def stored(engine: Engine) -> int:
    return sum(n for kind in (await engine.manager.stats())["types"].values() for n in kind.values())


OPTIONS = [
    ("timeout", -1), ("timeout", 0), ("timeout", NAN), ("timeout", 1e300), ("timeout", "soon"), ("timeout", "-5s"),
    ("timeout", True), ("timeout", b"5s"), ("timeout", [1]),
    ("deadline", PAST), ("deadline", datetime(2099, 1, 1)), ("deadline", -5), ("deadline", "yesterday"),  # noqa: DTZ001
    ("deadline", NAN), ("deadline", datetime(9999, 12, 31, tzinfo=UTC)),
    ("delay", -1), ("delay", NAN), ("delay", "later"), ("delay", timedelta(days=-1)), ("delay", 1e12),
    ("not_before", datetime(2099, 1, 1)), ("not_before", "tomorrow"), ("not_before", object()),  # noqa: DTZ001
    ("priority", NAN), ("priority", "urgent"), ("priority", 7), ("priority", -1), ("priority", 1.5), ("priority", [1]),
    ("max_retries", -1), ("max_retries", 10**9), ("max_retries", NAN), ("max_retries", "3"), ("max_retries", 1.5),
    ("metadata", {"a": 1}), ("metadata", {1: "a"}), ("metadata", "text"), ("metadata", ["a"]),
    ("metadata", {"a": None}), ("metadata", {"a": "x" * 200_000}), ("metadata", {"a": "\udcff"}),
    ("idempotency_key", ""), ("idempotency_key", "x" * 600), ("idempotency_key", 5), ("idempotency_key", b"bytes"),
    ("idempotency_key", "\udcff"),
    ("group", ""), ("group", "x" * 200), ("group", 5), ("group", "\udcff"),
    ("namespace", ""), ("namespace", "x" * 200), ("namespace", 5), ("namespace", "\udcff"),
    ("after", 5), ("after", [5]), ("after", "no id"), ("after", [None]),
    ("on_dependency_failure", "ignore"), ("on_dependency_failure", 3), ("on_dependency_failure", ["skip"]),
    ("task_id", "no id"), ("task_id", 5),
    ("cache", "a while"), ("resources", Resources(cpu=-1)),
]  # fmt: skip


@pytest.mark.parametrize(("field", "bad"), OPTIONS, ids=lambda item: str(item)[:30])
async def test_options(engine: Engine, echo: Any, field: str, bad: Any) -> None:
    """Every option of submit, with values that can't work: InvalidInput at once, nothing stored, others go on."""
    before = await stored(engine)
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(InvalidInput) as caught:
            await engine.submit(echo, 1, **{field: bad})
    named = {
        "after": "task id|after",
        "task_id": "task id|task_id",
        "idempotency_key": "key",
        "delay": "delay|not_before",
    }.get(field, field)
    assert any(word in str(caught.value) for word in named.split("|")), str(caught.value)
    assert ";" in str(caught.value)
    assert await stored(engine) == before
    assert await value(await engine.submit(echo, 2)) == 2


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("timeout", "30s x"), ("timeout", -1), ("priority", 99), ("priority", NAN), ("max_retries", -5),
        ("max_retries", "many"), ("deadline", datetime(2099, 1, 1)), ("deadline", "soon"), ("not_before", 5),  # noqa: DTZ001
        ("metadata", {"a": 5}), ("namespace", None), ("params", {"a": object()}), ("dependencies", ("x",)),
        ("dependencies", None), ("idempotency_key", 5), ("idempotency_key", "a\0b"), ("params", [1]),
        ("params", {1: 2}), ("model_id", 5), ("id", "abc"), ("id", None), ("task_type", 5),
        ("namespace", "a\0b"), ("input", "text"), ("task_type", "nonsense"), ("input", None), ("input", {"x": 1}),
    ],
    ids=lambda item: str(item)[:30],
)  # fmt: skip
async def test_fields_of_a_ready_task(engine: Engine, echo: Any, field: str, bad: Any) -> None:
    """A Task made by hand is checked like a call."""
    before = await stored(engine)
    fields: dict[str, Any] = {"task_type": TaskType.custom("echo"), "input": Custom({"x": 1}), field: bad}
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises((InvalidInput, UnsupportedTaskType)):
            await engine.submit(Task(**fields))
    assert await stored(engine) == before
    assert await value(await engine.submit(echo, 2)) == 2


async def test_a_ready_task_may_say_durations_as_text(engine: Engine, echo: Any) -> None:
    """`timeout="30s"` means the same there."""
    task = Task(task_type=TaskType.custom("echo"), input=Custom({"x": 1}), timeout="30s")  # type: ignore[arg-type]
    handle = await engine.submit(task)
    assert (await handle.info()).task.timeout == 30.0


async def test_a_ready_task_has_its_handlers_limit(engine: Engine) -> None:
    """Where the task says none, the handler's own time limit holds."""

    @engine.task(timeout="20ms", retry=0)
    async def limited() -> None:
        await asyncio.sleep(3600)

    handle = await engine.submit(Task(task_type=TaskType.custom("limited"), input=Custom({}), max_retries=0))
    with pytest.raises(Exception, match="ran longer"):
        await handle.result(timeout=LIMIT_S)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (((), {}), "misses x"),
        (((1, 2), {}), "takes 1"),
        (((1,), {"x": 2}), "given twice"),
        (((), {"x": 1, "y": 2}), "no parameter"),
        (((), {"x": 1, "prioriti": 2}), "options"),
        (((), {"x": 1, "retry": 2}), "a call says max_retries=N"),
        ((("one",), {}), "int"),
        (((None,), {}), "int"),
    ],
)
async def test_arguments_that_do_not_fit(engine: Engine, echo: Any, arguments: Any, named: str) -> None:
    """As Python itself would refuse the call, before anything is stored."""
    before = await stored(engine)
    args, kwargs = arguments
    with pytest.raises(InvalidInput, match=named):
        await engine.submit(echo, *args, **kwargs)
    assert await stored(engine) == before


async def test_unknown_types_and_handlers(engine: Engine, echo: Any) -> None:
    """Named with what there is."""
    with pytest.raises(UnsupportedTaskType, match=r"custom:ghost.*registered are.*custom:echo"):
        await engine.submit(Task(task_type=TaskType.custom("ghost"), input=Custom({})))
    with pytest.raises(InvalidInput, match="is no task type"):
        TaskType("ghost")
    for bad in ("", "a b", "x" * 200, "ünï", "-x", "a/b"):
        with pytest.raises(InvalidInput):
            TaskType.custom(bad)

    def stranger() -> None: ...

    for thing in (stranger, lambda: 1, 5, "echo", None, partial(stranger)):
        with pytest.raises(InvalidInput, match=r"@engine\.task"):
            await engine.submit(thing)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="beside a ready Task"):
        await engine.submit(Task(task_type=TaskType.custom("echo"), input=Custom({"x": 1})), priority="high")


async def test_unknown_models_and_collections(engine: Engine) -> None:
    """An unknown model or collection is named."""
    for call in (engine.embed("x", model_id="no-such-model"), engine.infer("no-such-model", "x")):
        with pytest.raises((InvalidInput, UnsupportedTaskType), match="no-such-model"):
            await call
    with pytest.raises(InvalidInput, match=r"no-such-collection|on a Postgres server yet"):
        await engine.search(np.ones(3, np.float32), collection="no-such-collection")


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (TaskType.TEXT_PROCESSING, ModelInput(text="x")),
        (TaskType.TEXT_PROCESSING, SearchQuery(text="x")),
        (TaskType.EMBEDDING_GENERATION, Binary(b"x")),
        (TaskType.VECTOR_SEARCH, Text("x")),
        (TaskType.MODEL_INFERENCE, Text("x")),
        (TaskType.DATA_STORAGE, SearchQuery(text="x")),
        (TaskType.DATA_RETRIEVAL, Binary(b"x")),
        (TaskType.custom("echo"), Text("x")),
        (TaskType.custom("echo"), Custom([1])),
        (TaskType.custom("echo"), Custom({"y": 1})),
    ],
    ids=str,
)
async def test_the_wrong_kind_of_input(engine: Engine, echo: Any, kind: TaskType, wrong: Any) -> None:
    """Refused at submit, for every type."""
    before = await stored(engine)
    with pytest.raises(InvalidInput):
        await engine.submit(Task(task_type=kind, input=wrong))
    assert await stored(engine) == before


async def test_missing_parents(engine: Engine, echo: Any) -> None:
    """An unknown parent is named, as an argument, in `after`, and in a ready task; nothing is stored."""
    ghost, before = TaskId(), await stored(engine)
    for call in (
        engine.submit(echo, engine.handle(ghost)),
        engine.submit(echo, 1, after=ghost),
        engine.submit(Task(task_type=TaskType.custom("echo"), input=Custom({"x": 1}), dependencies=(ghost,))),
    ):
        with pytest.raises(TaskNotFound, match=str(ghost)):
            await call
    assert await stored(engine) == before


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("filter", "x"), ("filter", [1]), ("filter", {5: 1}), ("filter", Ref(TaskId())),
        ("collection", 5), ("collection", ""), ("collection", Ref(TaskId())), ("top_k", Ref(TaskId())), ("top_k", 0),
    ],
    ids=lambda item: str(item)[:30],
)  # fmt: skip
async def test_queries(engine: Engine, field: str, bad: Any) -> None:
    """A query that could be stored and never read is refused, by the task and by the call; each names the field."""
    before = await stored(engine)
    query = SearchQuery(**{"vector": [1.0], field: bad})
    with pytest.raises(InvalidInput) as caught:
        await engine.submit(Task(task_type=TaskType.VECTOR_SEARCH, input=query))
    assert caught.value.field == f"input.{field}"
    with pytest.raises(InvalidInput):
        await engine.search([1.0], **{field: bad})
    assert await stored(engine) == before


@pytest.mark.parametrize("bad", [5, "text", None, {"task_type": "x"}], ids=str)
async def test_what_is_no_task(engine: Engine, bad: Any) -> None:
    """Whatever takes a Task says so, and whatever takes several."""
    for call in (
        engine.submit_all([bad]),
        engine.manager.submit_task(bad),
        engine.manager.submit_tasks([bad]),
        engine.scheduler.schedule_task(bad),
        engine.scheduler.schedule_tasks([bad]),
    ):
        with pytest.raises(InvalidInput, match="Task"):
            await call
    with pytest.raises(InvalidInput, match="list of tasks"):
        await engine.submit_all(5)  # type: ignore[arg-type]


async def test_parents_in_the_same_call(engine: Engine, echo: Any) -> None:
    """A cycle is named with its tasks, a parent behind its child with both; nothing is stored."""

    def task(id: TaskId, *after: TaskId) -> Task:
        return Task(task_type=TaskType.custom("echo"), input=Custom({"x": 1}), id=id, dependencies=after)

    a, b, c = TaskId(), TaskId(), TaskId()
    before = await stored(engine)
    for tasks in ([task(a, b), task(b, c), task(c, a)], [task(a, b), task(b, a)]):
        for submit in (engine.submit_all, engine.manager.submit_tasks, engine.scheduler.schedule_tasks):
            with pytest.raises(InvalidInput, match="closes a cycle") as caught:
                await submit(tasks)
            assert caught.value.field == "dependencies"
            assert all(str(item.id) in str(caught.value) for item in tasks)
    with pytest.raises(InvalidInput, match=f"{b}.*later in the same call.*{a}.*before their children"):
        await engine.submit_all([task(a, b), task(b)])
    with pytest.raises(TaskNotFound, match=str(c)):
        await engine.submit_all([task(a, c), task(b)])
    assert await stored(engine) == before
    handles = await engine.submit_all([task(b), task(a, b)])
    assert await engine.gather(handles) == [1, 1]
    await engine.submit_all([task(a, b), task(b)])  # stored already: a repeated submit is harmless in any order


async def test_errors_name_the_value(engine: Engine, echo: Any) -> None:
    """`field` and `value` are there for whoever wants to act on them; of what a task recorded, the field."""
    ghost = TaskId()
    for call in (engine.handle(ghost).info(), engine.manager.cancel_task(ghost), engine.handle(ghost).result()):
        with pytest.raises(TaskNotFound) as missing:
            await call
        assert (missing.value.field, missing.value.value) == ("task id", ghost)
    with pytest.raises(TaskNotFound) as parent:
        await engine.submit(echo, 1, after=ghost)
    assert (parent.value.field, parent.value.value) == ("dependencies", ghost)
    with pytest.raises(UnsupportedTaskType) as unsupported:
        await engine.submit(Task(task_type=TaskType.custom("ghost"), input=Custom({})))
    assert (unsupported.value.field, unsupported.value.value) == ("task_type", "custom:ghost")

    @engine.task
    async def two(a: Any, b: Any) -> None:
        raise InvalidInput("of its own", field="page")

    bad = object()
    with pytest.raises(InvalidInput, match=r"argument b: .*can't be stored") as argument:
        await engine.submit(two, 1, bad)
    assert (argument.value.field, argument.value.value) == ("b", bad)
    with pytest.raises(InvalidInput, match="of its own") as recorded:
        await value(await engine.submit(two, 1, 2))
    assert (recorded.value.field, recorded.value.attempts) == ("page", 1)


async def test_a_taken_key(engine: Engine) -> None:
    """`if_absent` on a key that names other content is a Conflict, and not tried again."""
    await engine.store(b"a", "taken")
    handle = await engine.submit(engine.store, b"b", "taken", if_absent=True)
    with pytest.raises(Conflict, match="taken") as caught:
        await value(handle)
    assert not caught.value.is_retryable
    assert caught.value.attempts == 1


def generator() -> Any:
    yield 1


async def async_generator() -> Any:
    yield 1


def test_declarations() -> None:
    """Contradictory declarations fail there and then, naming what to change; nothing is registered."""
    engine = engine_on()

    async def coroutine() -> None: ...

    def plain() -> None: ...

    def stars(*args: int) -> None: ...

    def named_stars(**kwargs: int) -> None: ...

    def by_place(x: int, /) -> None: ...

    def option(priority: int) -> None: ...

    def other_option(x: int, timeout: float = 1) -> None: ...

    cases: list[tuple[Any, dict[str, Any], str]] = [
        (coroutine, {"lane": "thread"}, "lane"),
        (plain, {"lane": "async"}, "lane"),
        (plain, {"lane": "gpu"}, "lane"),
        (stars, {}, "args"),
        (named_stars, {}, "kwargs"),
        (by_place, {}, "parameter x"),
        (option, {}, "priority"),
        (other_option, {}, "timeout"),
        (lambda: 1, {}, "lambda"),
        (5, {}, "callable"),
        (partial(plain), {}, "no name"),
        (plain, {"name": "a b"}, "a b"),
        (plain, {"timeout": -1}, "timeout"),
        (plain, {"timeout": 0}, "timeout"),
        (plain, {"timeout": NAN}, "timeout"),
        (plain, {"retry": -1}, "retry"),
        (plain, {"retry": Retry(max_retries=-1)}, "max_retries"),
        (plain, {"retry": Retry(max_retries="three")}, "max_retries"),  # type: ignore[arg-type]
        (plain, {"retry": Retry(factor=NAN)}, "factor"),
        (plain, {"retry": Retry(factor=1e9)}, "factor"),
        (plain, {"retry": Retry(delay=-1)}, "delay"),
        (plain, {"retry": "often"}, "retry"),
        (plain, {"priority": "urgent"}, "priority"),
        (plain, {"priority": NAN}, "priority"),
        (plain, {"version": 2}, "version"),
        (plain, {"retry": True}, "retry"),
        (plain, {"retry": Retry(max_retries=True)}, "max_retries"),
        (plain, {"retry": Retry(max_retries=2_000_000)}, "max_retries"),
        (plain, {"resources": Resources(cpu=-1)}, "resources"),
        (plain, {"cache": "a while"}, "cache"),
        (plain, {"bogus": 1}, "bogus"),
        (plain, {"max_retries": 1}, "use retry=N"),
        (generator, {}, "generator"),
        (async_generator, {}, "generator"),
        (int, {}, "class"),
        (Machine(), {}, "no name"),
        (Machine(), {"name": "machine", "lane": "process"}, "object of Machine"),
        (partial(plain), {"name": "part", "lane": "process"}, "object of partial"),
    ]
    for function, options, named in cases:
        with pytest.raises(InvalidInput) as caught:
            engine.task(**options)(function)
        assert any(word in str(caught.value) for word in named.split("|")), (options, str(caught.value))
    assert engine.executor.handlers == {}
    assert not hasattr(plain, "__mainspring__")


def test_one_name_for_two_handlers() -> None:
    """Conflict, naming both ways out; the first one stays. The same function may be declared again."""
    engine = engine_on()

    def twin() -> int:
        return 1

    first = twin
    engine.task(first)

    def other() -> int:
        return 2

    with pytest.raises(Conflict, match="name="):
        engine.task(name="twin")(other)
    assert engine.executor.handlers["custom:twin"].function is first
    assert engine.task(first) is first


class Machine:
    def method(self) -> None: ...

    async def __call__(self, n: int) -> int:
        return n + 1


def test_what_cannot_carry_its_registration() -> None:
    """A bound method or a builtin can't be marked as a handler: refused, and nothing is registered."""
    engine = engine_on()
    for thing in (Machine().method, max):
        with pytest.raises(InvalidInput):
            engine.task(thing)
    assert engine.executor.handlers == {}


async def test_what_can_be_called_and_is_no_function(engine: Engine) -> None:
    """A partial and an object are handlers under a name of their own, with the types of what they stand for."""

    def power(base: int, exponent: int) -> int:
        return int(base**exponent)

    square = engine.task(name="square")(partial(power, exponent=2))
    assert await value(await engine.submit(square, 3)) == 9
    plus_one = engine.task(name="plus_one")(Machine())
    assert await value(await engine.submit(plus_one, 1)) == 2
    for function in (square, plus_one):
        with pytest.raises(InvalidInput, match="int"):
            await engine.submit(function, "x")


async def test_parameters_that_are_given_by_name_alone(engine: Engine) -> None:
    """As in Python itself."""

    @engine.task
    async def named(x: int, *, y: int = 0, z: int) -> int:
        return x + y + z

    assert await value(await engine.submit(named, 1, z=2)) == 3
    for args, kwargs, why in (((1, 2, 3), {}, "takes 1 of them by place"), ((1,), {}, "misses z")):
        with pytest.raises(InvalidInput, match=why):
            await engine.submit(named, *args, **kwargs)


async def test_too_large(anyio_backend: str) -> None:
    """Above max_payload_bytes: an input is refused at submit, an output fails its attempt, both with the figures."""
    config = quick(store=StoreConfig(inline_bytes=1_000, max_payload_bytes=100_000))
    async with Engine(config=config) as engine:

        @engine.task
        async def grow(text: str, times: int = 1) -> str:
            return text * times

        with pytest.raises(InvalidInput, match="max_payload_bytes = 100000"):
            await engine.submit(grow, "x" * 200_000)
        handle = await engine.submit(grow, "x" * 50_000, 3)
        with pytest.raises(InvalidInput, match="max_payload_bytes = 100000") as caught:
            await value(handle)
        assert caught.value.attempts == 1
        assert len(await value(await engine.submit(grow, "x" * 30_000, 3))) == 90_000
        parts = [await engine.submit(grow, "x" * 60_000) for _ in range(2)]

        @engine.task
        async def both(texts: list[str]) -> int:
            return sum(map(len, texts))

        assert await value(await engine.submit(both, parts)) == 120_000


async def test_a_full_queue() -> None:
    """queue_size unfinished tasks are the limit; a refused call stores nothing, and room comes back."""
    async with engine_on(queue_size=10) as engine:

        @engine.task
        async def idle(n: int) -> int:
            return n

        await engine.manager.pause()
        handles = [await engine.submit(idle, n) for n in range(8)]
        with pytest.raises(QueueFull, match="queue_size = 10") as caught:
            await engine.submit_all([engine.build(idle, (n,), {}) for n in range(3)])
        assert caught.value.retry_after is not None
        assert await stored(engine) == 8
        handles += [await engine.submit(idle, n) for n in (8, 9)]
        with pytest.raises(QueueFull):
            await engine.submit(idle, 10)
        await engine.manager.resume()
        assert await engine.gather(handles) == list(range(10))
        assert await value(await engine.submit(idle, 11)) == 11


async def test_stores_that_are_not_files(tmp_path: Any) -> None:
    """A folder and a foreign file are refused with a typed error."""
    (tmp_path / "text.db").write_text("this is no database " * 100)
    for path in (tmp_path, tmp_path / "text.db", tmp_path / "text.db" / "x.db"):
        with pytest.raises(Exception, match=r".") as caught:
            await Engine(path).start()
        assert type(caught.value).__module__ == "mainspring.errors", caught.value
    assert (tmp_path / "text.db").read_text().startswith("this is no database")


def test_settings() -> None:
    """Bad settings fail when they are made."""
    for name, bad in (
        ("async_slots", 0),
        ("queue_size", 0),
        ("grace_s", -1),
        ("drain_s", NAN),
        ("processing_interval", 0),
    ):
        with pytest.raises(InvalidInput, match=name):
            TaskManagerConfig(**{name: bad})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "name", "bad"),
    [
        (TaskManagerConfig, "batch_size", "x"), (TaskManagerConfig, "batch_size", 1.5),
        (TaskManagerConfig, "queue_size", -1), (TaskManagerConfig, "queue_size", "many"),
        (SchedulerConfig, "max_memory_bytes", -1), (SchedulerConfig, "max_cpu_usage", "half"),
        (SchedulerConfig, "max_dependencies", -1), (StoreConfig, "keep_completed_s", -1),
        (StoreConfig, "keep_failed_s", "7d"), (StoreConfig, "inline_bytes", 1.5), (StoreConfig, "stall_s", None),
        (ExecutorConfig, "child_prefetch", -1), (ExecutorConfig, "child_start_timeout_s", NAN),
        (EngineConfig, "store", {}), (EngineConfig, "manager", None), (SchedulerConfig, "max_cpu_usage", True),
        (TaskManagerConfig, "cpu_capacity", 0), (TaskManagerConfig, "cpu_capacity", -1.0),
        (TaskManagerConfig, "cpu_capacity", NAN), (TaskManagerConfig, "cpu_capacity", True),
        (TaskManagerConfig, "cpu_capacity", "2"), (TaskManagerConfig, "memory_capacity", 0),
        (TaskManagerConfig, "memory_capacity", 1.5), (TaskManagerConfig, "memory_capacity", "2GB"),
        (TaskManagerConfig, "gpu_capacity", -1), (TaskManagerConfig, "gpu_capacity", NAN),
        (TaskManagerConfig, "gpu_capacity", True), (TaskManagerConfig, "gpu_capacity", None),
        (TaskManagerConfig, "custom_capacity", {5: 1}), (TaskManagerConfig, "custom_capacity", {"": 1}),
        (TaskManagerConfig, "custom_capacity", {"memory": 1}), (TaskManagerConfig, "custom_capacity", {"children": 1}),
        (TaskManagerConfig, "custom_capacity", ["license"]),
    ],
    ids=str,
)  # fmt: skip
def test_settings_of_a_wrong_type(settings: Any, name: str, bad: Any) -> None:
    """InvalidInput that names the setting, not whatever fails first for it."""
    with pytest.raises(InvalidInput) as caught:
        settings(**{name: bad})
    assert caught.value.field == name


@pytest.mark.parametrize("bad", [-1, NAN, float("inf"), True, "2", None])
def test_capacities_of_users_own_kinds(bad: Any) -> None:
    """What is no amount is refused with its name, the value and what to use."""
    with pytest.raises(InvalidInput, match="is no amount; use a number from 0") as caught:
        TaskManagerConfig(custom_capacity={"license": 2, "seat": bad})
    assert caught.value.field == "custom_capacity['seat']"
    assert caught.value.value is bad


async def test_limits_of_one_task() -> None:
    """Each holds by itself, and is named; a handle among the arguments is a parent as one of `after` is."""
    limits = SchedulerConfig(max_dependencies=2, max_metadata_bytes=100, max_params_bytes=10)
    async with Engine(":memory:", EngineConfig(scheduler=limits)) as engine:

        @engine.task
        async def join(parts: list[Any]) -> int:
            return len(parts)

        parts = await engine.map(join, [[]] * 3)
        assert await (await engine.submit(join, list(parts[:2]), metadata={"x": "y" * 80})).result(timeout=LIMIT_S) == 2
        for n in range(4):
            with pytest.raises(InvalidInput, match=r"3 parents.*are more than max_dependencies = 2") as caught:
                await engine.submit(join, parts[:n], after=parts[n:])
            assert caught.value.field == "dependencies"
        with pytest.raises(InvalidInput, match=r"3 parents.*are more than max_dependencies = 2"):
            await engine.map(join, [parts])
        with pytest.raises(InvalidInput, match="are above max_metadata_bytes = 100") as caught:
            await engine.submit(join, [], metadata={"x": "y" * 500})
        assert caught.value.field == "metadata"
        large = Task(task_type=TaskType.TEXT_PROCESSING, input=Text("x"), params={"steps": ["normalize"] * 2})
        with pytest.raises(InvalidInput, match="are above max_params_bytes = 10") as caught:
            await engine.submit(large)
        assert caught.value.field == "params"


async def test_memory_is_a_whole_number_of_bytes(engine: Engine, echo: Any) -> None:
    """In a declaration as in a call, by its name."""
    half: Any = Resources(memory=2e9)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="is no whole number of bytes") as declared:
        engine.task(name="half", resources=half)(lambda n: n)
    with pytest.raises(InvalidInput, match="is no whole number of bytes") as called:
        await engine.submit(echo, 1, resources=half)
    assert (declared.value.field, called.value.field) == ("resources.memory", "resources.memory")


async def test_resources_in_numbers_of_numpy(engine: Engine, echo: Any) -> None:
    """They are Python's own from the start, so that declarations and calls take the same; what is no number stays."""
    needs = Resources(cpu=np.float64(0.5), memory=np.int64(1 << 20), gpu=np.float32(0), custom={"seat": np.int8(0)})  # type: ignore[arg-type,dict-item]
    assert {type(amount) for amount in (needs.cpu, needs.gpu)} == {float}
    assert {type(amount) for amount in (needs.memory, needs.custom["seat"])} == {int}
    assert await (await engine.submit(echo, 1, resources=needs)).result() == 1
    with pytest.raises(InvalidInput, match="is no amount") as caught:
        await engine.submit(echo, 1, resources=Resources(gpu="1"))  # type: ignore[arg-type]
    assert caught.value.field == "resources.gpu"


async def test_what_the_face_is_given(engine: Engine, echo: Any) -> None:
    """Its methods refuse what is of another kind altogether."""
    for store in (5, None, "", b"work.db"):
        with pytest.raises(InvalidInput, match="store"):
            Engine(store)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="config"):
        Engine(config={})  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="items"):
        await engine.map(echo, 5)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="key"):
        await engine.retrieve(5)  # type: ignore[arg-type]
    for by in (None, 5, "hour", ["type", "hour"], [["type"]]):
        with pytest.raises(InvalidInput, match="by"):
            await engine.ledger(by)  # type: ignore[arg-type]
    now = datetime.now(UTC)
    assert (await engine.ledger(since=now)).since is not None
    for since in (now + timedelta(hours=1), now.replace(tzinfo=None), "nope", -1):
        with pytest.raises(InvalidInput, match="since"):
            await engine.ledger(since=since)
    with pytest.raises(InvalidInput, match="model_id"):
        engine.models.register(5, object())  # type: ignore[arg-type]


async def test_many_bad_ones_among_good_ones(engine: Engine, echo: Any) -> None:
    """Bad submits in the same moment harm none of the good ones."""
    calls = [
        engine.submit(echo, n)
        if n % 3
        else engine.submit(echo, n, after=TaskId())
        if n % 2
        else engine.submit(echo, "x")
        for n in range(60)
    ]
    results = await asyncio.gather(*calls, return_exceptions=True)
    good = [result for result in results if not isinstance(result, BaseException)]
    assert await engine.gather(good) == [n for n in range(60) if n % 3]
    for handle in good:
        assert (await handle.info()).status is TaskStatus.COMPLETED


async def test_an_optional_context(engine: Engine) -> None:
    """`ctx: Context | None = None` is the context too: the function can be called without one."""

    @engine.task
    async def maybe(x: int, ctx: Context | None = None) -> list[Any]:
        return [x, ctx is not None]

    assert await maybe(1) == [1, False]
    assert await value(await engine.submit(maybe, 1)) == [1, True]


async def test_parameters_named_like_our_own(engine: Engine) -> None:
    """`function`, `items` and `self` are ordinary names for a handler's parameters."""

    @engine.task
    async def awkward(function: str, items: int = 0, task: int = 0) -> str:
        return function

    assert await value(await engine.submit(awkward, function="a", items=1, task=2)) == "a"
    assert await value((await engine.map(awkward, ["b"], items=1))[0]) == "b"
