"""What a handler gets through `ctx`, and what becomes of the tasks that it submits."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.engine.support import LIMIT_S, SOON, engine_on, shows, value

from mainspring import (
    Context,
    Custom,
    Engine,
    InvalidInput,
    Permanent,
    ProcessingFailed,
    Task,
    TaskHandle,
    TaskId,
    TaskNotFound,
    TaskStatus,
    TaskTimeout,
    TaskType,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def engine(anyio_backend: str, place: str) -> AsyncIterator[Engine]:
    async with engine_on(place) as engine:
        yield engine


@pytest.fixture(scope="module")
def double(engine: Engine) -> Any:
    @engine.task
    async def double(n: int) -> int:
        return 2 * n

    return double


@pytest.fixture(scope="module")
def total(engine: Engine) -> Any:
    @engine.task
    async def total(numbers: list[int]) -> int:
        return sum(numbers)

    return total


async def count_of(engine: Engine, kind: str) -> int:
    """How many tasks of a type there are, in whatever state."""
    return sum((await engine.manager.stats())["types"].get(kind, {}).values())


@pytest.mark.parametrize("lane", ["async", "thread"])
async def test_a_handler_knows_its_attempt(engine: Engine, lane: str) -> None:
    """Id, number of the attempt, deadline, and that nobody asked it to stop."""
    seen: list[Any] = []

    def note(ctx: Context) -> None:
        seen.append((ctx.id, ctx.attempt, ctx.retry_count, ctx.deadline, ctx.cancelled))
        if ctx.attempt < 3:
            raise ValueError

    async def note_async(ctx: Context) -> None:
        note(ctx)

    handler = engine.task(name=f"note_{lane}", retry=SOON)(note_async if lane == "async" else note)
    deadline = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    handle = await engine.submit(handler, deadline=deadline)
    await value(handle)
    assert seen == [(handle.id, n, n - 1, deadline, False) for n in (1, 2, 3)]


async def test_the_context_may_stand_anywhere(engine: Engine) -> None:
    """It is found by its annotation, and is no argument of the task."""

    @engine.task
    async def middle(a: int, context: Context, b: int = 2) -> list[Any]:
        return [a, b, str(context.id)]

    handle = await engine.submit(middle, 1, 5)
    assert await value(handle) == [1, 5, str(handle.id)]
    with pytest.raises(InvalidInput, match="context"):
        await engine.submit(middle, 1, context=3)


@pytest.mark.parametrize("lane", ["async", "thread"])
async def test_progress_shows_in_info(engine: Engine, lane: str) -> None:
    """The newest value, while the attempt runs."""
    loop = asyncio.get_running_loop()
    go = asyncio.Event()

    async def steps_async(ctx: Context) -> None:
        ctx.progress(1, 4)
        ctx.progress(3, 4)
        await go.wait()

    def steps(ctx: Context) -> None:
        ctx.progress(3, 4)
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result()

    handle = await engine.submit(engine.task(name=f"steps_{lane}")(steps_async if lane == "async" else steps))
    await shows(handle, progress=(3.0, 4.0))
    go.set()
    await value(handle)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "half"])
async def test_nonsense_progress_fails_its_attempt_alone(engine: Engine, double: Any, bad: Any) -> None:
    """A progress that is no number is the handler's error; the engine's upkeep goes on."""

    @engine.task(name=f"nonsense_{bad}", retry=0)
    async def nonsense(ctx: Context) -> None:
        ctx.progress(bad)

    with pytest.raises((InvalidInput, ProcessingFailed)):
        await value(await engine.submit(nonsense))
    go = asyncio.Event()

    @engine.task(name=f"after_{bad}")
    async def after(ctx: Context) -> None:
        ctx.progress(1, 2)
        await go.wait()

    handle = await engine.submit(after)
    await shows(handle, progress=(1.0, 2.0))
    go.set()
    await value(handle)


async def test_log_carries_the_task(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """Each record has the task's id and attempt."""

    @engine.task
    async def talk(ctx: Context) -> None:
        ctx.log.info("hello %s", "you")

    with caplog.at_level(logging.INFO, "mainspring.handler"):
        handle = await engine.submit(talk)
        await value(handle)
    record = next(record for record in caplog.records if record.name == "mainspring.handler")
    assert record.getMessage() == "hello you"
    assert (vars(record)["task_id"], vars(record)["attempt"]) == (str(handle.id), 1)


