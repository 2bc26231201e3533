"""OpenAI-compatible endpoints, against a real HTTP server on the loopback."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from mainspring.errors import InvalidInput, ProcessingFailed, ResourceLimitExceeded, TaskTimeout
from mainspring.models import HttpEndpoint, ModelManager
from mainspring.tasks import ModelInput

KEY = "sk-never-shown"
Reply = tuple[int, dict[str, str], bytes]


class Server(ThreadingHTTPServer):
    """Answers with what `reply` makes of the request, and remembers the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.reply: Callable[[str, Any], Reply] = answer

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append((self.path, headers, body))
        status, extra, data = self.server.reply(self.path, body)
        self.send_response(status)
        for name, value in {**extra, "content-length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


def answer(path: str, body: Any) -> Reply:
    if path == "/v1/embeddings":
        rows = [{"index": number, "embedding": [3.0, 4.0 + len(text)]} for number, text in enumerate(body["input"])]
        return 200, {}, json.dumps({"data": rows[::-1]}).encode()  # in another order, as the protocol allows
    text = body["messages"][-1]["content"].upper()
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return 200, {}, json.dumps({"choices": [choice], "usage": {"total_tokens": 7}}).encode()


def refuse(status: int, headers: dict[str, str] | None = None) -> Callable[[str, Any], Reply]:
    return lambda path, body: (status, headers or {}, b'{"error": "because"}')


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def models(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelManager]:
    monkeypatch.setenv("TEST_MODEL_KEY", KEY)
    manager = ModelManager()
    manager.register("chat", HttpEndpoint(base_url=server.url, model="big", api_key_env="TEST_MODEL_KEY"))
    manager.register("vectors", HttpEndpoint(base_url=server.url, model="small", api="embeddings", max_batch=2))
    yield manager
    manager.close()


def infer(models: ModelManager, model_id: str, *inputs: ModelInput, **params: Any) -> list[Any]:
    for input in inputs:
        models.check(model_id, input, params)
    with models.acquire(model_id) as model:
        answers = model.infer_batch(inputs, params)
    return [one if isinstance(one, Exception) else one.outputs for one in answers]


def test_chat(models: ModelManager, server: Server) -> None:
    """Messages or a text go out with the options and the key; text, reason and usage come back."""
    conversation = [{"role": "system", "content": "shout"}, {"role": "user", "content": "hello"}]
    inputs = ModelInput(messages=conversation), ModelInput(text="world")
    first, second = infer(models, "chat", *inputs, temperature=0.0, options={"n": 1})
    assert first == {"text": "HELLO", "finish_reason": "stop", "usage": {"total_tokens": 7}}
    assert second["text"] == "WORLD"
    path, headers, body = server.requests[0]
    assert (path, headers["authorization"]) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert body == {"model": "big", "messages": conversation, "temperature": 0.0, "n": 1}


def test_embeddings(models: ModelManager, server: Server) -> None:
    """Texts go out in requests of limited size; rows come back in the order of the texts, unit length."""
    with models.acquire_embedding("vectors") as model:
        vectors, truncated = model.embed(["", "a", "abc"])
        raw, _ = model.embed(["abc"], normalize=False)
        assert model.embed([])[0].shape == (0, 2)
    expected = np.array([[3, 4], [3, 5], [3, 7]], np.float32)
    assert np.allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True))
    assert raw.tolist() == [[3.0, 7.0]]
    assert truncated == ()
    assert [len(body["input"]) for _, _, body in server.requests] == [2, 1, 1]
    assert "authorization" not in server.requests[0][1]


@pytest.mark.parametrize(
    ("header", "low", "high"), [("7", 7, 7), ("0.5", 0.5, 0.5), ("soon", None, None), (None, None, None)]
)
def test_too_many_requests(models: ModelManager, server: Server, header: str | None, low: float, high: float) -> None:
    """429 is worth another try, after what the server asks for."""
    server.reply = refuse(429, {"retry-after": header} if header else {})
    (error,) = infer(models, "chat", ModelInput(text="x"))
    assert isinstance(error, ResourceLimitExceeded)
    assert error.is_retryable
    assert error.retry_after == low == high


