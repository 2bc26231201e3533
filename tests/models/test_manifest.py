"""What a model's manifest may say, and how a mistake in it is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from mainspring.config import ModelConfig
from mainspring.errors import InvalidInput
from mainspring.models import ModelManager
from mainspring.models.manifest import MANIFEST, Limits


def declare(graph_file: Path, text: str) -> ModelManager:
    """A manager that finds the graph as the model `linear`, with this manifest."""
    (graph_file.parent / MANIFEST).write_text(text)
    return ModelManager(ModelConfig(folders=(graph_file.parent.parent,)))


def test_limits_are_read_from_the_folder(graph_file: Path) -> None:
    """They are known without loading the model, and shown with it."""
    manager = declare(graph_file, '{"limits": {"concurrency": 2, "rate": "60/m", "cost_rate": "9000/m"}}')
    assert manager.limits() == {"linear": Limits(concurrency=2, rate="60/m", cost_rate="9000/m")}
    info = manager.describe("linear")
    assert (info.concurrency, info.rate, info.cost_rate, info.loaded) == (2, "60/m", "9000/m", False)


@pytest.mark.parametrize("text", ["{}", '{"limits": {}}'])
def test_a_manifest_may_say_nothing(graph_file: Path, text: str) -> None:
    """Then the model is as one without a manifest."""
    manager = declare(graph_file, text)
    assert manager.limits() == {}
    assert manager.describe("linear").concurrency is None


@pytest.mark.parametrize(
    ("text", "field", "said"),
    [
        ("{", "manifest", r"is broken .*; write it as \{\"limits\""),
        ('{"limit": {}}', "manifest", "unknown field `limit`"),
        ('{"limits": {"concurency": 1}}', "manifest", "unknown field `concurency`"),
        ('{"limits": {"concurrency": "two"}}', "manifest", "Expected `int"),
        ('{"limits": {"concurrency": 0}}', "limits.concurrency", "= 0: is no number of tasks; use 1 or more"),
        ('{"limits": {"rate": "fast"}}', "limits.rate", "= 'fast': is no rate; use text such as"),
        ('{"limits": {"cost_rate": "0/m"}}', "limits.cost_rate", "= '0/m': is out of range; use at least one"),
    ],
)
def test_a_mistake_makes_the_model_unusable(graph_file: Path, text: str, field: str, said: str) -> None:
    """It is told with the file, the field, the value and the remedy: nothing runs without the limits meant."""
    manager = declare(graph_file, text)
    with pytest.raises(InvalidInput, match=said) as caught:
        manager.known("linear")
    assert caught.value.field == field
    assert str(graph_file.parent / MANIFEST) in str(caught.value)
    assert manager.limits() == {}
    assert [info.kind for info in manager.info() if info.model_id == "linear"] == ["broken"]


def test_what_is_registered_stands_for_the_manifest(graph_file: Path) -> None:
    """Limits given in code take the place of all that the folder declares; without any its manifest holds."""
    manager = declare(graph_file, '{"limits": {"concurrency": 2, "rate": "60/m"}}')
    manager.register("linear", graph_file.parent, concurrency=5)
    assert manager.limits() == {"linear": Limits(concurrency=5)}
    manager.register("linear", graph_file.parent)
    assert manager.limits() == {"linear": Limits(concurrency=2, rate="60/m")}
    with pytest.raises(InvalidInput, match="concurrency = -1") as caught:
        manager.register("other", graph_file, concurrency=-1)
    assert caught.value.field == "concurrency"


def test_an_id_fits_into_the_name_of_a_group(graph_file: Path) -> None:
    """A longer one is refused when it is registered."""
    manager = ModelManager()
    manager.register("m" * 120, graph_file)
    with pytest.raises(InvalidInput, match="up to 120 letters"):
        manager.register("m" * 121, graph_file)