@pytest.mark.parametrize("lane", ["async", "thread"])
@pytest.mark.parametrize("now", [False, True])
async def test_fan_out_and_join(engine: Engine, double: Any, total: Any, lane: str, now: bool) -> None:
    """A handler returns handles of its children, at any depth: its result and its dependents get their values."""

    def spread(n: int, ctx: Context) -> Any:
        return {"all": [ctx.submit(double, i, now=now) for i in range(n)], "n": n}

    async def spread_async(n: int, ctx: Context) -> Any:
        return spread(n, ctx)

    @engine.task(name=f"only_{lane}_{now}")
    async def only(found: dict[str, Any]) -> list[int]:
        return list(found["all"])

    handler = engine.task(name=f"spread_{lane}_{now}")(spread_async if lane == "async" else spread)
    parent = await engine.submit(handler, 5)
    joined = await engine.submit(total, await engine.submit(only, parent))
    late = None
    assert await value(parent) == {"all": [0, 2, 4, 6, 8], "n": 5}
    assert await value(joined) == 20
    late = await engine.submit(only, parent)
    assert await value(late) == [0, 2, 4, 6, 8]


async def test_handles_of_handles(engine: Engine, double: Any, total: Any) -> None:
    """A child may return handles again, and a handle may be the whole result; children may depend on children."""

    @engine.task
    async def inner(n: int, ctx: Context) -> Any:
        return [ctx.submit(double, n), ctx.submit(double, ctx.submit(double, n))]

    @engine.task
    async def outer(n: int, ctx: Context) -> Any:
        return ctx.submit(total, ctx.submit(inner, n))

    parent = await engine.submit(outer, 3)
    dependent = await engine.submit(double, parent)
    assert await value(dependent) == 36
    assert await value(parent) == 18


async def test_results_hold_what_they_stand_for(engine: Engine, double: Any) -> None:
    """The manager's result has the values in place, and a limit of time holds for the whole wait."""
    gate = asyncio.Event()

    @engine.task
    async def gated(n: int) -> int:
        await gate.wait()
        return n

    @engine.task
    async def both(ctx: Context) -> Any:
        return [ctx.submit(double, 2), ctx.submit(gated, 7)]

    parent = await engine.submit(both)
    with pytest.raises(TaskTimeout, match="it goes on"):
        await parent.result(timeout=0.2)
    with pytest.raises(TaskTimeout, match="it goes on"):
        await engine.manager.get_task_result(parent.id, timeout=0.2)
    gate.set()
    result = await engine.manager.get_task_result(parent.id, timeout=LIMIT_S)
    assert result.output is not None
    assert result.output.value == [4, 7]

    @engine.task(retry=0)
    async def breaks() -> None:
        raise ValueError("broken below")

    @engine.task
    async def stands(ctx: Context) -> Any:
        return ctx.submit(breaks)

    parent = await engine.submit(stands)
    result = await engine.manager.get_task_result(parent.id, timeout=LIMIT_S)
    assert (result.status, result.output) == (TaskStatus.COMPLETED, None)
    assert "broken below" in str(result.error)


async def test_a_task_submitted_elsewhere_may_be_returned(engine: Engine, double: Any) -> None:
    """Any handle will do, not only those of children."""
    ready = await engine.submit(double, 4)
    await value(ready)
    waiting = await engine.submit(double, 5, delay="30ms")
    ids = [str(ready.id), str(waiting.id)]

    @engine.task
    async def refer() -> Any:
        return [engine.handle(id) for id in ids]

    parent = await engine.submit(refer)
    assert await value(parent) == [8, 10]


