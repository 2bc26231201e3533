"""Lines of the log: which task they concern, in each lane, and as JSON."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Worker
from tests.engine.support import SOON, engine_on, value
from tests.telemetry import logged

from mainspring import Context, Engine, Permanent, ProcessingFailed
from mainspring.processors.context import current
from mainspring.store.base import COMPLETED, Claimed, Finish
from mainspring.telemetry.logs import JsonFormatter, OfRunningTask

pytestmark = pytest.mark.anyio
LANES = ("async", "thread", "process")


@pytest.fixture
async def engine(anyio_backend: str) -> AsyncIterator[Engine]:
    async with engine_on(process_slots=1) as engine:
        yield engine


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What handlers write, from INFO on."""
    with caplog.at_level(logging.INFO, "mainspring.handler"):
        yield caplog


async def tell(secret: str, ctx: Context) -> None:
    logged.tell(secret, ctx)


async def named(ctx: Context) -> None:
    logged.named(ctx)


def only(lines: pytest.LogCaptureFixture) -> Any:
    (line,) = [line for line in lines.records if line.name == "mainspring.handler"]
    return line


@pytest.mark.parametrize("lane", LANES)
async def test_a_handlers_line_names_its_task(engine: Engine, lines: pytest.LogCaptureFixture, lane: Any) -> None:
    """In every lane it has the task's labels and the call's own `extra`, and is logged in this process."""
    handler = engine.task(name="tell", lane=lane)(tell if lane == "async" else logged.tell)
    handle = await engine.submit(handler, "hush", group="tenant", namespace="shop")
    await value(handle)
    line = only(lines)
    assert (line.levelno, line.getMessage(), line.length) == (logging.INFO, "told 4 characters", 4)
    assert (line.task_id, line.attempt, line.type) == (str(handle.id), 1, "custom:tell")
    assert line.namespace == "shop"
    assert lane != "process" or (line.group, Path(line.pathname).name, line.funcName) == ("tenant", "logged.py", "tell")


@pytest.mark.parametrize("group", ["tenant", None])
@pytest.mark.parametrize("lane", LANES)
async def test_fields_that_have_the_names_of_the_engines(
    engine: Engine, lines: pytest.LogCaptureFixture, lane: Any, group: str | None
) -> None:
    """In every lane those say which task it is, also where that has none of such a name; the others stand beside."""
    handler = engine.task(name="named", lane=lane)(named if lane == "async" else logged.named)
    handle = await engine.submit(handler, group=group)
    await value(handle)
    line = vars(only(lines))
    assert (line["task_id"], line["attempt"], line["type"]) == (str(handle.id), 1, "custom:named")
    assert (line.get("group"), "trace_id" in line) == (group, False)
    own = {name: line[f"extra_{name}"] for name in ("task_id", "attempt", "type", "group", "trace_id")}
    assert own == {"task_id": "mine", "attempt": 9, "type": "mine", "group": "mine", "trace_id": "mine"}


async def test_a_traceback_comes_across(engine: Engine, lines: pytest.LogCaptureFixture) -> None:
    """What a child logs with its exception is logged with it here."""
    await value(await engine.submit(engine.task(lane="process")(logged.fail)))
    assert "ValueError: what went wrong" in json.loads(JsonFormatter().format(only(lines)))["exception"]
    assert "ValueError: what went wrong" in logging.Formatter().format(only(lines))


async def test_a_line_from_a_thread_of_the_handler(engine: Engine, lines: pytest.LogCaptureFixture) -> None:
    """It names the task as well, also in a child."""
    handle = await engine.submit(engine.task(lane="process")(logged.aside))
    await value(handle)
    assert only(lines).task_id == str(handle.id)


@pytest.mark.parametrize("level", [logging.DEBUG, logging.WARNING])
async def test_the_level_is_this_processs(
    engine: Engine, caplog: pytest.LogCaptureFixture, level: int, anyio_backend: str
) -> None:
    """What this log would not take is not in it, and what it takes comes across."""
    with caplog.at_level(level, "mainspring.handler"):
        await value(await engine.submit(engine.task(lane="process")(logged.tell), "hush"))
    assert len([line for line in caplog.records if line.name == "mainspring.handler"]) == (level == logging.DEBUG)


