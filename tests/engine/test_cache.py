"""The result cache as users meet it: declared on a handler or asked for in a call."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import apsw
import pytest
from tests.models.conftest import text_model
from tests.models.test_http import Server

from mainspring import (
    Batch,
    Binary,
    Context,
    Engine,
    InvalidInput,
    ProcessingFailed,
    Task,
    TaskType,
    Text,
    UnsupportedTaskType,
)
from mainspring.models import HttpEndpoint, ModelInfo
from mainspring.models.base import Model
from mainspring.models.sources import FolderSource
from mainspring.results import cache
from mainspring.store.base import WorkName

pytestmark = pytest.mark.anyio
RUNS: list[Any] = []


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    RUNS.clear()
    async with Engine(tmp_path / "work.db") as engine:
        yield engine


async def is_hit(engine: Engine, handle: Any) -> bool:
    return (await engine.manager.get_task_result(handle.id)).metrics.cache_hit


async def test_an_equal_call_takes_what_is_kept(engine: Engine) -> None:
    """However its arguments are written, and whether their order differs; what is not equal runs."""

    @engine.task(cache="1h")
    def weigh(words: dict[str, int], factor: int = 2) -> int:
        RUNS.append(words)
        return factor * sum(words.values())

    first = await engine.submit(weigh, {"a": 1, "b": 2}, 3)
    assert await first.result() == 9
    again = await engine.submit(weigh, factor=3, words={"b": 2, "a": 1})
    assert await again.result() == 9
    assert await is_hit(engine, again)
    assert await (await engine.submit(weigh, {"a": 1, "b": 2})).result() == 6
    assert len(RUNS) == 2


async def test_keys_of_several_kinds_have_no_order(engine: Engine) -> None:
    """Such arguments are equal where they were written alike."""

    @engine.task(cache="1h")
    def weigh(words: dict[Any, int]) -> int:
        RUNS.append(words)
        return sum(words.values())

    for words in ({1: 1, "b": 2}, {1: 1, "b": 2}, {1: 1, "c": 2}):
        assert await (await engine.submit(weigh, words)).result() == 3
    assert RUNS == [{1: 1, "b": 2}, {1: 1, "c": 2}]


async def test_it_is_kept_over_a_restart(tmp_path: Path) -> None:
    """The next process finds it, in the same file."""
    RUNS.clear()
    for _ in range(2):
        async with Engine(tmp_path / "work.db") as engine:
            engine.task(name="twice", cache="7d")(_twice)
            assert await (await engine.submit(_twice, 4)).result() == 8
    assert RUNS == [4]


@pytest.mark.parametrize("garbage", ["x'c1c1'", "x'01'", "x''"])
async def test_what_can_not_be_read_is_not_kept(tmp_path: Path, garbage: str) -> None:
    """A kept result that is damaged is computed again, and kept again."""
    RUNS.clear()
    path = tmp_path / "work.db"
    for sql in (None, f"UPDATE cache SET output = {garbage}", None):
        if sql is not None:
            with closing(apsw.Connection(str(path))) as connection:
                connection.execute(sql)
        async with Engine(path) as engine:
            engine.task(name="twice", cache="7d")(_twice)
            assert await (await engine.submit(_twice, 4)).result() == 8
    assert RUNS == [4, 4]


def _twice(x: int) -> int:
    RUNS.append(x)
    return 2 * x


async def test_equal_calls_under_way_run_once(engine: Engine) -> None:
    """Those that come meanwhile wait for the first; `explain` says so."""
    go, began = asyncio.Event(), asyncio.Event()

    @engine.task(cache="1h")
    async def wait(x: int) -> int:
        RUNS.append(x)
        began.set()
        await go.wait()
        return x

    handles = await engine.map(wait, [7] * 300)
    await began.wait()
    assert str(handles[0].id) in await handles[1].explain()
    go.set()
    assert {await handle.result() for handle in handles} == {7}
    assert RUNS == [7]
    assert [await is_hit(engine, handle) for handle in handles[:2]] == [False, True]


async def test_what_waits_for_a_paused_one_says_so(engine: Engine) -> None:
    """Equal work in another group follows it; it runs on resume, or as soon as the paused one is cancelled."""

    @engine.task(cache="1h")
    async def double(x: int) -> int:
        return 2 * x

    await engine.manager.pause(group="paused")
    held = [await engine.submit(double, n, group="paused") for n in (1, 2)]
    others = [await engine.submit(double, n, group="other") for n in (1, 2)]
    assert await others[0].explain() == (
        f"Task {held[0].id} (paused) does the same work; what comes of it will do for this one too."
    )
    assert await held[0].cancel() == "cancelled"
    assert await others[0].result(timeout=60) == 2
    await engine.manager.resume(group="paused")
    assert [await handle.result(timeout=60) for handle in (held[1], others[1])] == [4, 4]


async def test_results_of_parents_are_compared_when_they_are_known(engine: Engine) -> None:
    """What a task does is known with its parents' results: equal ones run once, in whatever lane."""

    @engine.task
    def number(text: str) -> int:
        return int(text)

    @engine.task(cache="1h")
    def square(x: int) -> int:
        RUNS.append(x)
        return x * x

    numbers = await engine.map(number, ["3", " 3", "3 ", "4"])
    squares = await engine.map(square, numbers)
    assert [await handle.result() for handle in squares] == [9, 9, 9, 16]
    assert sorted(RUNS) == [3, 4]