async def test_returning_an_unknown_task_is_an_error(engine: Engine, double: Any) -> None:
    """It could never be resolved: the attempt fails and says so, and nobody waits for ever."""
    ghost = TaskId()

    @engine.task(retry=0)
    async def haunted() -> Any:
        return engine.handle(ghost)

    parent = await engine.submit(haunted)
    child = await engine.submit(double, parent)
    with pytest.raises(Exception, match=str(ghost)) as caught:
        await value(parent)
    assert type(caught.value).__name__ in ("TaskNotFound", "ProcessingFailed", "InvalidInput")
    assert (await parent.info()).status is TaskStatus.FAILED
    with pytest.raises(Exception, match=str(parent.id)):
        await value(child)


async def test_returning_oneself_is_an_error(engine: Engine) -> None:
    """A result that stands for itself is refused."""

    @engine.task(retry=0)
    async def narcissus(ctx: Context) -> Any:
        return [engine.handle(ctx.id)]

    handle = await engine.submit(narcissus)
    with pytest.raises((InvalidInput, ProcessingFailed), match="itself"):
        await value(handle)


async def test_a_circle_of_results_is_an_error(engine: Engine) -> None:
    """Two tasks that return each other's handle: the second one is refused, and nothing recurses."""
    ids = [TaskId(), TaskId()]

    @engine.task(retry=0)
    async def circle(n: int) -> Any:
        return engine.handle(ids[1 - n])

    await engine.manager.pause(type="custom:circle")
    handles = [await engine.submit(circle, n, task_id=ids[n]) for n in (0, 1)]
    await engine.manager.resume(type="custom:circle")
    results = await asyncio.gather(*(value(handle) for handle in handles), return_exceptions=True)
    assert [type(result) for result in results] == [InvalidInput, InvalidInput]
    assert all("the task itself" in str(result) for result in results)
    statuses = {(await handle.info()).status for handle in handles}
    assert statuses == {TaskStatus.COMPLETED, TaskStatus.FAILED}


async def test_children_of_a_failed_attempt_never_exist(engine: Engine, double: Any) -> None:
    """They commit with the outcome: two attempts that fail leave none, the third leaves one."""

    @engine.task
    async def rare_child(n: int) -> int:
        return n

    @engine.task(retry=SOON)
    async def shaky(ctx: Context) -> Any:
        child = ctx.submit(rare_child, 7)
        if ctx.attempt < 3:
            raise ValueError("not yet")
        return child

    @engine.task(retry=0)
    async def broken(ctx: Context) -> None:
        ctx.submit(rare_child, 8)
        raise Permanent("no")

    assert await value(await engine.submit(shaky)) == 7
    with pytest.raises(ProcessingFailed):
        await value(await engine.submit(broken))
    assert await count_of(engine, "custom:rare_child") == 1


@pytest.mark.parametrize("lane", ["async", "thread"])
async def test_children_stored_now_are_stored_once(engine: Engine, lane: str) -> None:
    """A repeated attempt finds the children of the one before; each call has a child of its own."""
    kind = f"now_child_{lane}"

    @engine.task(name=kind)
    async def now_child(n: int) -> int:
        return n

    seen: list[Any] = []

    def again(ctx: Context) -> Any:
        children = [ctx.submit(now_child, n, now=True) for n in (1, 2)]
        seen.append([child.id for child in children])
        if ctx.attempt < 3:
            raise ValueError("not yet")
        return children

    async def again_async(ctx: Context) -> Any:
        children = [await ctx.submit(now_child, n, now=True) for n in (1, 2)]
        seen.append([child.id for child in children])
        if ctx.attempt < 3:
            raise ValueError("not yet")
        return children

    handler = engine.task(name=f"again_{lane}", retry=SOON)(again_async if lane == "async" else again)
    assert await value(await engine.submit(handler)) == [1, 2]
    assert seen[0] == seen[1] == seen[2]
    assert len(set(seen[0])) == 2
    assert await count_of(engine, f"custom:{kind}") == 2


