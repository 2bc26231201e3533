"""Tokenizers and length-sorted, token-capped runs: what all text models on onnxruntime share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mainspring.errors import InvalidInput, invalid
from mainspring.models.onnx import open_session

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GIVEN = frozenset(("input_ids", "token_type_ids", "attention_mask"))


class TextEncoder:
    """Two tokenizers made of one file: `cut` keeps what the model reads, `whole` sees everything.

    Files carry settings of their own (MiniLM's pads everything to 128 tokens); both are set here, once, because
    changing a tokenizer while another thread uses it is not allowed.
    """

    def __init__(self, path: Path, max_tokens: int) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as exc:
            raise InvalidInput("text models need tokenizers: pip install 'mainspring[onnx]'", field="model_id") from exc
        try:
            self.cut, self.whole = (Tokenizer.from_file(str(path)) for _ in range(2))
        except Exception as exc:  # the library raises bare Exception
            raise invalid("model", str(path), f"is no tokenizer ({exc})", "pass a tokenizer.json") from exc
        for tokenizer in (self.cut, self.whole):
            tokenizer.no_padding()
            tokenizer.no_truncation()
        self.cut.enable_truncation(max_tokens)
        self.max_tokens = max_tokens

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(encoding.ids) for encoding in self.whole.encode_batch_fast(list(texts))]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each token stands, without those that the tokenizer adds."""
        return list(self.whole.encode(text, add_special_tokens=False).offsets)


def by_length(lengths: Sequence[int], max_batch_tokens: int) -> Iterator[list[int]]:
    """Yield indexes, shortest first, in groups whose padded size stays within the limit; a long one goes alone."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and (len(group) + 1) * lengths[index] > max_batch_tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


class TextSession:
    """Runs encoded texts through a graph of the BERT family."""

    def __init__(self, path: Path, threads: int, max_batch_tokens: int) -> None:
        session = open_session(path, threads)
        self._session = session
        self._inputs = frozenset(wanted.name for wanted in session.get_inputs())
        self._max_batch_tokens = max_batch_tokens
        if not self._inputs or not self._inputs <= _GIVEN:
            why = f"wants the inputs {sorted(self._inputs)}"
            raise invalid("model", str(path), why, f"a text model reads {', '.join(sorted(_GIVEN))}")
        self.outputs: dict[str, int] = {output.name: len(output.shape) for output in session.get_outputs()}

    def run(self, encodings: Sequence[Any], output: str) -> Iterator[tuple[list[int], NDArray[Any], NDArray[Any]]]:
        """Yield (indexes, attention mask, output) for each call of the runtime."""
        for group in by_length([len(encoding.ids) for encoding in encodings], self._max_batch_tokens):
            feeds = self._feeds([encodings[index] for index in group])
            (values,) = self._session.run([output], {name: feeds[name] for name in self._inputs})
            yield group, feeds["attention_mask"], values

    @staticmethod
    def _feeds(encodings: Sequence[Any]) -> dict[str, NDArray[Any]]:
        import numpy as np

        width = max(1, *(len(encoding.ids) for encoding in encodings))
        ids, types, mask = np.zeros((3, len(encodings), width), np.int64)
        for row, encoding in enumerate(encodings):
            size = len(encoding.ids)
            ids[row, :size], types[row, :size], mask[row, :size] = encoding.ids, encoding.type_ids, 1
        return {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