async def test_the_engines_own_lines_name_the_task(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """As what is said of an outcome that came too late."""
    claim = Claimed(bytes(16), 2, "custom:tell", b"", seq=1, class_key=("default", "custom:tell", "tenant"))
    engine.manager.lost([Finish(claim, COMPLETED, 0)])
    (line,) = caplog.records
    assert vars(line).items() >= claim.labels().items()
    assert claim.labels()["group"] == "tenant"


async def test_attempts_that_did_not_complete(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """At INFO each has a line, with its outcome and the type of its error, and nothing that was worked on."""

    @engine.task(retry=SOON)
    async def flaky(secret: str, ctx: Context) -> None:
        if ctx.attempt == 1:
            raise ValueError(f"no {secret}")
        if ctx.attempt == 2:
            raise Permanent(f"never {secret}")

    with caplog.at_level(logging.INFO, "mainspring.dispatch"):
        handle = await engine.submit(flaky, "hush-hush")
        with pytest.raises(ProcessingFailed):
            await value(handle)
    lines: list[Any] = [line for line in caplog.records if line.name == "mainspring.dispatch"]
    told = [(line.task_id, line.attempt, line.type, line.outcome, line.error_type) for line in lines]
    assert told == [
        (str(handle.id), 1, "custom:flaky", "retry", "ValueError"),
        (str(handle.id), 2, "custom:flaky", "failed", "Permanent"),
    ]
    assert "hush" not in "".join(JsonFormatter().format(line) for line in lines)


def test_json_says_whatever_a_record_holds() -> None:
    """Values that JSON has no word for are text; no line is lost for them."""
    record = logging.makeLogRecord(
        {"msg": "%s", "args": ("\udc80",), "nan": float("nan"), "of": {1}, "levelname": "INFO"}
    )
    line = json.loads(JsonFormatter().format(record))
    assert (line["message"], line["nan"], line["of"], line["level"]) == ("\udc80", "nan", "{1}", "info")
    assert line["time"].endswith("+00:00")


async def test_libraries_lines_get_the_task(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """Through the filter, while a handler runs; what has a task keeps it."""
    caplog.handler.addFilter(OfRunningTask())
    handle = await engine.submit(engine.task(lane="thread")(logged.library))
    await value(handle)
    (line,) = [line for line in caplog.records if line.name == "some.library"]
    assert vars(line)["task_id"] == str(handle.id)
    assert vars(line)["type"] == "custom:library"
    assert (vars(line)["extra_type"], vars(line)["extra_group"], "group" in vars(line)) == ("GET", "pool", False)
    record = logging.makeLogRecord({"task_id": "another"})
    token = current.set(Context(bytes(16), 1, print))
    try:
        assert OfRunningTask().filter(record)
    finally:
        current.reset(token)
    assert vars(record)["task_id"] == "another"


def test_a_worker_writes_json(tmp_path: Path) -> None:
    """`--log-format json`: nothing else is on stderr, and no payload."""
    worker = Worker(tmp_path, f"{logged.__file__}:engine", "--log-format", "json", "--log-level", "info")
    submit = [sys.executable, "-m", "mainspring", "submit", "--wait", "--json"]
    for kind, given in (("custom:tell", '{"secret": "hush-hush"}'), ("custom:library", "{}")):
        done = subprocess.run([*submit, kind, given], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    worker.signal(signal.SIGTERM)
    answer = worker.end()
    said = [json.loads(line) for line in answer.err.splitlines()]
    told = next(line for line in said if line["logger"] == "mainspring.handler")
    assert (told["message"], told["type"], told["attempt"]) == ("told 9 characters", "custom:tell", 1)
    assert next(line for line in said if line["logger"] == "some.library")["type"] == "custom:library"
    assert {line["logger"] for line in said} == {"mainspring.worker", "mainspring.handler", "some.library"}
    assert "hush-hush" not in answer.err