async def test_only_what_is_not_kept_is_in_a_batch(engine: Engine) -> None:
    """Items of a call that are known already are left out of it."""

    @engine.task(batch=Batch(max_size=50, max_wait="50ms"), cache="1h")
    def lengths(texts: list[str]) -> list[int]:
        RUNS.extend(texts)
        return [len(text) for text in texts]

    assert await (await engine.submit(lengths, "known")).result() == 5
    handles = await engine.map(lengths, ["known", "a", "bb", "a", "known"])
    assert [await handle.result() for handle in handles] == [5, 1, 2, 1, 5]
    assert sorted(RUNS) == ["a", "bb", "known"]


async def test_failures_are_shared_and_not_kept(engine: Engine) -> None:
    """A call that fails in the end fails for those who waited; the next one tries again."""

    @engine.task(cache="1h", retry=0)
    async def fail(x: int) -> int:
        RUNS.append(x)
        await asyncio.sleep(0.01)
        raise ValueError("no such thing")

    for _ in range(2):
        handles = await engine.map(fail, [1, 1])
        for handle in handles:
            with pytest.raises(ProcessingFailed, match="no such thing"):
                await handle.result()
    assert RUNS == [1, 1]


async def test_what_makes_children_is_run_for_each(engine: Engine) -> None:
    """A result that stands for other tasks, or came with some, belongs to one task."""

    @engine.task
    def leaf(x: int) -> int:
        return x

    @engine.task(cache="1h")
    def tree(x: int, ctx: Context) -> list[Any]:
        RUNS.append(x)
        return [ctx.submit(leaf, x), ctx.submit(leaf, x + 1)]

    handles = await engine.map(tree, [1, 1])
    assert [await handle.result() for handle in handles] == [[1, 2], [1, 2]]
    assert RUNS == [1, 1]


@pytest.mark.parametrize("lane", ["async", "thread"])
async def test_what_stores_children_at_once_is_run_for_each(engine: Engine, lane: str) -> None:
    """They are in the store when it returns, and still belong to one task."""
    engine.task(_leaf)
    sow = engine.task(cache="1h")(_sow if lane == "async" else _sow_blocking)
    handles = await engine.map(sow, [1, 1])
    assert [await handle.result() for handle in handles] == [1, 1]
    assert [await is_hit(engine, handle) for handle in handles] == [False, False]
    assert sum((await engine.manager.stats())["types"]["custom:_leaf"].values()) == 2


def _leaf(x: int) -> int:
    return x


async def _sow(x: int, ctx: Context) -> int:
    await ctx.submit(_leaf, x, now=True)
    return x


def _sow_blocking(x: int, ctx: Context) -> int:
    ctx.submit(_leaf, x, now=True)
    return x


async def test_another_version_or_source_is_other_work(tmp_path: Path) -> None:
    """Changed code misses what the old one left, also where its version was not changed."""
    RUNS.clear()
    for version, function in (("1", _one), ("2", _one), ("1", _changed), ("1", _one)):
        async with Engine(tmp_path / "work.db") as engine:
            engine.task(name="work", version=version, cache="1h")(function)
            await (await engine.submit(function, 1)).result()
    assert RUNS == ["one", "one", "changed"]


