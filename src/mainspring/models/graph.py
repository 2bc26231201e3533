"""What an ONNX file says about itself, read without the runtime and without touching the weights.

Two reasons to read the protobuf here: a submit must know the inputs before anything is loaded, and files that the graph
names outside its own folder must be refused before the runtime opens them.

Source: onnx.proto3 of the ONNX project (field numbers).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import msgspec

from mainspring.errors import invalid

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 64  # of graphs inside of graphs; real ones have two or three

_DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "object", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64",
}  # fmt: skip

_INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
"""Which field of which message leads on to a tensor; a tensor may name a file outside."""


class GraphInput(msgspec.Struct, frozen=True):
    name: str
    dtype: str | None  # numpy's name; "object" is text; None is something else than a tensor
    shape: tuple[int | str | None, ...] | None  # a name stands for a size that is free; None: any shape

    def __str__(self) -> str:
        shape = "any shape" if self.shape is None else "[" + ", ".join(str(dim or "?") for dim in self.shape) + "]"
        return f"{self.name}: {'text' if self.dtype == 'object' else self.dtype} {shape}"


class Graph(msgspec.Struct, frozen=True):
    inputs: tuple[GraphInput, ...]
    outputs: tuple[str, ...]
    external: tuple[str, ...]  # files that hold weights, relative to the graph's own


class _Reader:
    """Walks protobuf messages in a mapped file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.external: dict[str, None] = {}

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield number, wire type and either (value, 0) or (start, end) of each field."""
        while start < end:
            key, start = self._varint(start)
            number, wire = key >> 3, key & 7
            if wire == _VARINT:
                value, start = self._varint(start)
                yield number, wire, value, 0
                continue
            if wire == _BYTES:
                size, start = self._varint(start)
            elif wire in (_FIXED64, _FIXED32):
                size = 8 if wire == _FIXED64 else 4
            else:
                raise ValueError(f"wire type {wire}")
            if start + size > end:
                raise ValueError("a field reaches beyond its message")
            yield number, wire, start, start + size
            start += size

    def _varint(self, at: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise ValueError("a number without end")

    def text(self, start: int, end: int) -> str:
        return self.data[start:end].decode()

    def inner(self, start: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
        for number, wire, left, right in self.fields(start, end):
            if number == wanted and wire == _BYTES:
                yield left, right

    def find_external(self, message: str, start: int, end: int, depth: int = 0) -> None:
        if depth > _MAX_DEPTH:
            raise ValueError("graphs are nested too deeply")
        if message == "tensor":
            for entry in self.inner(start, end, 13):
                self._external_entry(*entry)
            return
        inside = _INSIDE[message]
        for number, wire, left, right in self.fields(start, end):
            if wire == _BYTES and number in inside:
                self.find_external(inside[number], left, right, depth + 1)

    def _external_entry(self, start: int, end: int) -> None:
        fields = self.fields(start, end)
        entry = {number: self.text(left, right) for number, wire, left, right in fields if wire == _BYTES}
        if entry.get(1) == "location":
            self.external[entry.get(2, "")] = None

    def value(self, start: int, end: int) -> GraphInput:
        name, dtype, shape = "", None, None
        for number, wire, left, right in self.fields(start, end):
            if number == 1 and wire == _BYTES:
                name = self.text(left, right)
            elif number == 2 and wire == _BYTES:
                for tensor in self.inner(left, right, 1):
                    dtype, shape = self._tensor_type(*tensor)
        return GraphInput(name, dtype, shape)

    def _tensor_type(self, start: int, end: int) -> tuple[str | None, tuple[int | str | None, ...] | None]:
        dtype, shape = None, None
        for number, wire, left, right in self.fields(start, end):
            if number == 1 and wire == _VARINT:
                dtype = _DTYPES.get(left)
            elif number == 2 and wire == _BYTES:
                shape = tuple(self._dim(*dim) for dim in self.inner(left, right, 1))
        return dtype, shape

    def _dim(self, start: int, end: int) -> int | str | None:
        for number, wire, left, right in self.fields(start, end):
            if number == 1 and wire == _VARINT:
                return left if left < 1 << 63 else None  # a negative size is a free one
            if number == 2 and wire == _BYTES:
                return self.text(left, right) or None
        return None


def read_graph(path: Path) -> Graph:
    """Return inputs, outputs and outside files of an ONNX model.

    Raises: InvalidInput: not there, or no ONNX file.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(_Reader(data))
    except OSError as exc:
        raise invalid("model", str(path), f"can't be read ({exc})", "pass the path of an .onnx file") from exc
    except (ValueError, IndexError, UnicodeDecodeError) as exc:
        raise invalid("model", str(path), f"is no ONNX file ({exc})", "export the model to ONNX") from exc


def _read(reader: _Reader) -> Graph:
    end = len(reader.data)
    graphs = list(reader.inner(0, end, 7))
    if len(graphs) != 1:
        raise ValueError("it has no graph")
    start, stop = graphs[0]
    weights: set[str] = set()
    for tensor in reader.inner(start, stop, 5):
        weights.update(reader.text(*name) for name in reader.inner(*tensor, 8))
    inputs = tuple(value for at in reader.inner(start, stop, 11) if (value := reader.value(*at)).name not in weights)
    outputs = tuple(reader.value(*at).name for at in reader.inner(start, stop, 12))
    reader.find_external("model", 0, end)
    return Graph(inputs, outputs, tuple(reader.external))


def external_files(path: Path, graph: Graph, root: Path | None = None) -> tuple[Path, ...]:
    """Return the files that hold the graph's weights beside it.

    Raises: InvalidInput: one lies outside the graph's folder (or outside `root`, where links lead into a shared cache).
    """
    folder = path.parent
    allowed = (root or folder).resolve()
    found = []
    for name in graph.external:
        file = folder / name
        if not file.resolve().is_relative_to(allowed):
            raise invalid("model", str(path), f"wants weights from {name!r}, outside its folder", "don't use this file")
        if not file.is_file():
            raise invalid("model", str(path), f"its weights {name!r} are missing", "copy that file beside it")
        found.append(file)
    return tuple(found)
