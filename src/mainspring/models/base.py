"""The contract of a model and of what loads one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from mainspring.environment import HERE
from mainspring.tasks import ModelInput, ModelOutput

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ModelInfo(msgspec.Struct, frozen=True):
    model_id: str
    kind: str  # embedding, classification, token_classification, onnx, python, http; hub until downloaded; broken
    digest: str | None = None  # blake3 of the files; None where there are none, or not yet
    memory_bytes: int | None = None  # of the loaded model; an estimate in process
    loaded: bool = False
    pinned: bool = False
    concurrency: int | None = None  # of its tasks, as it declares; what holds is `engine.limits()`
    rate: str | None = None  # the same
    cost_rate: str | None = None  # the same


class Model(Protocol):
    """Something that answers. Calls block and may come from several threads at once."""

    info: ModelInfo

    def check(self, input: ModelInput, params: dict[str, Any]) -> None:
        """Refuse at submit what this model can't read. Raises: InvalidInput."""

    def infer_batch(self, inputs: Sequence[ModelInput], params: dict[str, Any]) -> list[ModelOutput | Exception]:
        """Return one output, or the error of that item alone, for each input, in order."""

    async def infer(self, input: ModelInput) -> ModelOutput:
        """Answer one input, as in the seeds; raises its error."""

    def close(self) -> None: ...


class EmbeddingModel(Model, Protocol):
    dim: int
    max_tokens: int

    def embed(
        self, texts: Sequence[str], *, normalize: bool = True, on_batch: Callable[[int], None] | None = None
    ) -> tuple[NDArray[Any], tuple[int, ...]]:
        """Return float32 vectors, shape (len(texts), dim), and the indexes of texts that were cut to `max_tokens`.

        `on_batch` hears how many texts are done after each call of the runtime; what it raises ends the work.
        """

    def count_tokens(self, texts: Sequence[str]) -> list[int]: ...

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        """Return for each token of the whole, uncut text where it stands: (start, end) in characters."""


class Source(Protocol):
    """Where a model comes from, and what is known of it before it is loaded."""

    @property
    def kind(self) -> str: ...

    @property
    def embeds(self) -> bool | None:
        """Whether `load` gives an EmbeddingModel; None: not known yet."""

    def digest(self) -> str | None: ...

    def memory_bytes(self) -> int:
        """Estimate of what the loaded model takes."""

    def check(self, input: ModelInput, params: dict[str, Any]) -> None:
        """As `Model.check`, without loading. Passes what can only be known later."""

    def prepare(self) -> None:
        """Bring the files onto this machine, where that is needed. Blocks, possibly for minutes."""

    def load(self, model_id: str) -> Model: ...


class BlockingModel:
    """Gives a model its `infer` by way of `infer_batch` in a thread."""

    def infer_batch(self, inputs: Sequence[ModelInput], params: dict[str, Any]) -> list[ModelOutput | Exception]:
        raise NotImplementedError

    async def infer(self, input: ModelInput) -> ModelOutput:
        """Answer one input, as in the seeds; raises its error."""
        (answer,) = await HERE.get().to_thread(self.infer_batch, [input], {})
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """Nothing beyond memory was taken."""