def _one(x: int) -> int:
    RUNS.append("one")
    return x


def _changed(x: int) -> int:
    RUNS.append("changed")
    return x


async def test_never_across_namespaces(engine: Engine) -> None:
    """A tenant never sees, not even by its speed, what another has had computed."""
    engine.task(name="twice", cache="1h")(_twice)
    for namespace in ("a", "b", "a"):
        await (await engine.submit(_twice, 4, namespace=namespace)).result()
    assert RUNS == [4, 4]


async def test_large_results_are_kept_too(engine: Engine) -> None:
    """A blob is shared, not copied; every task has it."""

    @engine.task(cache="1h")
    def large(n: int) -> bytes:
        RUNS.append(n)
        return bytes(n)

    handles = [await engine.submit(large, 300_000) for _ in range(3)]
    assert [await handle.result() for handle in handles] == [bytes(300_000)] * 3
    assert RUNS == [300_000]
    (kept,) = await engine.cache.stats()
    assert kept.bytes > 300_000


def _only_blob(folder: Path) -> Path:
    (file,) = folder.glob("??/*")
    return file


@pytest.mark.parametrize("how", ["gone", "changed"])
@pytest.mark.parametrize("is_known", [True, False], ids=["at submit", "at a claim"])
async def test_a_large_result_that_is_lost_is_computed_again(
    tmp_path: Path, engine: Engine, caplog: pytest.LogCaptureFixture, is_known: bool, how: str
) -> None:
    """Its file is gone or damaged: what would have taken it does the work, and says so in the log."""

    @engine.task(cache="1h")
    def large(n: int) -> bytes:
        RUNS.append(n)
        return bytes(n)

    @engine.task
    def size() -> int:
        return 300_000

    first = await engine.submit(large, 300_000)
    assert await first.result() == bytes(300_000)
    file = _only_blob(tmp_path / "work.db-blobs")
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(bytes(file.stat().st_size))
    again = await engine.submit(large, 300_000 if is_known else await engine.submit(size))
    assert await again.result() == bytes(300_000)
    assert not await is_hit(engine, again)
    assert RUNS == [300_000] * 2
    assert "a kept result can't be read and is forgotten" in caplog.text
    assert await first.result() == bytes(300_000)  # the file is whole again
    assert await is_hit(engine, await engine.submit(large, 300_000))


async def test_a_call_says_for_itself(engine: Engine) -> None:
    """`cache=` in a call goes before what was declared; 0 computes anew and leaves what is kept."""
    engine.task(name="twice")(_twice)
    await (await engine.submit(_twice, 1)).result()
    await (await engine.submit(_twice, 1, cache="1h")).result()
    await (await engine.submit(_twice, 1, cache=0)).result()
    await (await engine.submit(_twice, 1, cache=60)).result()
    assert RUNS == [1, 1, 1]


async def test_purge_and_stats(engine: Engine) -> None:
    """What is kept can be looked at by type and version, and forgotten."""
    engine.task(name="twice", version="v3", cache="1h")(_twice)
    for x in (1, 2, 3):
        await (await engine.submit(_twice, x)).result()
    (kept,) = await engine.cache.stats()
    assert (kept.type, kept.version, kept.entries) == ("custom:twice", "v3", 3)
    assert await engine.cache.purge(type="custom:twice", version="v3") == 3
    await (await engine.submit(_twice, 1)).result()
    assert RUNS == [1, 2, 3, 1]


@pytest.mark.parametrize("named", ["custom:twice", "twice", TaskType.custom("twice"), _twice])
async def test_purge_by_the_names_that_users_have_for_a_type(engine: Engine, named: Any) -> None:
    """As tasks have it, the handler's name, or the handler; what nobody else forgets stays."""
    engine.task(name="twice", cache="1h")(_twice)
    await (await engine.submit(_twice, 1)).result()
    await (await engine.submit(engine.text, "Some  text", cache="1h")).result()
    assert await engine.cache.purge(type=named) == 1
    assert [kept.type for kept in await engine.cache.stats()] == ["text_processing"]
    assert await engine.cache.purge(type=TaskType.TEXT_PROCESSING) == 1