@pytest.mark.parametrize("lane", ["async", "thread"])
@pytest.mark.parametrize("now", [False, True])
async def test_a_child_whose_key_has_a_task_already(engine: Engine, lane: str, now: bool) -> None:
    """The handle stands for that task, wherever it goes: in the result, and as an argument of other children."""
    kind = f"keyed_{lane}_{now}"

    @engine.task(name=kind)
    async def keyed(n: int) -> int:
        return 2 * n

    def parent(ctx: Context) -> Any:
        child = ctx.submit(keyed, 21, idempotency_key=kind, now=now)
        return [child, ctx.submit(keyed, child)]

    async def parent_async(ctx: Context) -> Any:
        return parent(ctx)

    before = await engine.submit(keyed, 21, idempotency_key=kind)
    handler = engine.task(name=f"parent_of_{kind}", retry=0)(parent_async if lane == "async" else parent)
    assert await value(await engine.submit(handler)) == [42, 84]
    assert await value(before) == 42
    assert await count_of(engine, f"custom:{kind}") == 2


async def test_a_child_whose_key_has_a_task_in_a_large_value(engine: Engine) -> None:
    """A blob is never changed: the attempt fails and says what to do, before anything of it is stored."""

    @engine.task
    async def keyed_small(n: int) -> int:
        return n

    @engine.task(retry=0)
    async def large_parent(ctx: Context, what: str) -> Any:
        child = ctx.submit(keyed_small, 1, idempotency_key="small")
        if what == "input":
            return ctx.submit(keyed_small, [child, "x" * 100_000])
        return [child, "x" * 100_000]

    await engine.submit(keyed_small, 1, idempotency_key="small")
    for what in ("input", "output"):
        with pytest.raises(InvalidInput, match="pass the child on by itself"):
            await value(await engine.submit(large_parent, what))
    assert await count_of(engine, "custom:keyed_small") == 1


async def test_a_child_stored_now_runs_before_its_parent_ends(engine: Engine) -> None:
    """`now=True` commits at once."""
    ran = asyncio.Event()

    @engine.task
    async def early() -> None:
        ran.set()

    @engine.task
    async def patient(ctx: Context) -> str:
        await ctx.submit(early, now=True)
        await ran.wait()
        return "seen"

    assert await value(await engine.submit(patient)) == "seen"


@pytest.mark.parametrize("how", ["result", "handle", "gather", "manager", "await"])
async def test_waiting_for_a_task_inside_a_handler_is_refused(engine: Engine, double: Any, how: str) -> None:
    """It would hold its slot: InvalidInput names the way out. Awaiting the handle only awaits acceptance."""

    @engine.task(name=f"impatient_{how}", retry=0)
    async def impatient(ctx: Context) -> Any:
        child: Any
        if how == "handle":
            child = await engine.submit(double, 1)
            return await child.result()
        if how == "manager":
            return (await engine.manager.get_task_result((await engine.submit(double, 1)).id)).status
        if how == "gather":
            return await engine.gather([await engine.submit(double, 1)])
        child = ctx.submit(double, 1)
        return await child if how == "await" else await child.result()

    handle = await engine.submit(impatient)
    if how == "await":
        assert await value(handle) == 2
        return
    with pytest.raises(InvalidInput, match="return the handle instead"):
        await value(handle)


async def test_bad_children_fail_their_parent(engine: Engine, double: Any) -> None:
    """A child that could not be submitted by anybody fails the attempt that submits it; nothing of it is stored."""

    def stranger() -> None: ...

    @engine.task(retry=0)
    async def bad_parent(how: str, ctx: Context) -> None:
        ctx.submit(double, 1)
        if how == "unregistered":
            ctx.submit(stranger)
        elif how == "argument":
            ctx.submit(double, "one")
        elif how == "option":
            ctx.submit(double, 1, priority="urgent")
        elif how == "unstorable":
            ctx.submit(double, object())

    before = await count_of(engine, "custom:double")
    for how in ("unregistered", "argument", "option", "unstorable"):
        handle = await engine.submit(bad_parent, how)
        with pytest.raises(InvalidInput):
            await value(handle)
    assert await count_of(engine, "custom:double") == before


def _stranger() -> None: ...


