"""all-MiniLM-L6-v2 in torch, one text at a time, for `bench.embeddings`. Runs in an environment of its own, with torch,
numpy and tokenizers, and knows nothing of ours.

`peer_torch.py WEIGHTS TOKENIZER VECTORS`: each line of standard input is a JSON list: a number of threads, and texts.
The answer is one line of JSON with the seconds that took and its own CPU seconds, and the vectors are in VECTORS.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn.functional import gelu, layer_norm, linear, normalize, scaled_dot_product_attention

_LAYERS, _HEADS, _MOST_TOKENS, _EPSILON = 6, 12, 256, 1e-12
_TABLES = ("word", "position", "token_type")


class Model:
    """BERT's forward pass and the mean over its tokens (Reimers & Gurevych 2019, section 3), by torch's kernels."""

    def __init__(self, weights: str, tokenizer: str) -> None:
        self._weights = {name: torch.from_numpy(array) for name, array in np.load(weights).items()}
        self._tokenizer = Tokenizer.from_file(tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(_MOST_TOKENS)

    def embed(self, text: str) -> Any:
        """Return a vector of unit length."""
        with torch.inference_mode():
            return self._vector(text)

    def _vector(self, text: str) -> Any:
        ids = torch.tensor(self._tokenizer.encode(text).ids)
        weights = self._weights
        words, places, types = (weights[f"embeddings.{name}_embeddings.weight"] for name in _TABLES)
        states = self._normed("embeddings", words[ids] + places[: len(ids)] + types[0])
        for number in range(_LAYERS):
            layer = f"encoder.layer.{number}"
            states = self._normed(f"{layer}.attention.output", states + self._attended(layer, states))
            wide = gelu(self._linear(f"{layer}.intermediate.dense", states))
            states = self._normed(f"{layer}.output", states + self._linear(f"{layer}.output.dense", wide))
        return normalize(states.mean(dim=0), dim=0).numpy()

    def _attended(self, layer: str, states: Any) -> Any:
        size, dim = states.shape
        query, key, value = (
            self._linear(f"{layer}.attention.self.{name}", states).view(size, _HEADS, dim // _HEADS).transpose(0, 1)
            for name in ("query", "key", "value")
        )
        found = scaled_dot_product_attention(query, key, value).transpose(0, 1).reshape(size, dim)
        return self._linear(f"{layer}.attention.output.dense", found)

    def _linear(self, name: str, states: Any) -> Any:
        return linear(states, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _normed(self, name: str, states: Any) -> Any:
        weight, bias = self._weights[f"{name}.LayerNorm.weight"], self._weights[f"{name}.LayerNorm.bias"]
        return layer_norm(states, (states.shape[-1],), weight, bias, _EPSILON)


def main(weights: str, tokenizer: str, vectors: str) -> None:
    model = Model(weights, tokenizer)
    for line in sys.stdin:
        threads, texts = json.loads(line)
        torch.set_num_threads(threads)
        began, spent = time.perf_counter(), time.process_time()
        found = [model.embed(text) for text in texts]
        answer = {"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - spent}
        np.save(vectors, np.stack(found))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