def test_retry_after_as_a_date(models: ModelManager, server: Server) -> None:
    """Retry-After may be a date: the difference from now counts."""
    at = datetime.now(UTC) + timedelta(hours=1)
    server.reply = refuse(503, {"retry-after": format_datetime(at, usegmt=True)})
    (error,) = infer(models, "chat", ModelInput(text="x"))
    assert isinstance(error, ResourceLimitExceeded)
    assert error.retry_after is not None
    assert 3000 < error.retry_after <= 3600


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_refusals_are_final(models: ModelManager, server: Server, status: int) -> None:
    """Other 4xx answers won't change by trying again; the message carries the server's own words."""
    server.reply = refuse(status)
    (error,) = infer(models, "chat", ModelInput(text="x"))
    assert isinstance(error, InvalidInput)
    assert not error.is_retryable
    assert f"{status}: " in str(error)
    assert "because" in str(error)


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"choices": []}', b"[]"])
def test_nonsense_is_a_typed_error(models: ModelManager, server: Server, body: bytes) -> None:
    """An answer that isn't the protocol's fails the item, retryably."""
    server.reply = lambda path, sent: (200, {}, body)
    (error,) = infer(models, "chat", ModelInput(text="x"))
    assert isinstance(error, ProcessingFailed)
    with models.acquire_embedding("vectors") as model, pytest.raises(ProcessingFailed):
        model.embed(["x"])


def test_one_bad_item_fails_alone(models: ModelManager, server: Server) -> None:
    """An item that the server refuses leaves its neighbours alone."""
    server.reply = lambda path, body: (
        refuse(400)(path, body) if body["messages"][0]["content"] == "bad" else answer(path, body)
    )
    first, second, third = infer(models, "chat", *(ModelInput(text=text) for text in ("a", "bad", "b")))
    assert (first["text"], third["text"]) == ("A", "B")
    assert isinstance(second, InvalidInput)


def test_nobody_there(models: ModelManager, server: Server) -> None:
    """A closed port is worth another try; silence is a timeout."""
    gate = threading.Event()

    def silent(path: str, body: Any) -> Reply:
        gate.wait(30)
        return 200, {}, b"{}"

    server.reply = silent
    models.register("slow", HttpEndpoint(base_url=server.url, model="m", timeout_s=0.2))
    models.register("gone", HttpEndpoint(base_url="http://127.0.0.1:1/v1", model="m"))
    (late,) = infer(models, "slow", ModelInput(text="x"))
    gate.set()
    (gone,) = infer(models, "gone", ModelInput(text="x"))
    assert isinstance(late, TaskTimeout)
    assert isinstance(gone, ResourceLimitExceeded)


def test_the_key_is_never_shown(
    models: ModelManager, server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither errors nor logs nor the settings' own text carry it; a missing variable is named."""
    caplog.set_level(logging.DEBUG)
    endpoint = HttpEndpoint(base_url=server.url, model="m", api_key=lambda: KEY + "\n")
    models.register("callable", endpoint)
    server.reply = lambda path, body: (401, {}, f"wrong key {KEY}".encode())
    for model_id in ("chat", "callable"):
        (error,) = infer(models, model_id, ModelInput(text="x"))
        assert "wrong key" in str(error)
        assert KEY not in str(error)
    assert [headers["authorization"] for _, headers, _ in server.requests] == [f"Bearer {KEY}"] * 2
    assert KEY not in caplog.text + repr(endpoint)
    for broken in (None, f"{KEY}\nX-Other: 1", f"{KEY}é"):
        monkeypatch.setenv("TEST_MODEL_KEY", broken) if broken else monkeypatch.delenv("TEST_MODEL_KEY")
        (error,) = infer(models, "chat", ModelInput(text="x"))
        assert isinstance(error, InvalidInput)
        assert "TEST_MODEL_KEY" in str(error)
        assert KEY not in str(error)


@pytest.mark.parametrize(
    ("model_id", "input", "params"),
    [
        ("chat", ModelInput(arrays={"x": [1]}), {}),
        ("chat", ModelInput(text=["several"]), {}),
        ("chat", ModelInput(messages=["hello"]), {}),
        ("chat", ModelInput(text="x"), {"top_k": 2}),
        ("vectors", ModelInput(messages=[]), {}),
        ("vectors", ModelInput(text="x"), {"temperature": 1.0}),
    ],
)
def test_refused_at_submit(models: ModelManager, model_id: str, input: ModelInput, params: dict[str, Any]) -> None:
    """What the endpoint's kind doesn't read is refused without a request."""
    with pytest.raises(InvalidInput):
        models.check(model_id, input, params)


def test_contradictory_settings() -> None:
    """Two keys, or an address that is none, fail when the endpoint is declared."""
    for address in ("ftp://x", "http://", "http://host:port", "https://user:secret@host/v1", "host/v1"):
        with pytest.raises(InvalidInput):
            HttpEndpoint(base_url=address, model="m")
    with pytest.raises(InvalidInput):
        HttpEndpoint(base_url="http://x", model="m", api_key_env="A", api_key=lambda: "b")