_NO_HANDLERS: list[tuple[Any, str]] = [
    ("double", r"'double': is a name, and no function; pass the function itself .*@engine\.task.*engine\.embed"),
    (None, "None: is no function; pass the function itself"),
    (Task(task_type=TaskType.custom("double"), input=Custom({})), "is a ready Task, which engine.submit alone takes"),
    (_stranger, r"is not registered; register it before, with @engine\.task or engine\.task\(function\)"),
]


async def test_what_is_no_handler_is_no_child(engine: Engine) -> None:
    """The error says what was given, and what is taken."""

    @engine.task
    async def submits_the_wrong(n: int, ctx: Context) -> Any:
        return ctx.submit(_NO_HANDLERS[n][0], 1)

    for n, (_, why) in enumerate(_NO_HANDLERS):
        with pytest.raises(InvalidInput, match=why):
            await value(await engine.submit(submits_the_wrong, n))


async def test_a_plain_call_of_a_handler_with_a_context(engine: Engine) -> None:
    """Outside of the engine there is nothing to submit to, and the context says so."""
    context = Context(id=TaskId().bytes, attempt=1, send=lambda signal: None)

    def plain() -> None: ...

    with pytest.raises(InvalidInput, match="only in a handler"):
        context.submit(plain)


async def test_context_variables_do_not_leak(engine: Engine) -> None:
    """What one handler sets, the next in the same slot does not see; nor does the engine."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("leak", default="clean")

    @engine.task
    async def dirty_async() -> str:
        before = variable.get()
        variable.set("dirty")
        await asyncio.sleep(0)
        return f"{before} {variable.get()}"

    @engine.task
    def dirty() -> str:
        before = variable.get()
        variable.set("dirty")
        return f"{before} {variable.get()}"

    for handler in (dirty_async, dirty):
        handles = [await engine.submit(handler) for _ in range(100)]
        assert set(await engine.gather(handles)) == {"clean dirty"}
    assert variable.get() == "clean"


async def test_submitting_through_the_engine_inside_a_handler(engine: Engine, double: Any) -> None:
    """`engine.submit` works there too; the task is independent of the attempt."""
    made: list[TaskHandle] = []

    @engine.task
    async def independent() -> None:
        made.append(await engine.submit(double, 21))

    await value(await engine.submit(independent))
    assert await value(made[0]) == 42


async def test_children_of_a_cancelled_attempt_never_exist(engine: Engine) -> None:
    """What a cancelled attempt submitted goes with it."""
    started = asyncio.Event()
    children: list[Any] = []

    @engine.task
    async def orphan() -> None: ...

    @engine.task
    async def cancelled_parent(ctx: Context) -> Any:
        children.append(ctx.submit(orphan))
        started.set()
        await asyncio.sleep(3600)

    handle = await engine.submit(cancelled_parent)
    await started.wait()
    assert await handle.cancel() in ("requested", "cancelled")
    with pytest.raises(Exception, match="cancelled"):
        await value(handle)
    with pytest.raises(TaskNotFound):
        await engine.handle(children[0].id).info()


async def test_http_counts_its_bytes(engine: Engine) -> None:
    """`ctx.http` is an ordinary client; what the attempt moved through it is in its metrics."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\nconnection: close\r\n\r\n" + b"x" * 5000)
        await writer.drain()
        writer.close()

    @engine.task(retry=0)
    async def download(url: str, ctx: Context) -> int:
        return len((await ctx.http.get(url)).content)

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        handle = await engine.submit(download, f"http://127.0.0.1:{port}/")
        assert await value(handle) == 5000
    moved = (await engine.manager.get_task_result(handle.id)).metrics.network_bytes
    assert moved is not None
    assert moved >= 5000


async def test_built_in_operations_as_children(engine: Engine) -> None:
    """`ctx.submit` takes what `engine.submit` takes: a built-in operation and its options."""

    @engine.task(retry=0)
    async def tidy(text: str, ctx: Context) -> Any:
        return ctx.submit(engine.text, text, "normalize")

    assert await value(await engine.submit(tidy, " a   b ")) == "a b"
