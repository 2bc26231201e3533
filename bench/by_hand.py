"""What one would write by hand for the same model on the same runtime: the ceiling for embeddings through tasks."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

_MAX_TOKENS = 256


class HandWritten:
    """One session that several threads call, texts sorted by length, calls capped by their padded tokens.

    It does without everything else: no task, no store, no error that concerns one text alone.
    """

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.enable_cpu_mem_arena = False
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = {given.name for given in self._session.get_inputs()}
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(_MAX_TOKENS)

    def embed(self, texts: Sequence[str], *, cap: int, callers: int) -> NDArray[np.float32]:
        """Return unit-length vectors, shape (len(texts), dim)."""
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        calls: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        for call in reversed(_calls([len(encoding.ids) for encoding in encodings], cap)):
            calls.put(call)  # the longest first: no caller is left alone with one at the end
        found: list[Any] = [None] * len(texts)

        def caller() -> None:
            while True:
                try:
                    call = calls.get_nowait()
                except queue.Empty:
                    return
                for index, vector in zip(call, self._vectors([encodings[index] for index in call]), strict=True):
                    found[index] = vector

        threads = [threading.Thread(target=caller) for _ in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return np.stack(found)

    def embed_padded(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the same from one call for all, as they come: each text costs as much as the longest."""
        return self._vectors(self._tokenizer.encode_batch_fast(list(texts)))

    def _vectors(self, encodings: Sequence[Any]) -> NDArray[np.float32]:
        width = max(len(encoding.ids) for encoding in encodings)
        ids, types, mask = np.zeros((3, len(encodings), width), np.int64)
        for row, encoding in enumerate(encodings):
            size = len(encoding.ids)
            ids[row, :size], types[row, :size], mask[row, :size] = encoding.ids, encoding.type_ids, 1
        feeds = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
        (states,) = self._session.run(["last_hidden_state"], {name: feeds[name] for name in self._inputs})
        weights = mask[:, :, None].astype(np.float32)
        pooled = (states * weights).sum(axis=1) / weights.sum(axis=1)
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)  # type: ignore[no-any-return]


def _calls(lengths: Sequence[int], cap: int) -> list[list[int]]:
    calls: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not calls or (len(calls[-1]) + 1) * lengths[index] > cap:
            calls.append([])
        calls[-1].append(index)
    return calls