@pytest.mark.parametrize("nothing", [0, None, False, [], b"", 0.0, 3])
async def test_purge_of_what_is_no_type_forgets_nothing(engine: Engine, nothing: Any) -> None:
    """Only a type that is left out stands for all."""
    engine.task(name="twice", cache="1h")(_twice)
    await (await engine.submit(_twice, 1)).result()
    with pytest.raises(InvalidInput, match=r"^type = .*: is no type of tasks; .*leave it out for all types") as caught:
        await engine.cache.purge(type=nothing)
    assert (caught.value.field, caught.value.value) == ("type", nothing)
    assert await engine.cache.purge() == 1


async def test_purge_of_a_type_that_nobody_knows(tmp_path: Path, engine: Engine) -> None:
    """It is refused, with the types that are known here or in the store, and nothing is forgotten."""
    engine.task(name="twice", cache="1h")(_twice)
    await (await engine.submit(_twice, 1)).result()
    async with Engine(tmp_path / "work.db", worker=False) as other:
        with pytest.raises(
            UnsupportedTaskType, match=r"'thrice'.* known are custom:twice, data_retrieval, "
        ) as refused:
            await other.cache.purge(type="thrice")
        assert (refused.value.field, refused.value.value) == ("type", "thrice")
        with pytest.raises(UnsupportedTaskType):
            await other.cache.purge(type="custom:thrice")
        with pytest.raises(InvalidInput, match="is not registered"):
            await other.cache.purge(type=_judge)
        assert len(await other.cache.stats()) == 1
        assert await other.cache.purge(type="twice") == 1


async def test_built_in_types(engine: Engine) -> None:
    """Text and embeddings are kept by model and params; equal embeddings are computed once."""
    first = await engine.submit(engine.embed, "a sentence", cache="1h")
    second = await engine.submit(engine.embed, "a sentence", cache="1h")
    other = await engine.submit(engine.embed, "a sentence", normalize=False, cache="1h")
    vectors = [await handle.result() for handle in (first, second, other)]
    assert (vectors[0] == vectors[1]).all()
    assert [await is_hit(engine, handle) for handle in (first, second, other)] == [False, True, False]
    texts = [await engine.submit(engine.text, "Some  text", cache="1h") for _ in range(2)]
    assert [await text.result() for text in texts] == ["Some text"] * 2
    assert await is_hit(engine, texts[1])


@pytest.mark.parametrize("biases", [{1: 5, "a": 2}, {1: 5, 2: 7}])
async def test_params_whose_keys_have_no_order(engine: Engine, biases: dict[Any, int]) -> None:
    """They are equal where they were written alike, at submit and when the input comes from a parent."""
    with Server() as server:
        engine.models.register("chat", HttpEndpoint(base_url=server.url, model="m"))
        parent = await engine.submit(engine.text, "hello")
        for text in ("hello", "hello", parent):
            options = {"logit_bias": dict(biases)}
            handle = await engine.submit(engine.infer, "chat", text, options=options, cache="1h")
            assert (await handle.result())["text"] == "HELLO"
        assert await is_hit(engine, handle)
        other = await engine.submit(engine.infer, "chat", "hello", options={"logit_bias": {**biases, 1: 6}}, cache="1h")
        await other.result()
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("task", "names"),
    [
        (Task(task_type=TaskType.DATA_STORAGE, input=Binary(b"x"), cache=60), "more than its input"),
        (Task(task_type=TaskType.TEXT_PROCESSING, input=Text("x"), cache="soon"), "no duration"),
        (Task(task_type=TaskType.TEXT_PROCESSING, input=Text("x"), cache=-1), "out of range"),
    ],
)
async def test_what_cannot_be_kept_is_refused(engine: Engine, task: Task, names: str) -> None:
    """At submit, with the field and the remedy."""
    with pytest.raises(InvalidInput, match=names) as refused:
        await engine.submit(task)
    assert refused.value.field == "cache"


async def test_a_model_that_nothing_tells_apart_is_refused(engine: Engine) -> None:
    """A Python object may change under the same id."""

    class Model:
        def infer(self, inputs: Any) -> Any:
            return inputs

    engine.models.register("mine", Model())
    with pytest.raises(InvalidInput, match="can't be told apart"):
        await engine.submit(engine.infer, "mine", "x", cache="1h")


def test_a_wrong_declaration_is_refused() -> None:
    """When it is declared, not when it is called."""
    with pytest.raises(InvalidInput, match="cache"):
        Engine().task(cache="a while")(_twice)


