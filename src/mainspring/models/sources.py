"""Where models come from: a folder, pinned packages, a model hub, Python objects. Nothing is loaded to be described."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mainspring.config import MIB, ModelConfig
from mainspring.environment import Lock
from mainspring.errors import InvalidInput, ProcessingFailed, TaskError, invalid
from mainspring.models import fetch
from mainspring.models.base import Model, ModelInfo, Source
from mainspring.models.classify import TextClassifier, TokenClassifier
from mainspring.models.http import HttpEndpoint, HttpSource
from mainspring.models.inputs import check_params, check_texts
from mainspring.models.layout import Layout, read_layout
from mainspring.models.manifest import read_limits
from mainspring.models.onnx import OnnxGraph, check_arrays
from mainspring.models.python import READS, PythonEmbedding, PythonModel, check_object
from mainspring.models.sentence import SentenceModel
from mainspring.tasks import ModelInput

RUNTIME_BYTES = 64 * MIB  # onnxruntime's own libraries and a session's buffers, as measured
WEIGHT_FACTOR = 1.3  # memory of loaded weights by the bytes of their files, as measured

_TEXT_MODELS: dict[str, type[SentenceModel] | type[TextClassifier] | type[TokenClassifier]] = {
    "embedding": SentenceModel,
    "classification": TextClassifier,
    "token_classification": TokenClassifier,
}

_hashes: dict[tuple[str, int, int], bytes] = {}
_hashes_lock = Lock()


def file_hash(path: Path) -> bytes:
    """Return blake3 of a file; computed again only when its size or time of change differs."""
    import blake3

    try:
        state = path.stat()
        key = (str(path), state.st_mtime_ns, state.st_size)
        with _hashes_lock:
            found = _hashes.get(key)
        if found is None:
            found = blake3.blake3().update_mmap(path).digest()
    except OSError as exc:
        raise invalid("model", str(path), f"can't be read ({exc})", "put the file back") from exc
    if key not in _hashes:
        with _hashes_lock:
            _hashes[key] = found
    return found


def digest_of(files: Sequence[Path]) -> str:
    """Return one hash for several files and their names, whatever folder they lie in."""
    import blake3

    whole = blake3.blake3()
    for path in sorted(files, key=lambda path: path.name):
        whole.update(path.name.encode() + b"\0" + file_hash(path))
    return whole.hexdigest()


class FolderSource:
    """A folder of model files, or one .onnx file."""

    def __init__(self, model_id: str, path: Path, config: ModelConfig, root: Path | None = None) -> None:
        self.layout: Layout = read_layout(path, root)
        self.limits = read_limits(path if path.is_dir() else path.parent)
        self.kind: str = self.layout.kind
        self.embeds: bool = self.kind == "embedding"
        self._model_id = model_id
        self._config = config

    def digest(self) -> str | None:
        return digest_of(self.layout.files)

    def memory_bytes(self) -> int:
        return RUNTIME_BYTES + int(self.layout.weight_bytes * WEIGHT_FACTOR)

    def check(self, input: ModelInput, params: dict[str, Any]) -> None:
        if self.kind == "onnx":
            check_arrays(self._model_id, self.layout.graph, input, params)
            return
        model = _TEXT_MODELS[self.kind]
        check_params(self._model_id, params, model.reads)
        check_texts(self._model_id, input, model.accepts)

    def prepare(self) -> None:
        """The files are here."""

    def load(self, model_id: str) -> Model:
        info = ModelInfo(model_id, self.kind, self.digest(), self.memory_bytes(), loaded=True)
        model = self._load(info)
        if self.digest() != info.digest:
            model.close()
            raise ProcessingFailed(f"the files of {model_id} were changed while it was loaded; it is loaded anew")
        return model

    def _load(self, info: ModelInfo) -> Model:
        threads, tokens = self._config.threads_per_call, self._config.max_batch_tokens
        if self.kind == "onnx":
            return OnnxGraph(info, self.layout.graph_file, self.layout.graph, threads)
        return _TEXT_MODELS[self.kind](info, self.layout, threads=threads, max_batch_tokens=tokens)


class PinnedSource:
    """A model whose files and their hashes are known beforehand, downloaded when first needed."""

    kind = "embedding"
    embeds = True

    def __init__(self, model: fetch.PinnedModel, config: ModelConfig, progress: fetch.Progress | None = None) -> None:
        self._model = model
        self._config = config
        self._progress = progress

    def digest(self) -> str | None:
        return self._model.digest

    def memory_bytes(self) -> int:
        return RUNTIME_BYTES + int(sum(file.size for file in self._model.files) * WEIGHT_FACTOR)

    def check(self, input: ModelInput, params: dict[str, Any]) -> None:
        check_params(self._model.model_id, params, frozenset())
        check_texts(self._model.model_id, input)

    def prepare(self) -> None:
        fetch.fetch(self._model, self._config.cache_folder, self._progress)

    def load(self, model_id: str) -> Model:
        return FolderSource(model_id, self._config.cache_folder / self._model.model_id, self._config).load(model_id)


class HubSource:
    """A repository of a model hub, as "hf:org/name" or "hf:org/name@revision"; only ONNX files and their settings.

    Nothing of the repository is executed.
    """

    def __init__(self, model_id: str, text: str, config: ModelConfig) -> None:
        self._repository, _, revision = text.removeprefix("hf:").partition("@")
        self._revision = revision or None
        self._model_id = model_id
        self._config = config
        self._folder: FolderSource | None = None

    @property
    def kind(self) -> str:
        return "hub" if self._folder is None else self._folder.kind

    @property
    def embeds(self) -> bool | None:
        return None if self._folder is None else self._folder.embeds

    def digest(self) -> str | None:
        return None if self._folder is None else self._folder.digest()

    def memory_bytes(self) -> int:
        return RUNTIME_BYTES if self._folder is None else self._folder.memory_bytes()

    def check(self, input: ModelInput, params: dict[str, Any]) -> None:
        if self._folder is not None:
            self._folder.check(input, params)

    def prepare(self) -> None:
        if self._folder is None:
            path = self._snapshot()
            self._folder = FolderSource(self._model_id, path, self._config, root=path.parent.parent)

    def _snapshot(self) -> Path:
        try:
            from huggingface_hub import snapshot_download
        except ImportError as exc:
            raise InvalidInput("hf: needs huggingface_hub: pip install 'mainspring[onnx]'", field="source") from exc
        wanted = ["model.onnx", "model.onnx_data", "onnx/model.onnx", "onnx/model.onnx_data", "1_Pooling/config.json"]
        wanted += ["tokenizer.json", "config.json", "sentence_bert_config.json"]
        try:
            return Path(snapshot_download(self._repository, revision=self._revision, allow_patterns=wanted))
        except Exception as exc:  # network, name and rights fail in many classes there
            why = f"{self._repository} can't be had from the hub now: {exc}"
            raise ProcessingFailed(f"{why}; copy its files into a folder and register that") from exc

    def load(self, model_id: str) -> Model:
        assert self._folder is not None
        return self._folder.load(model_id)


class ObjectSource:
    """A Python object, or a function without parameters that makes one when it is first needed."""

    kind = "python"

    def __init__(self, model_id: str, target: Any, memory_bytes: int | None) -> None:
        self._model_id = model_id
        self._target = target
        self._memory_bytes = memory_bytes or 0  # of a factory: known only after the first load
        self._is_factory = isinstance(target, type) or (callable(target) and not _answers(target))
        if not self._is_factory:
            check_object(model_id, target)
        shown = target if not self._is_factory or isinstance(target, type) else None
        self.embeds: bool | None = None if shown is None else not hasattr(shown, "infer")

    def digest(self) -> str | None:
        """Code has no weights to hash."""
        return None

    def memory_bytes(self) -> int:
        return self._memory_bytes

    def check(self, input: ModelInput, params: dict[str, Any]) -> None:
        if self.embeds:
            check_params(self._model_id, params, frozenset())
            check_texts(self._model_id, input)
            return
        check_params(self._model_id, params, READS)
        own = None if self._is_factory else getattr(self._target, "check", None)
        if own is not None:
            own(input)

    def prepare(self) -> None:
        """Nothing to bring."""

    def load(self, model_id: str) -> Model:
        target = self._make() if self._is_factory else self._target
        check_object(model_id, target)
        info = ModelInfo(model_id, self.kind, memory_bytes=self._memory_bytes, loaded=True)
        return PythonModel(info, target) if hasattr(target, "infer") else PythonEmbedding(info, target)

    def _make(self) -> Any:
        try:
            return self._target()
        except TaskError:
            raise
        except Exception as exc:
            raise ProcessingFailed(f"the model {self._model_id} could not be made: {exc}") from exc


def _answers(target: Any) -> bool:
    return hasattr(target, "infer") or hasattr(target, "embed")


def source_of(model_id: str, value: Any, config: ModelConfig, memory_bytes: int | None) -> Source:
    """Return the source that a value given to `register` stands for. Raises: InvalidInput."""
    if isinstance(value, HttpEndpoint):
        return HttpSource(model_id, value)
    if isinstance(value, str) and value.startswith("hf:"):
        return HubSource(model_id, value, config)
    if isinstance(value, (str, Path)):
        path = Path(value).expanduser()
        if not path.exists():
            raise invalid("source", str(value), "does not exist", "pass a folder with model.onnx, or an .onnx file")
        return FolderSource(model_id, path, config)
    return ObjectSource(model_id, value, memory_bytes)


__all__ = ["FolderSource", "HubSource", "ObjectSource", "PinnedSource", "digest_of", "source_of"]
