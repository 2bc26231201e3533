"""The real all-MiniLM-L6-v2."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mainspring.config import ModelConfig
from mainspring.errors import InvalidInput
from mainspring.models import EmbeddingModel
from mainspring.models.fetch import ALL_MINILM_L6_V2
from mainspring.models.sources import digest_of
from mainspring.tasks import ModelInput

PAIRS = [
    ("How do I sort a list?", "What is the way to put the items of a list in order?"),
    ("The cat sleeps on the sofa.", "A kitten naps on the couch."),
    ("Stock prices fell sharply today.", "The market dropped a lot this afternoon."),
    ("How can I read a file line by line?", "Iterating over the lines of a text file"),
]


def test_paraphrases_are_nearer_than_anything_else(minilm: EmbeddingModel) -> None:
    """Each sentence's nearest neighbour among the others is its paraphrase, with a clear distance to the rest."""
    vectors, truncated = minilm.embed([text for pair in PAIRS for text in pair])
    assert vectors.shape == (8, 384)
    assert vectors.dtype == np.float32
    assert truncated == ()
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cosines = vectors @ vectors.T
    own = [cosines[2 * number, 2 * number + 1] for number in range(4)]
    for number in range(4):
        cosines[2 * number : 2 * number + 2, 2 * number : 2 * number + 2] = -1
    assert min(own) > 0.5 > 0.35 > cosines.max()


def test_order_and_batches_change_nothing(minilm: EmbeddingModel) -> None:
    """Texts of very different length come back in their order, as if each had been alone."""
    texts = ["a", "word " * 200, "one short sentence", "", "ß 日本語 🎉", "another " * 90, "a"]
    together, _ = minilm.embed(texts)
    for row, text in zip(together, texts, strict=True):
        alone, _ = minilm.embed([text])
        assert np.allclose(row, alone[0], atol=2e-4)


def test_long_texts_are_cut_and_named(minilm: EmbeddingModel) -> None:
    """256 tokens are read, the two that the tokenizer adds included; what was cut is reported by index."""
    exact, over = "word " * 254, "word " * 255
    vectors, truncated = minilm.embed([over, exact, over + "and much more " * 100])
    assert truncated == (0, 2)
    assert minilm.count_tokens([exact, over, ""]) == [256, 257, 2]
    assert np.allclose(vectors[0], vectors[1], atol=1e-3)


def test_offsets_cover_the_whole_text(minilm: EmbeddingModel) -> None:
    """Offsets are characters of the uncut text, not bytes, also far beyond what the model reads."""
    text = "Grüße 日本 " * 200
    offsets = minilm.token_offsets(text)
    assert len(offsets) == minilm.count_tokens([text])[0] - 2
    assert text[offsets[0][0] : offsets[0][1]] == "Gr"
    assert offsets[-1][1] == len(text) - 1
    assert all(start < end for start, end in offsets)


def test_threads_share_one_model(minilm: EmbeddingModel) -> None:
    """Calls from several threads, counting among them, give what single calls give."""
    texts = [f"sentence number {number} " * (number % 7 + 1) for number in range(24)]
    expected, _ = minilm.embed(texts)

    def one(number: int) -> bool:
        vectors, _ = minilm.embed([texts[number]])
        return minilm.count_tokens([texts[number]])[0] > 2 and np.allclose(vectors[0], expected[number], atol=2e-4)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, range(24)))


def test_nothing_and_raw_vectors(minilm: EmbeddingModel) -> None:
    """No texts give no rows; without normalisation the direction is the same and the length is not 1."""
    assert minilm.embed([])[0].shape == (0, 384)
    raw, _ = minilm.embed(["hello"], normalize=False)
    unit, _ = minilm.embed(["hello"])
    assert abs(np.linalg.norm(raw) - 1) > 0.01
    assert np.allclose(raw[0] / np.linalg.norm(raw), unit[0], atol=1e-5)


def test_as_an_inference_model(minilm: EmbeddingModel) -> None:
    """Text gives a vector, a list a matrix, pairs their cosines; a bad item fails alone."""
    inputs = [ModelInput(text="x"), ModelInput(text=[1]), ModelInput(text=["x", "y"]), ModelInput(pairs=PAIRS)]
    single, bad, several, scores = minilm.infer_batch(inputs, {})
    assert isinstance(bad, InvalidInput)
    assert not isinstance(single, Exception)
    assert not isinstance(several, Exception)
    assert not isinstance(scores, Exception)
    assert single.outputs.shape == (384,)
    assert several.outputs.shape == (2, 384)
    assert scores.outputs.shape == (4,)
    assert (scores.outputs > 0.5).all()


def test_the_pinned_digest_is_that_of_the_files(minilm: EmbeddingModel) -> None:
    """A submitter that never had the files names the same identity as a worker that has them."""
    folder = ModelConfig().cache_folder / "all-MiniLM-L6-v2"
    assert digest_of([folder / file.name for file in ALL_MINILM_L6_V2.files]) == ALL_MINILM_L6_V2.digest
    assert minilm.info.digest == ALL_MINILM_L6_V2.digest


@pytest.mark.parametrize("error", [KeyError("stop"), RuntimeError("stop")])
def test_the_watcher_can_end_the_work(minilm: EmbeddingModel, error: Exception) -> None:
    """What `on_batch` raises ends a long call after the runtime's current one."""
    seen: list[int] = []

    def watch(done: int) -> None:
        seen.append(done)
        if len(seen) == 2:
            raise error

    with pytest.raises(type(error)):
        minilm.embed(["word " * 100] * 20, on_batch=watch)
    assert len(seen) == 2