async def test_submitters_without_the_code_take_part(tmp_path: Path, engine: Engine) -> None:
    """They don't know what exactly will run: their tasks are compared when they are claimed."""
    engine.task(name="twice", cache="1h")(_twice)
    assert await (await engine.submit(_twice, 4)).result() == 8
    async with Engine(tmp_path / "work.db", worker=False) as submitter:
        from mainspring import Custom

        handle = await submitter.submit(Task(task_type=TaskType.custom("twice"), input=Custom({"x": 4})))
        assert await handle.result() == 8
        assert await is_hit(submitter, handle)
    assert RUNS == [4]


def test_the_key_is_of_all_that_counts() -> None:
    """Each part of a key matters: with one of them left out, different work would have one name."""
    executor = Engine().executor
    made = cache.ResultCache(executor, None)  # type: ignore[arg-type]  # no store is asked
    kind = TaskType.TEXT_PROCESSING
    base = (kind, "default", None, {"steps": ["fix"]}, b"\xa1a")
    names = {made.name(*base)}
    for place, other in ((1, "tenant"), (3, {"steps": ["normalize"]}), (4, b"\xa1b")):
        changed = list(base)
        changed[place] = other
        names.add(made.name(*changed))  # type: ignore[arg-type]
    names.add(made.name(TaskType.EMBEDDING_GENERATION, *base[1:]))
    assert len(names) == 5
    one_order, other_order = ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert made.name(*base[:3], one_order, b"\xa1a") == made.name(*base[:3], other_order, b"\xa1a")


def test_what_a_model_is_that_is_not_here_yet_is_not_known() -> None:
    """Tasks for it are compared once it is: never do two such models, or two revisions, have one name."""
    engine = Engine()
    engine.models.register("model", "hf:org/name")
    made = cache.ResultCache(engine.executor, None)  # type: ignore[arg-type]  # no store is asked
    assert made.name(TaskType.EMBEDDING_GENERATION, "default", "model", None, b"\xa1a") is None


@pytest.mark.parametrize("kind", [TaskType.TEXT_PROCESSING, TaskType.EMBEDDING_GENERATION, TaskType.MODEL_INFERENCE])
def test_the_key_of_a_built_in_type_is_of_what_exactly_does_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: TaskType
) -> None:
    """The release of Mainspring, the model's id, and its files, or where it answers: each is other work."""
    for folder, good in (("judge", 3.0), ("other", -3.0)):
        (tmp_path / folder).mkdir()
        _judge(tmp_path / folder, good)
    judge, other = tmp_path / "judge" / "judge", tmp_path / "other" / "judge"
    remote, elsewhere = "http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1"

    def name_by(source: Any, model_id: str = "model") -> WorkName:
        engine = Engine()
        engine.models.register(model_id, source)
        found = cache.ResultCache(engine.executor, None).name(kind, "default", model_id, {}, b"\xa1a")  # type: ignore[arg-type]  # no store is asked
        assert found is not None
        return found

    different = [
        name_by(judge),
        name_by(judge, "another"),
        name_by(other),
        name_by(HttpEndpoint(base_url=remote, model="m")),
        name_by(HttpEndpoint(base_url=remote, model="n")),
        name_by(HttpEndpoint(base_url=elsewhere, model="m")),
        name_by(HttpEndpoint(base_url=remote, model="m", api="embeddings")),
    ]
    assert name_by(judge) == different[0]
    assert {name.version for name in different} == {metadata.version("mainspring")}
    monkeypatch.setattr(cache, "_version", lambda: "another")
    different.append(name_by(judge))
    assert different[-1].version == "another"
    assert len({name.key for name in different}) == 8


def _asks(q: str, prompt: str = "old") -> str:
    RUNS.append(prompt)
    return f"{prompt}: {q}"


