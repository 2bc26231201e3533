"""Python objects, hub repositories and explicit folders as sources."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mainspring.config import ModelConfig
from mainspring.errors import InvalidInput, ProcessingFailed
from mainspring.models import EmbeddingModel, ModelManager
from mainspring.models.fetch import ALL_MINILM_L6_V2
from mainspring.tasks import ModelInput, ModelOutput


def infer(source: Any, inputs: list[ModelInput], **params: Any) -> list[Any]:
    manager = ModelManager()
    manager.register("mine", source)
    for input in inputs:
        manager.check("mine", input, params)
    with manager.acquire("mine") as model:
        answers = model.infer_batch(inputs, params)
    return [answer if isinstance(answer, Exception) else answer.outputs for answer in answers]


class Shout:
    def infer(self, inputs: list[ModelInput]) -> list[Any]:
        return [str.upper(input.text) for input in inputs]  # type: ignore[arg-type]


def test_an_object_and_what_makes_one() -> None:
    """An object, its class and a function that makes it are the same model."""
    for source in (Shout(), Shout, partial(Shout)):
        assert infer(source, [ModelInput(text="a"), ModelInput(text="b")]) == ["A", "B"]


def test_a_raising_item_fails_alone() -> None:
    """When a call for several raises, each is tried alone and only the bad one fails, with its own exception."""
    first, second, third = infer(Shout(), [ModelInput(text="a"), ModelInput(text=None), ModelInput(text="c")])
    assert (first, third) == ("A", "C")
    assert isinstance(second, TypeError)


def test_outcomes_may_be_exceptions_and_outputs() -> None:
    """A model may itself say which of its items failed, and may wrap its outputs."""

    class Picky:
        def infer(self, inputs: list[ModelInput]) -> list[Any]:
            return [ModelOutput(1), ValueError("no")]

    good, bad = infer(Picky(), [ModelInput(text="a"), ModelInput(text="b")])
    assert good == 1
    assert isinstance(bad, ValueError)


def test_another_number_of_answers_fails_all() -> None:
    """Answers that can't be told apart are nobody's."""

    class Short:
        def infer(self, inputs: list[ModelInput]) -> list[Any]:
            return inputs[:1]

    answers = infer(Short(), [ModelInput(text="a"), ModelInput(text="b")])
    assert all(isinstance(answer, ProcessingFailed) for answer in answers)


def test_options_and_own_checks() -> None:
    """`options` reach a model that takes them; its own check refuses at submit."""

    class Tuned:
        def check(self, input: ModelInput) -> None:
            if input.text is None:
                raise InvalidInput("give text")

        def infer(self, inputs: list[ModelInput], options: dict[str, Any]) -> list[Any]:
            return [options.get("factor", 1)] * len(inputs)

    assert infer(Tuned(), [ModelInput(text="a")], options={"factor": 3}) == [3]
    with pytest.raises(InvalidInput, match="give text"):
        infer(Tuned(), [ModelInput(pairs=[])])
    with pytest.raises(InvalidInput, match=r"params\.top_k"):
        infer(Tuned(), [ModelInput(text="a")], top_k=1)


def test_an_own_embedder() -> None:
    """An object with embed(texts) is an embedding model: unit vectors, dim found out."""

    class Lengths:
        def embed(self, texts: list[str]) -> list[list[float]]:
            return [[len(text), 1.0] for text in texts]

    manager = ModelManager()
    manager.register("lengths", Lengths())
    assert manager.embeds("lengths")
    with manager.acquire_embedding("lengths") as model:
        vectors, _ = model.embed(["", "abc"])
        assert model.dim == 2
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    manager.register("shout", Shout())
    assert not manager.embeds("shout")
    with pytest.raises(InvalidInput, match="no embeddings"), manager.acquire_embedding("shout"):
        pass


def test_an_explicit_folder_for_the_default_id(minilm: EmbeddingModel, tmp_path: Path) -> None:
    """A folder of one's own comes before any download, also for the default model's id."""
    cache = ModelConfig().cache_folder / ALL_MINILM_L6_V2.model_id
    own = tmp_path / "models" / ALL_MINILM_L6_V2.model_id
    shutil.copytree(cache, own)
    config = ModelConfig(folders=(tmp_path / "models",), cache_folder=tmp_path / "never made")
    manager = ModelManager(config)
    assert manager.describe(ALL_MINILM_L6_V2.model_id).digest == ALL_MINILM_L6_V2.digest
    with manager.acquire_embedding(ALL_MINILM_L6_V2.model_id) as model:
        assert np.allclose(model.embed(["hello"])[0], minilm.embed(["hello"])[0], atol=1e-4)
    assert not config.cache_folder.exists()


def test_a_hub_repository_in_the_hubs_cache(graph_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "hf:org/name@revision" finds what the hub's own client has on disk, links into its blobs included."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--org--linear"
    for folder in ("blobs", "refs", f"snapshots/{revision}"):
        (repository / folder).mkdir(parents=True)
    shutil.copy(graph_file, repository / "blobs" / "abc")
    (repository / "snapshots" / revision / "model.onnx").symlink_to("../../blobs/abc")
    (repository / "refs" / "main").write_text(revision)
    manager = ModelManager()
    for source in ("hf:org/linear", f"hf:org/linear@{revision}"):
        assert manager.register("hub", source).kind == "hub"
        assert manager.warm("hub").kind == "onnx"
    manager.register("missing", "hf:org/missing")
    with pytest.raises(ProcessingFailed, match="folder"):
        manager.warm("missing")
