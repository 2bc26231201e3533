"""Sentence embeddings on onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from mainspring.errors import InvalidInput, invalid
from mainspring.models.base import BlockingModel, ModelInfo
from mainspring.models.inputs import check_params, check_texts, each, field_of, pairs_of, texts_of
from mainspring.models.layout import Layout
from mainspring.models.tokens import TextEncoder, TextSession
from mainspring.tasks import ModelInput, ModelOutput

if TYPE_CHECKING:
    from numpy.typing import NDArray


def unit(vectors: NDArray[Any]) -> NDArray[Any]:
    """Return the rows scaled to length 1; a row of zeros stays."""
    import numpy as np

    scaled: NDArray[Any] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return scaled


class Embedding(BlockingModel):
    """Gives an embedding model its answers to `ModelInput`: vectors of texts, cosines of pairs."""

    accepts: ClassVar[tuple[str, ...]] = ("text", "pairs")
    reads: ClassVar[frozenset[str]] = frozenset()
    info: ModelInfo

    def check(self, input: ModelInput, params: dict[str, Any]) -> None:
        check_params(self.info.model_id, params, self.reads)
        check_texts(self.info.model_id, input, self.accepts)

    def embed(
        self, texts: Sequence[str], *, normalize: bool = True, on_batch: Callable[[int], None] | None = None
    ) -> tuple[NDArray[Any], tuple[int, ...]]:
        raise NotImplementedError

    def infer_batch(self, inputs: Sequence[ModelInput], params: dict[str, Any]) -> list[ModelOutput | Exception]:
        """Answer text with a vector (dim,), a list with (n, dim), pairs with their cosines (n,); all float32."""
        read = each(inputs, self._texts)
        texts = [text for found in read if not isinstance(found, InvalidInput) for text in found]
        vectors, _ = self.embed(texts)
        answers: list[ModelOutput | Exception] = []
        start = 0
        for input, found in zip(inputs, read, strict=True):
            if isinstance(found, InvalidInput):
                answers.append(found)
                continue
            answers.append(ModelOutput(_answer(input, vectors[start : start + len(found)])))
            start += len(found)
        return answers

    def _texts(self, input: ModelInput) -> list[str]:
        if field_of(self.info.model_id, input, self.accepts) == "text":
            return texts_of(input.text)
        return [text for pair in pairs_of(input.pairs) for text in pair]


def _answer(input: ModelInput, vectors: NDArray[Any]) -> NDArray[Any]:
    if input.pairs is not None:
        return (vectors[::2] * vectors[1::2]).sum(axis=1)  # type: ignore[no-any-return]
    return vectors[0] if isinstance(input.text, str) else vectors


class SentenceModel(Embedding):
    """An encoder with pooling over its tokens: unit-length float32 vectors.

    Texts past `max_tokens` are cut, not refused. Equal texts get vectors that are equal to about six digits: the last
    ones depend on what shared the runtime's call. Any number of threads may call at once.

    Source: Reimers & Gurevych 2019, mean pooling (section 3).
    """

    def __init__(self, info: ModelInfo, layout: Layout, *, threads: int = 1, max_batch_tokens: int = 256) -> None:
        assert layout.tokenizer is not None
        self.info = info
        self.max_tokens = layout.max_tokens
        self._pooling = layout.pooling
        self._encoder = TextEncoder(layout.tokenizer, layout.max_tokens)
        self._session = TextSession(layout.graph_file, threads, max_batch_tokens)
        self._output = self._choose_output(layout)
        self.dim = 0
        self.dim = int(self.embed(["warm"])[0].shape[1])

    def _choose_output(self, layout: Layout) -> str:
        outputs = self._session.outputs
        for name, rank in outputs.items():
            if rank == 3 or name == "sentence_embedding":
                return name
        raise invalid("model", str(layout.graph_file), f"has the outputs {sorted(outputs)}", "export last_hidden_state")

    def embed(
        self, texts: Sequence[str], *, normalize: bool = True, on_batch: Callable[[int], None] | None = None
    ) -> tuple[NDArray[Any], tuple[int, ...]]:
        import numpy as np

        encodings = self._encoder.cut.encode_batch_fast(list(texts))
        vectors = np.empty((len(texts), self.dim), np.float32)
        done = 0
        for group, mask, states in self._session.run(encodings, self._output):
            pooled = self._pool(states, mask)
            if not self.dim:
                return pooled, ()
            vectors[group] = pooled
            done += len(group)
            if on_batch is not None:
                on_batch(done)
        truncated = tuple(index for index, encoding in enumerate(encodings) if encoding.overflowing)
        return (unit(vectors) if normalize else vectors), truncated

    def _pool(self, states: NDArray[Any], mask: NDArray[Any]) -> NDArray[Any]:
        if states.ndim == 2:
            return states
        if self._pooling == "cls":
            return states[:, 0]
        weights = mask[:, :, None].astype(states.dtype)
        pooled: NDArray[Any] = (states * weights).sum(axis=1) / weights.sum(axis=1)
        return pooled

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each whole text has, those that the tokenizer adds included."""
        return self._encoder.count(texts)

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        """Return for each token of the whole, uncut text where it stands: (start, end) in characters.

        Tokens that the tokenizer adds (two for BERT) stand nowhere and are left out.
        """
        return self._encoder.offsets(text)
