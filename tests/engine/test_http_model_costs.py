"""What tasks of models behind HTTP cost: by what the answers say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from tests.engine.support import engine_on
from tests.models.test_http import Reply, Server, answer

from mainspring import InvalidInput, ModelInput, Task, TaskStatus, TaskType
from mainspring.models import HttpEndpoint
from mainspring.tasks import Text

pytestmark = pytest.mark.anyio


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        server.reply = costing
        yield server


def costing(path: str, body: Any) -> Reply:
    status, headers, data = answer(path, body)
    return status, headers, json.dumps({**json.loads(data), "usage": {"total_tokens": 5_000}}).encode()


def chat(**params: Any) -> Task:
    return Task(task_type=TaskType.MODEL_INFERENCE, input=ModelInput(text="q" * 38), model_id="chat", params=params)


async def test_answers_say_what_they_have_cost(server: Server) -> None:
    """So a debt is left, which the next task waits for; the bytes are counted too."""
    async with engine_on() as engine:
        engine.models.register("chat", HttpEndpoint(base_url=server.url, model="m"), cost_rate="1000/h")
        ended = await engine.manager.get_task_result((await engine.submit(chat())).id, timeout=30)
        assert ended.status is TaskStatus.COMPLETED
        body = server.requests[0][2]
        assert ended.metrics.network_bytes is not None
        assert ended.metrics.network_bytes > len(json.dumps(body, separators=(",", ":")))
        (limit,) = await engine.limits()
        assert limit.cost_left == pytest.approx(-4_000, abs=50)
        waiting = await engine.submit(chat())
        assert "1,000 cost an hour are used up, and" in await waiting.explain()
        assert (await waiting.info()).reason == "limit"


async def test_estimates_go_by_input_and_answer(server: Server) -> None:
    """A token for four bytes, and as many as the answer may have; what can never be there is no reason to refuse it, as
    nobody has said that it will cost so much."""
    async with engine_on() as engine:
        engine.models.register("chat", HttpEndpoint(base_url=server.url, model="m"), cost_rate="1000/h")
        await engine.manager.pause()
        assert (await (await engine.submit(chat(max_tokens=300))).info()).task.cost == 310
        assert (await (await engine.submit(chat(max_tokens=1_000))).info()).task.cost == 1_010
        picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 600_000}}
        message = {"role": "user", "content": [{"type": "text", "text": "what is it?"}, picture]}
        seen = await engine.submit(msgspec.structs.replace(chat(), input=ModelInput(messages=[message])))
        cost = (await seen.info()).task.cost
        assert cost is not None
        assert cost < 100
        with pytest.raises(InvalidInput) as caught:
            await engine.submit(msgspec.structs.replace(chat(), cost=1_001))
        assert caught.value.field == "cost"


async def test_embeddings_share_what_their_call_cost(server: Server) -> None:
    """Each task bears its part, by the length of its texts."""
    async with engine_on() as engine:
        endpoint = HttpEndpoint(base_url=server.url, model="m", api="embeddings")
        engine.models.register("far", endpoint, cost_rate="100000/h")
        await engine.manager.pause()
        handles = await engine.submit_all(
            [Task(task_type=TaskType.EMBEDDING_GENERATION, input=Text("x" * n), model_id="far") for n in (10, 40)]
        )
        await engine.manager.resume()
        for handle in handles:
            await handle.result()
        (limit,) = await engine.limits()
        assert limit.cost_left == pytest.approx(100_000 - 5_000 * len(server.requests), abs=100)


async def test_what_has_no_size_bears_equal_parts(server: Server) -> None:
    async with engine_on() as engine:
        endpoint = HttpEndpoint(base_url=server.url, model="m", api="embeddings")
        engine.models.register("far", endpoint, cost_rate="100000/h")
        task = Task(task_type=TaskType.EMBEDDING_GENERATION, input=Text(""), model_id="far")
        await (await engine.submit(task)).result()
        (limit,) = await engine.limits()
        assert limit.cost_left == pytest.approx(95_000, abs=100)
