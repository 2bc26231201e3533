"""ONNX graphs through onnxruntime: the session's settings, and models whose inputs and outputs are named arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mainspring.errors import InvalidInput, ProcessingFailed, invalid
from mainspring.models.base import BlockingModel, ModelInfo
from mainspring.models.graph import Graph, GraphInput
from mainspring.models.inputs import check_params, each, field_of, has_ref
from mainspring.tasks import ModelInput, ModelOutput, Ref

if TYPE_CHECKING:
    from numpy.typing import NDArray


def open_session(path: Path, threads: int) -> Any:
    """Return a session of onnxruntime on the CPU.

    Its memory arena is off: it would keep the peak of the largest batch for ever. Several threads may run one session
    at once, which beats threads inside a call.

    Raises: InvalidInput: onnxruntime is missing, or it can't load the graph.
    """
    try:
        import onnxruntime
    except ImportError as exc:
        raise InvalidInput("ONNX models need onnxruntime: pip install 'mainspring[onnx]'", field="model_id") from exc
    options = onnxruntime.SessionOptions()
    options.enable_cpu_mem_arena = False
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only; they are raised as well
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # the runtime's exceptions have no common base of their own
        raise invalid("model", str(path), f"onnxruntime can't load it ({exc})", "export the model again") from exc


def to_array(wanted: GraphInput, value: Any) -> NDArray[Any]:
    """Return the value as the array that the graph wants. Raises InvalidInput when that would lose something."""
    import numpy as np

    field = f"input.arrays.{wanted.name}"
    given = value if isinstance(value, np.ndarray) else None
    try:
        array = np.asarray(value) if wanted.dtype != "object" else np.asarray(value, dtype=object)
    except ValueError as exc:
        raise invalid(field, value, f"is no array ({exc})", f"pass {wanted}") from exc
    if wanted.dtype != "object" and array.dtype != wanted.dtype:
        if array.size and not _castable(array, wanted.dtype, from_list=given is None):
            raise invalid(field, array.dtype.name, "is of another dtype", f"pass {wanted}")
        array = array.astype(wanted.dtype)
    if wanted.shape is not None and not _fits(array.shape, wanted.shape):
        raise invalid(field, array.shape, "is of another shape", f"pass {wanted}")
    return array


def _castable(array: NDArray[Any], dtype: str | None, *, from_list: bool) -> bool:
    import numpy as np

    if array.dtype.kind not in "biuf" or not np.can_cast(array.dtype, str(dtype), "same_kind"):
        # A list of whole numbers is what JSON gives for floats and for unsigned integers alike.
        return from_list and array.dtype.kind == "i" and np.dtype(dtype).kind in "uf" and _keeps(array, dtype)
    return array.dtype.kind == "f" or _keeps(array, dtype)


def _keeps(array: NDArray[Any], dtype: str | None) -> bool:
    import numpy as np

    return np.dtype(dtype).kind == "f" or bool((array.astype(dtype) == array).all())


def _fits(shape: tuple[int, ...], wanted: tuple[int | str | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        not isinstance(want, int) or size == want for size, want in zip(shape, wanted, strict=True)
    )


def read_arrays(model_id: str, graph: Graph, arrays: Any) -> dict[str, NDArray[Any]]:
    """Return the graph's inputs by name, references to parents left out. Raises: InvalidInput."""
    expected = "; ".join(map(str, graph.inputs))
    names = [wanted.name for wanted in graph.inputs]
    if not isinstance(arrays, Mapping) or sorted(arrays) != sorted(names):
        got = sorted(arrays) if isinstance(arrays, Mapping) else type(arrays).__name__
        raise invalid("input.arrays", got, f"model {model_id} has other inputs", f"pass {expected}")
    read = {}
    sizes: dict[str, tuple[int, str]] = {}
    for wanted in graph.inputs:
        if has_ref(arrays[wanted.name]):
            continue
        array = to_array(wanted, arrays[wanted.name])
        for dim, size in zip(wanted.shape or (), array.shape, strict=False):
            known, first = sizes.setdefault(str(dim), (size, wanted.name)) if isinstance(dim, str) else (size, "")
            if known != size:
                why = f"{dim} is {size} here and {known} in {first}"
                raise invalid(f"input.arrays.{wanted.name}", array.shape, why, f"pass {expected}")
        read[wanted.name] = array
    return read


def check_arrays(model_id: str, graph: Graph, input: ModelInput, params: dict[str, Any]) -> None:
    """Refuse what the graph can't read."""
    check_params(model_id, params, frozenset())
    field_of(model_id, input, ("arrays",))
    if not isinstance(input.arrays, Ref):
        read_arrays(model_id, graph, input.arrays)


class OnnxGraph(BlockingModel):
    """Any ONNX graph: ModelInput(arrays={name: array or nested lists}) gives {output name: array}."""

    def __init__(self, info: ModelInfo, path: Path, graph: Graph, threads: int = 1) -> None:
        self.info = info
        self.graph = graph
        self._session = open_session(path, threads)

    def check(self, input: ModelInput, params: dict[str, Any]) -> None:
        check_arrays(self.info.model_id, self.graph, input, params)

    def infer_batch(self, inputs: Sequence[ModelInput], params: dict[str, Any]) -> list[ModelOutput | Exception]:
        return [feeds if isinstance(feeds, InvalidInput) else self._run(feeds) for feeds in each(inputs, self._feeds)]

    def _feeds(self, input: ModelInput) -> dict[str, NDArray[Any]]:
        field_of(self.info.model_id, input, ("arrays",))
        return read_arrays(self.info.model_id, self.graph, input.arrays)

    def _run(self, feeds: dict[str, NDArray[Any]]) -> ModelOutput | Exception:
        try:
            values = self._session.run(None, feeds)
        except Exception as exc:  # noqa: BLE001 - becomes this item's own error
            return ProcessingFailed(f"model {self.info.model_id} failed: {exc}")
        return ModelOutput(dict(zip(self.graph.outputs, map(_storable, values), strict=True)))


def _storable(value: Any) -> Any:
    """Texts come as arrays of objects, which can't be stored; sequences and maps are plain already."""
    return value.tolist() if getattr(getattr(value, "dtype", None), "kind", "") == "O" else value
