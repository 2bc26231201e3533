"""Models behind an OpenAI-compatible HTTP endpoint."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import msgspec

from mainspring.environment import SYSTEM
from mainspring.errors import InvalidInput, ProcessingFailed, ResourceLimitExceeded, TaskError, TaskTimeout, invalid
from mainspring.models import spending
from mainspring.models.base import BlockingModel, ModelInfo
from mainspring.models.inputs import check_params, check_texts, field_of, has_ref
from mainspring.models.python import no_tokens
from mainspring.models.sentence import Embedding, unit
from mainspring.tasks import ModelInput, ModelOutput

if TYPE_CHECKING:
    import httpx
    from numpy.typing import NDArray

CHAT_READS = frozenset(("temperature", "top_p", "max_tokens", "stop", "seed", "options"))
_BYTES_A_TOKEN = 4
_MOST_TOKENS = 1 << 30  # of an answer that is estimated
_PICTURE = re.compile(rb'"data:[^"]*"')
_TRY_LATER = frozenset((408, 409, 425, 429))


class HttpEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where an OpenAI-compatible server is and how to talk to it. The key itself is never kept, shown or logged."""

    base_url: str  # up to and without /chat/completions, as https://host/v1
    model: str  # its name over there
    api: Literal["chat", "embeddings"] = "chat"
    api_key_env: str | None = None  # name of the environment variable that holds the key
    api_key: Callable[[], str] | None = None  # or what returns it; asked before each request
    timeout_s: float = 60.0  # of connecting, and of each silence while reading
    max_batch: int = 64  # texts of one embeddings request

    def __post_init__(self) -> None:
        if not _is_address(self.base_url):
            remedy = "use one like https://host/v1, and api_key_env for the key"
            raise invalid("base_url", self.base_url, "is no plain http(s) address", remedy)
        if self.api_key is not None and self.api_key_env is not None:
            raise invalid("api_key_env", self.api_key_env, "and api_key are both given", "give one of them")

    def key(self) -> str | None:
        """Return the key as it is now. Raises InvalidInput, without showing it, where it can't be a key."""
        if self.api_key is None and self.api_key_env is None:
            return None
        found = self.api_key() if self.api_key is not None else os.environ.get(str(self.api_key_env), "")
        key = found.strip()  # keys read from files end in a newline
        if not (key and key.isascii() and key.isprintable()):
            field = "api_key" if self.api_key_env is None else "api_key_env"
            raise invalid(field, self.api_key_env, "holds no key", "set it to the key of that server")
        return key


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None and parts.port != 0
    except ValueError:
        return False


class _Connection:
    """Posts JSON and turns what goes wrong into our errors. Safe to use from several threads."""

    def __init__(self, endpoint: HttpEndpoint) -> None:
        import httpx

        self.endpoint = endpoint
        self._client = httpx.Client(timeout=endpoint.timeout_s)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        import httpx

        url = f"{self.endpoint.base_url.rstrip('/')}/{path}"
        key = self.endpoint.key()
        try:
            response = self._client.post(url, json=body, headers={"Authorization": f"Bearer {key}"} if key else {})
        except httpx.TimeoutException as exc:
            raise TaskTimeout(f"{url} did not answer within {self.endpoint.timeout_s} s") from exc
        except httpx.HTTPError as exc:
            raise ResourceLimitExceeded(f"{url} can't be reached: {exc}") from exc
        spent = spending.here()
        spent.exchanged(response)
        if not response.is_success:
            raise _refusal(url, response, key)
        try:
            answer = msgspec.json.decode(response.content)
        except msgspec.DecodeError as exc:
            raise ProcessingFailed(f"{url} answered with something else than JSON") from exc
        if (tokens := _tokens(answer)) is not None:
            spent.costs(tokens)
        return answer

    def close(self) -> None:
        self._client.close()