async def test_another_default_is_other_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a call leaves out counts like what it says, though the text of the function is the same."""
    RUNS.clear()
    for prompt in ("old", "new", "old"):
        monkeypatch.setattr(_asks, "__defaults__", (prompt,))
        async with Engine(tmp_path / "work.db") as engine:
            engine.task(cache="1h")(_asks)
            assert await (await engine.submit(_asks, "why")).result() == f"{prompt}: why"
    assert RUNS == ["old", "new"]


async def test_code_without_a_file_is_told_apart(tmp_path: Path) -> None:
    """Typed into an interpreter, or wrapped: what was loaded counts, where there is no source to read."""
    results = []
    for text in ("x + 1", "x + 2", "x + 1"):
        namespace: dict[str, Any] = {}
        exec(f"def plus(x: int) -> int:\n    return {text}\n", namespace)
        async with Engine(tmp_path / "work.db") as engine:
            function = engine.task(cache="1h")(namespace["plus"])
            handle = await engine.submit(function, 1)
            results.append((await handle.result(), await is_hit(engine, handle)))
    assert results == [(2, False), (3, False), (2, True)]


class _Callable:
    def __call__(self, x: int) -> int:
        return x


@pytest.mark.parametrize("function", [_Callable(), partial(_twice, x=1)], ids=["object", "partial"])
async def test_code_that_nothing_tells_apart_is_refused(engine: Engine, function: Any) -> None:
    """Its results would be kept over a change: at the declaration, and in a call."""
    with pytest.raises(InvalidInput, match="nothing tells its code"):
        engine.task(name="first", cache="1h")(function)
    engine.task(name="second")(function)
    with pytest.raises(InvalidInput, match="nothing tells its code"):
        await engine.submit(function, cache="1h")


async def test_a_child_that_finds_a_changed_file_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It runs what stands there now; kept under the name of what stood there it would be a lie."""
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "job_that_changes.py"
    file.write_text("def job(x: int) -> str:\n    return f'old {x}'\n")
    job = importlib.import_module("job_that_changes").job
    file.write_text("def job(x: int) -> str:\n    return f'newer {x}'\n")
    try:
        async with Engine(tmp_path / "work.db") as engine:
            engine.task(lane="process", cache="1h")(job)
            assert await (await engine.submit(job, 1)).result() == "newer 1"
            assert await engine.cache.stats() == []
    finally:
        del sys.modules["job_that_changes"]
    assert "custom:job was changed" in caplog.text


def _judge(folder: Path, good: float) -> None:
    """Write a model that says yes of what is good, or no."""
    table = {"good": [0.0, good], "bad": [1.0, 0.0]}
    text_model(folder / "judge", "BertForSequenceClassification", ["no", "yes"], table)


async def _judged(engine: Engine) -> tuple[str, bool]:
    handle = await engine.submit(engine.infer, "judge", "good", cache="1h")
    return (await handle.result())[0]["label"], await is_hit(engine, handle)


async def test_a_model_that_is_replaced_does_not_lend_its_name(tmp_path: Path) -> None:
    """What is loaded answers, and its results are kept as its own, not as those of the files that lie there now."""
    _judge(tmp_path, 3.0)
    async with Engine(tmp_path / "work.db") as engine:
        engine.models.register("judge", tmp_path / "judge")
        assert await _judged(engine) == ("yes", False)
        _judge(tmp_path, -3.0)
        assert await _judged(engine) == ("yes", True)
        await engine.cache.purge()
        assert await _judged(engine) == ("yes", False)
    async with Engine(tmp_path / "work.db") as engine:
        engine.models.register("judge", tmp_path / "judge")
        assert await _judged(engine) == ("no", False)


async def test_a_model_that_changes_before_it_is_loaded_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task was claimed under one name and is answered by another."""
    _judge(tmp_path, 3.0)
    monkeypatch.setattr(FolderSource, "prepare", lambda source: _judge(tmp_path, -3.0))
    async with Engine(tmp_path / "work.db") as engine:
        engine.models.register("judge", tmp_path / "judge")
        assert await _judged(engine) == ("no", False)
        assert await engine.cache.stats() == []


async def test_a_model_that_changes_while_it_is_loaded_is_loaded_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody could tell which of its files were read before and which after."""
    _judge(tmp_path, 3.0)
    load = FolderSource._load
    loads: list[str | None] = []

    def changed(source: FolderSource, info: ModelInfo) -> Model:
        model = load(source, info)
        if not loads:
            _judge(tmp_path, -3.0)
        loads.append(info.digest)
        return model

    monkeypatch.setattr(FolderSource, "_load", changed)
    async with Engine(tmp_path / "work.db") as engine:
        engine.models.register("judge", tmp_path / "judge")
        handle = await engine.submit(engine.infer, "judge", "good", max_retries=1)
        assert (await handle.result())[0]["label"] == "no"
    assert len(set(loads)) == 2
