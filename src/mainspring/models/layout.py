"""What a folder of model files holds, read from its names and small JSON files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from mainspring.errors import invalid
from mainspring.models.graph import Graph, external_files, read_graph

Kind = Literal["embedding", "classification", "token_classification", "onnx"]
DEFAULT_MAX_TOKENS = 256


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """The files of one model and how to use them."""

    kind: Kind
    graph_file: Path
    graph: Graph
    files: tuple[Path, ...]  # all that shape the answers: their hashes are the model's identity
    weight_bytes: int
    tokenizer: Path | None = None
    max_tokens: int = DEFAULT_MAX_TOKENS
    pooling: Literal["mean", "cls"] = "mean"
    labels: tuple[str, ...] = ()


def read_layout(path: Path, root: Path | None = None) -> Layout:
    """Return what lies at `path`: an .onnx file, or a folder with model.onnx (or onnx/model.onnx).

    With a tokenizer.json beside it, it is a text model: config.json tells which kind, and sentence embeddings are
    assumed where it doesn't. `root` widens where linked files may lie.

    Raises: InvalidInput: nothing usable there.
    """
    graph_file = _graph_file(path)
    folder = path if path.is_dir() else path.parent
    graph = read_graph(graph_file)
    weights = (graph_file, *external_files(graph_file, graph, root))
    weight_bytes = sum(file.stat().st_size for file in weights)
    tokenizer = folder / "tokenizer.json"
    if path.is_file() or not tokenizer.is_file():
        return Layout(kind="onnx", graph_file=graph_file, graph=graph, files=weights, weight_bytes=weight_bytes)
    names = ("config.json", "sentence_bert_config.json", "1_Pooling/config.json")
    config, sentence, pooling = (_json(folder / name) for name in names)
    return Layout(
        kind=_kind(config),
        graph_file=graph_file,
        graph=graph,
        files=(*weights, tokenizer, *(folder / name for name in names if (folder / name).is_file())),
        weight_bytes=weight_bytes,
        tokenizer=tokenizer,
        max_tokens=_max_tokens(config, sentence),
        pooling=_pooling(pooling, folder),
        labels=_labels(config),
    )


def _graph_file(path: Path) -> Path:
    if path.is_file():
        return path
    for name in ("model.onnx", "onnx/model.onnx"):
        if (path / name).is_file():
            return path / name
    raise invalid("model", str(path), "holds no model.onnx", "pass a folder with model.onnx, or an .onnx file")


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except msgspec.DecodeError as exc:
        raise invalid("model", str(path), f"is broken ({exc})", "copy the model again") from exc


def _kind(config: dict[str, Any]) -> Kind:
    architecture = str((config.get("architectures") or [""])[0])
    if architecture.endswith("ForSequenceClassification"):
        return "classification"
    return "token_classification" if architecture.endswith("ForTokenClassification") else "embedding"


def _max_tokens(config: dict[str, Any], sentence: dict[str, Any]) -> int:
    positions = config.get("max_position_embeddings") or 512
    wanted = sentence.get("max_seq_length") or (DEFAULT_MAX_TOKENS if _kind(config) == "embedding" else positions)
    return min(int(wanted), int(positions))


def _pooling(config: dict[str, Any], folder: Path) -> Literal["mean", "cls"]:
    modes = [name for name, on in config.items() if name.startswith("pooling_mode_") and on is True]
    if modes in ([], ["pooling_mode_mean_tokens"]):
        return "mean"
    if modes == ["pooling_mode_cls_token"]:
        return "cls"
    raise invalid("model", str(folder), f"pools by {modes}", "use a model with mean or cls pooling")


def _labels(config: dict[str, Any]) -> tuple[str, ...]:
    names = config.get("id2label") or {}
    return tuple(str(names[key]) for key in sorted(names, key=int))
