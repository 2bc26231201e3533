"""Named arrays, and what is refused before the runtime sees a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from mainspring.errors import InvalidInput
from mainspring.models import ModelManager
from mainspring.models.graph import read_graph
from mainspring.tasks import ModelInput, Ref, TaskId


@pytest.fixture
def models(graph_file: Path) -> ModelManager:
    manager = ModelManager()
    manager.register("linear", graph_file)
    return manager


def test_arrays_in_arrays_out(models: ModelManager) -> None:
    """numpy arrays and nested lists give the same; outputs come by name; a bad item fails alone."""
    x = [[1.0, 2.0, 3.0]]
    good = ModelInput(arrays={"x": np.array(x, np.float32), "flag": np.array([7])})
    plain = ModelInput(arrays={"x": [[1, 2, 3]], "flag": [7]})
    bad = ModelInput(arrays={"x": [[1, 2]], "flag": [7]})
    with models.acquire("linear") as model:
        first, second, third = model.infer_batch([good, bad, plain], {})
    assert isinstance(second, InvalidInput)
    for answer in (first, third):
        assert not isinstance(answer, Exception)
        assert answer.outputs["y"].tolist() == [[17.0, 23.0]]
        assert answer.outputs["flag_out"].tolist() == [7]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": [[1, 2, 3]]}, r"x: float32 \[n, 3\]; flag: int64 \[n\]"),
        ({"x": [[1, 2, 3]], "flag": [1], "more": [1]}, "other inputs"),
        ({"x": [[1, 2]], "flag": [1]}, r"x = \(1, 2\).*shape"),
        ({"x": [1, 2, 3], "flag": [1]}, "shape"),
        ({"x": [[1, 2, 3]], "flag": [1, 2]}, "n is 2 here and 1 in x"),
        ({"x": [["a", "b", "c"]], "flag": [1]}, "dtype"),
        ({"x": [[1, 2, 3]], "flag": [1.5]}, "dtype"),
        ({"x": [[1, 2], [3]], "flag": [1]}, "no array"),
        ("text", "other inputs"),
    ],
)
def test_refused_at_submit(models: ModelManager, arrays: Any, message: str) -> None:
    """Names, dtypes and shapes are checked before anything is loaded; the message tells what the graph expects."""
    with pytest.raises(InvalidInput, match=message):
        models.check("linear", ModelInput(arrays=arrays), {})
    assert not models.describe("linear").loaded


def test_results_of_parents_pass(models: ModelManager) -> None:
    """What a parent will give is not known at submit; the rest is checked all the same."""
    models.check("linear", ModelInput(arrays={"x": Ref(TaskId()), "flag": [1]}), {})
    models.check("linear", ModelInput(arrays=Ref(TaskId())), {})
    with pytest.raises(InvalidInput):
        models.check("linear", ModelInput(arrays={"x": Ref(TaskId()), "flag": [[1]]}), {})


def test_wrong_field_or_option(models: ModelManager) -> None:
    """A graph reads arrays and no options; both are said."""
    with pytest.raises(InvalidInput, match="reads arrays"):
        models.check("linear", ModelInput(text="hello"), {})
    with pytest.raises(InvalidInput, match="no options"):
        models.check("linear", ModelInput(arrays={}), {"top_k": 3})


def outside(graph_file: Path, location: str) -> Path:
    """Move the graph's weights to another file, named as given."""
    model = onnx.load(str(graph_file))
    weight = model.graph.initializer[0]
    raw = weight.raw_data
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(raw)))):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    graph_file.write_bytes(model.SerializeToString())
    (graph_file.parent / "weights.bin").write_bytes(raw)
    (graph_file.parent.parent / "weights.bin").write_bytes(raw)
    return graph_file


def test_weights_beside_the_graph_work(graph_file: Path) -> None:
    """A graph may keep its weights in a file of its folder; they count for its digest."""
    plain = ModelManager().register("linear", graph_file)
    manager = ModelManager()
    info = manager.register("linear", outside(graph_file, "weights.bin"))
    with manager.acquire("linear") as model:
        (answer,) = model.infer_batch([ModelInput(arrays={"x": [[1, 2, 3]], "flag": [7]})], {})
    assert not isinstance(answer, Exception)
    assert answer.outputs["y"].tolist() == [[17.0, 23.0]]
    assert info.digest != plain.digest


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", "x/../../weights.bin", ""])
def test_weights_outside_the_folder_are_refused(graph_file: Path, location: str) -> None:
    """A downloaded graph can't make this process read other files."""
    with pytest.raises(InvalidInput, match=r"outside its folder|are missing"):
        ModelManager().register("linear", outside(graph_file, location))


def test_a_link_out_of_the_folder_is_refused(graph_file: Path) -> None:
    """Nor by way of a symbolic link."""
    outside(graph_file, "weights.bin")
    (graph_file.parent / "weights.bin").unlink()
    (graph_file.parent / "weights.bin").symlink_to(graph_file.parent.parent / "weights.bin")
    with pytest.raises(InvalidInput, match="outside its folder"):
        ModelManager().register("linear", graph_file)


def test_weights_hidden_in_an_inner_graph_are_found(tmp_path: Path) -> None:
    """External data is looked for in branches, constants and functions too."""
    from onnx import TensorProto, helper

    tensor = helper.make_tensor("c", TensorProto.FLOAT, [1], [1.0])
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../secret"
    out = helper.make_tensor_value_info("c_out", TensorProto.FLOAT, [1])
    branch = helper.make_graph([helper.make_node("Constant", [], ["c_out"], value=tensor)], "branch", [], [out])
    node = helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    graph = helper.make_graph([node], "g", [flag], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])])
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    assert read_graph(path).external == ("../secret",)
    with pytest.raises(InvalidInput, match="outside its folder"):
        ModelManager().register("hidden", path)


@pytest.mark.parametrize("data", [b"", b"not a model", b"\xff" * 100, b"\x3a\x80\x80\x80\x80\x10", b"\x3a\x05abc"])
def test_what_is_no_onnx_file(tmp_path: Path, data: bytes) -> None:
    """Garbage is a typed error, never a crash."""
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(InvalidInput, match="no ONNX file"):
        ModelManager().register("garbage", path)


def test_a_cut_off_file(graph_file: Path) -> None:
    """Every prefix of a real file is refused or at least harmless."""
    whole = graph_file.read_bytes()
    for size in range(len(whole)):
        graph_file.write_bytes(whole[:size])
        try:
            read_graph(graph_file)
        except InvalidInput:
            continue