def _tokens(answer: Any) -> float | None:
    """Return what an answer says that it has taken, where it does."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    tokens: Any = usage.get("total_tokens") if isinstance(usage, dict) else None
    return float(tokens) if type(tokens) in (int, float) and 0 <= tokens < math.inf else None


def _refusal(url: str, response: httpx.Response, key: str | None) -> TaskError:
    said = response.text.replace(key, "...") if key else response.text  # some servers repeat it
    message = f"{url} answered {response.status_code}: {said[:300]}"
    if response.status_code in _TRY_LATER or response.status_code >= 500:
        return ResourceLimitExceeded(message, retry_after=_retry_after(response.headers.get("retry-after")))
    return InvalidInput(message, field="input")


def _retry_after(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or as a date."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    from email.utils import parsedate_to_datetime  # slow to load, and hardly ever wanted

    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - SYSTEM.wall_ms() / 1000)
    except ValueError:
        return None


def check_chat(model_id: str, input: ModelInput, params: dict[str, Any]) -> None:
    check_params(model_id, params, CHAT_READS)
    field = field_of(model_id, input, ("messages", "text"))
    value = getattr(input, field)
    if not has_ref(value):
        _messages(input)


def _messages(input: ModelInput) -> list[dict[str, Any]]:
    if input.messages is None:
        if not isinstance(input.text, str):
            raise invalid("input.text", input.text, "is no text", "pass one str, or messages")
        return [{"role": "user", "content": input.text}]
    messages = input.messages
    if not isinstance(messages, (list, tuple)) or not all(isinstance(one, dict) and "role" in one for one in messages):
        raise invalid("input.messages", messages, "is no conversation", 'pass [{"role": "user", "content": "..."}]')
    return list(messages)


class ChatModel(BlockingModel):
    """Text generation: messages, or one text as the user's, give {"text", "finish_reason", "usage"}.

    Each item is a request of its own, one after the other.
    """

    def __init__(self, info: ModelInfo, endpoint: HttpEndpoint) -> None:
        self.info = info
        self._connection = _Connection(endpoint)

    def check(self, input: ModelInput, params: dict[str, Any]) -> None:
        check_chat(self.info.model_id, input, params)

    def infer_batch(self, inputs: Sequence[ModelInput], params: dict[str, Any]) -> list[ModelOutput | Exception]:
        answers: list[ModelOutput | Exception] = []
        for input in inputs:
            try:
                answers.append(self._complete(input, params))
            except Exception as exc:  # noqa: BLE001 - becomes this item's own error
                answers.append(exc)
        return answers

    def _complete(self, input: ModelInput, params: dict[str, Any]) -> ModelOutput:
        options = {name: value for name, value in params.items() if name != "options" and value is not None}
        body = {**(params.get("options") or {}), **options, "model": self._connection.endpoint.model}
        answer = self._connection.post("chat/completions", {**body, "messages": _messages(input)})
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"]
        except (KeyError, IndexError, TypeError) as exc:
            raise ProcessingFailed(f"model {self.info.model_id} gave no choice") from exc
        return ModelOutput({"text": text, "finish_reason": choice.get("finish_reason"), "usage": answer.get("usage")})

    def close(self) -> None:
        self._connection.close()


class HttpEmbedding(Embedding):
    """Embeddings over HTTP. `dim` is 0 until the first answer; what the server cuts it does not tell."""

    def __init__(self, info: ModelInfo, endpoint: HttpEndpoint) -> None:
        self.info = info
        self.dim = 0
        self.max_tokens = 1 << 30  # the server's own matter
        self._connection = _Connection(endpoint)

    def embed(
        self, texts: Sequence[str], *, normalize: bool = True, on_batch: Callable[[int], None] | None = None
    ) -> tuple[NDArray[Any], tuple[int, ...]]:
        import numpy as np

        endpoint = self._connection.endpoint
        rows: list[Any] = []
        for start in range(0, len(texts), endpoint.max_batch):
            part = list(texts[start : start + endpoint.max_batch])
            answer = self._connection.post("embeddings", {"model": endpoint.model, "input": part})
            rows += self._rows(answer, len(part))
            if on_batch is not None:
                on_batch(len(rows))
        vectors = np.asarray(rows, np.float32).reshape(len(texts), -1 if rows else self.dim)
        self.dim = vectors.shape[1]
        return (unit(vectors) if normalize else vectors), ()

    def _rows(self, answer: Any, count: int) -> list[Any]:
        try:
            rows = [row["embedding"] for row in sorted(answer["data"], key=lambda row: row["index"])]
        except (KeyError, TypeError) as exc:
            raise ProcessingFailed(f"model {self.info.model_id} gave no embeddings") from exc
        if len(rows) != count or len({len(row) for row in rows}) != 1:
            raise ProcessingFailed(f"model {self.info.model_id} gave {len(rows)} embeddings for {count} texts")
        return rows

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        raise no_tokens(self.info.model_id)

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        raise no_tokens(self.info.model_id)

    def close(self) -> None:
        self._connection.close()


class HttpSource:
    """An endpoint as a source: nothing to load but a connection pool."""

    kind = "http"

    def __init__(self, model_id: str, endpoint: HttpEndpoint) -> None:
        self._model_id = model_id
        self._endpoint = endpoint
        self.embeds = endpoint.api == "embeddings"

    @property
    def address(self) -> str:
        """What answers, as far as it can be told from here."""
        return f"{self._endpoint.base_url} {self._endpoint.model} {self._endpoint.api}"

    def digest(self) -> str | None:
        """Nobody knows the weights over there."""
        return None

    def memory_bytes(self) -> int:
        return 0

    def check(self, input: ModelInput, params: dict[str, Any]) -> None:
        if not self.embeds:
            check_chat(self._model_id, input, params)
            return
        check_params(self._model_id, params, frozenset())
        check_texts(self._model_id, input)

    def expected_cost(self, content: Any, params: dict[str, Any]) -> float:
        """Return about how many tokens a request takes: those of its text, by its size, and what it may answer at
        most, where that is said. What a picture takes that lies within a message is unknown before the answer."""
        size = len(_PICTURE.sub(b"", msgspec.json.encode(content, enc_hook=str)))
        most = params.get("max_tokens")
        answer = min(most, _MOST_TOKENS) if isinstance(most, (int, float)) else 0
        return float(max(1, size // _BYTES_A_TOKEN + answer))

    def prepare(self) -> None:
        """Nothing to bring."""

    def load(self, model_id: str) -> ChatModel | HttpEmbedding:
        info = ModelInfo(model_id, self.kind, memory_bytes=0, loaded=True)
        return HttpEmbedding(info, self._endpoint) if self.embeds else ChatModel(info, self._endpoint)
