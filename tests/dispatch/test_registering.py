"""Handlers that are registered by a call, as in `main()`: what a child process has of them; docs/lanes.md tells it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.dispatch import namesakes
from tests.engine.programs import Programs, call, serves
from tests.engine.support import until, value

from mainspring import Engine, InvalidInput, TaskHandle

pytestmark = pytest.mark.anyio
PROGRAM = Path(__file__).with_name("registering.py")
CHILD = "__mainspring_main__"
"""What the script is called in a child."""
NAMELESS = r"nameless.*: has no name by which a child process could tell .* top level of a module"
UNKNOWN = "unknown.*: is not registered; register it before"
NAMESAKE = r"job.*: has the name of several handlers \(newer, older\), .* give each function a name of its own"
NAME = "'times_ten': is a name, and no function; pass the function itself"


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    programs = Programs(tmp_path, str(tmp_path / "work.db"), PROGRAM)
    yield programs
    programs.end()


@pytest.fixture
async def client(programs: Programs) -> AsyncIterator[Engine]:
    async with programs.looking() as client:
        yield client


async def submitted(client: Engine, kind: str, max_retries: int = 0, **arguments: Any) -> TaskHandle:
    return await client.submit(msgspec.structs.replace(call(kind, **arguments), max_retries=max_retries))


async def test_suspects(programs: Programs, client: Engine) -> None:
    """They run in children, which know what the engine has registered; where they fail as that can't be told by a name,
    in their own lane, and are charged nothing for the way."""
    first = programs.start()
    await serves(client, "custom:in_child")
    cases: list[tuple[str, dict[str, Any], list[str], list[Any]]] = [
        ("submits_tenfold", {"what": "tenfold"}, ["completed"], [CHILD, 10]),
        ("submits_nameless", {"what": "nameless"}, ["released", "completed"], ["__main__", 100]),
        ("submits_older", {"what": "older"}, ["released", "completed"], ["__main__", 3]),
        ("does_without", {}, ["completed"], [CHILD]),
        ("submits_name", {"what": "name"}, ["failed"], [NAME]),
        ("submits_unknown", {"what": "unknown"}, ["failed"], [UNKNOWN]),
        ("submits_together", {"what": "nameless"}, ["released", "completed"], ["__main__", 100]),
        ("guarded", {}, ["completed"], ["__main__"]),
        ("wants_setting", {"max_retries": 1}, ["retry", "completed"], ["__main__", 1]),
    ]
    handles = []
    for n, (kind, arguments, _, _) in enumerate(cases):
        mark = programs.mark(f"began-{n}")
        arguments["marks" if kind == "submits_together" else "mark"] = str(mark)
        handles.append(await submitted(client, kind, **arguments))
        await until(mark.exists)
    first.kill()
    first.wait()
    programs.start()
    for (kind, arguments, outcomes, result), handle in zip(cases, handles, strict=True):
        if outcomes[-1] == "failed":
            with pytest.raises(InvalidInput, match=result[0]):
                await value(handle)
        else:
            assert await value(handle) == result, (kind, arguments)
        info = await handle.info()
        assert [attempt.outcome for attempt in info.attempts] == ["crashed", *outcomes], (kind, arguments)
        assert info.task.retry_count == outcomes.count("retry")


async def test_namesakes() -> None:
    """A child submits which function is meant, where decorators tell it, as any other lane does."""
    async with namesakes.engine as engine:
        for parent in (namesakes.here, namesakes.in_child):
            assert await value(await engine.submit(parent)) == ["raw 1", "twice raw 1", "first 1", "second 1"]


async def test_in_the_process_lane(programs: Programs, client: Engine) -> None:
    """A child submits what was registered by a call; what has no name of its own, and what is no handler, is refused at
    the call."""
    programs.start()
    await serves(client, "custom:in_child")
    for now in (False, True):
        assert await value(await submitted(client, "in_child", what="tenfold", now=now)) == [CHILD, 10]
    for what, why in (("nameless", NAMELESS), ("name", NAME), ("older", NAMESAKE), ("newer", NAMESAKE)):
        with pytest.raises(InvalidInput, match=why):
            await value(await submitted(client, "in_child", 1, what=what, now=False))
    begun = programs.mark("begun")
    begun.mkdir()
    assert await value(await submitted(client, "does_without_in_child", mark=str(begun))) == [CHILD]
