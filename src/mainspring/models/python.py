"""Models that users write in Python."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mainspring.errors import InvalidInput, ProcessingFailed, invalid
from mainspring.models.base import BlockingModel, ModelInfo
from mainspring.models.inputs import check_params
from mainspring.models.sentence import Embedding, unit
from mainspring.tasks import ModelInput, ModelOutput
from mainspring.tasks.order import in_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

READS = frozenset(("options",))


def check_object(model_id: str, target: Any) -> None:
    """Refuse an object that has neither `infer(inputs)` nor `embed(texts)` as plain methods."""
    for name in ("infer", "embed"):
        method = getattr(target, name, None)
        if callable(method):
            if inspect.iscoroutinefunction(method):
                raise invalid("source", target, f"{name} is async but runs in threads", f"make {name} a plain def")
            return
    raise invalid(
        "source",
        target,
        f"can't be the model {model_id}",
        "pass a folder, an .onnx file, 'hf:org/name', an HttpEndpoint, an object with infer(inputs) or embed(texts), "
        "or a function without parameters that makes one",
    )


class PythonModel(BlockingModel):
    """An object with `infer(inputs)`: gets a list of ModelInput, gives one value (or exception) for each.

    A method `infer(inputs, options)` gets the task's `params["options"]` too. When a call for several items raises,
    each is tried alone, so that only the bad one fails. Calls come from several threads.
    """

    def __init__(self, info: ModelInfo, target: Any) -> None:
        self.info = info
        self._target = target
        self._takes_options = "options" in inspect.signature(target.infer).parameters

    def check(self, input: ModelInput, params: dict[str, Any]) -> None:
        check_params(self.info.model_id, params, READS)
        own = getattr(self._target, "check", None)
        if own is not None:
            own(input)

    def infer_batch(self, inputs: Sequence[ModelInput], params: dict[str, Any]) -> list[ModelOutput | Exception]:
        options = {"options": params.get("options") or {}} if self._takes_options else {}
        try:
            given = self._target.infer(list(inputs), **options)
            values = in_order(given)
        except Exception as exc:  # noqa: BLE001 - becomes the item's own error
            if len(inputs) == 1:
                return [exc]
            return [answer for input in inputs for answer in self.infer_batch([input], params)]
        if values is None or len(values) != len(inputs):
            what = f"a {type(given).__name__}" if values is None else f"{len(values)} values"
            why = f"model {self.info.model_id} gave {what} for {len(inputs)} inputs; give one for each, in their order"
            return [ProcessingFailed(why)] * len(inputs)
        return [value if isinstance(value, (Exception, ModelOutput)) else ModelOutput(value) for value in values]

    def close(self) -> None:
        _close(self._target)


class PythonEmbedding(Embedding):
    """An object with `embed(texts)`: gets a list of texts, gives an array of shape (len(texts), dim)."""

    def __init__(self, info: ModelInfo, target: Any) -> None:
        self.info = info
        self._target = target
        self.dim = int(getattr(target, "dim", 0)) or int(self.embed(["warm"])[0].shape[1])
        self.max_tokens = int(getattr(target, "max_tokens", 0)) or 1 << 30

    def embed(
        self, texts: Sequence[str], *, normalize: bool = True, on_batch: Callable[[int], None] | None = None
    ) -> tuple[NDArray[Any], tuple[int, ...]]:
        import numpy as np

        if not texts:
            return np.empty((0, self.dim), np.float32), ()
        vectors = np.asarray(self._target.embed(list(texts)), np.float32)
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise ProcessingFailed(f"model {self.info.model_id} gave shape {vectors.shape} for {len(texts)} texts")
        if on_batch is not None:
            on_batch(len(texts))
        return (unit(vectors) if normalize else vectors), ()

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        raise no_tokens(self.info.model_id)

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        raise no_tokens(self.info.model_id)

    def close(self) -> None:
        _close(self._target)


def no_tokens(model_id: str) -> InvalidInput:
    return invalid("model_id", model_id, "does not show its tokens", "count with a model that has a tokenizer.json")


def _close(target: Any) -> None:
    close = getattr(target, "close", None)
    if close is not None:
        close()
