"""Bytes in the store: MessagePack of JSON-like values, bytes, numpy arrays and references to tasks. Never pickle.

Two extension types: 1 is a reference to a task (its 16 bytes), 2 is an array (header with dtype and shape, then the raw
buffer in C order).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from mainspring.errors import InternalError, InvalidInput, StoreDamaged, invalid
from mainspring.tasks.identity import TaskId, TaskType
from mainspring.tasks.payloads import Custom, Ref, TaskInput, TaskOutput
from mainspring.tasks.task import ErrorInfo

if TYPE_CHECKING:
    import numpy

_REF, _ARRAY = 1, 2
_REF_HEAD = b"\xd8\x01"  # an extension of 16 bytes, of type 1
_REF_BYTES = 16
_CUSTOM = msgspec.msgpack.encode(Custom(None))[:-1]
"""What stands before the value, in a `Custom` as in a `CustomOutput`."""
_DTYPES = frozenset("?bBhHiIlLqQefdFD")
BYTES = (bytes, bytearray, memoryview)
"""What `msgspec.convert` need not find written as a text."""
UNREADABLE = (msgspec.DecodeError, InternalError, ValueError)
"""What reading stored bytes raises that are none of ours, or not any more."""
T = TypeVar("T")


def _pack_array(array: numpy.ndarray[Any, Any]) -> msgspec.msgpack.Ext:
    import numpy as np

    if array.dtype.char not in _DTYPES:
        raise invalid("payload", array.dtype, "arrays of this dtype can't be stored", "use numbers or booleans")
    header = msgspec.msgpack.encode((array.dtype.str, array.shape))
    return msgspec.msgpack.Ext(_ARRAY, bytes((len(header),)) + header + np.ascontiguousarray(array).tobytes())


def _unpack_array(data: memoryview) -> numpy.ndarray[Any, Any]:
    import numpy as np

    size = data[0]
    dtype, shape = msgspec.msgpack.decode(data[1 : 1 + size], type=tuple[str, tuple[int, ...]])
    if np.dtype(dtype).char not in _DTYPES or math.prod(shape) * np.dtype(dtype).itemsize != len(data) - 1 - size:
        raise InternalError(f"stored array has a broken header: {dtype} {shape}")
    return np.frombuffer(data[1 + size :], dtype=dtype).reshape(shape).copy()


def _plain(value: Any, on_ref: Callable[[Ref], Any]) -> Any:
    if isinstance(value, Ref):
        return on_ref(value)
    if isinstance(value, TaskId):
        return str(value)
    if isinstance(value, TaskType):
        return str.__str__(value)
    module = type(value).__module__
    if module == "numpy":
        if type(value).__name__ == "ndarray":
            return _pack_array(value)
        if hasattr(value, "item"):
            return value.item()
    if module.partition(".")[0] == "pydantic" or hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    raise invalid(
        "payload",
        value,
        f"{type(value).__module__}.{type(value).__qualname__} can't be stored",
        "pass JSON-like values, bytes, numpy arrays, dataclasses or msgspec structs",
    )


class _Keeper:
    """An encoder that keeps references and notes them. It encodes one value at a time."""

    __slots__ = ("encode", "found")

    def __init__(self) -> None:
        found = self.found = dict[bytes, None]()

        def keep(ref: Ref) -> msgspec.msgpack.Ext:
            found[ref.key] = None
            return msgspec.msgpack.Ext(_REF, ref.key)

        self.encode = msgspec.msgpack.Encoder(enc_hook=lambda item: _plain(item, keep), decimal_format="string").encode


_keepers: list[_Keeper] = []
"""Those that are free: as many as ever encoded at the same time, in several threads or one within another."""
_NO_REFS: tuple[TaskId, ...] = ()


def encode(value: Any) -> tuple[bytes, tuple[TaskId, ...]]:
    """Return the bytes and the tasks that the value refers to, in order of first appearance.

    Raises: InvalidInput: something in there can't be stored.
    """
    try:
        keeper = _keepers.pop()
    except IndexError:
        keeper = _Keeper()
    found = keeper.found
    try:
        data = keeper.encode(value)
        return data, tuple([TaskId(key) for key in found]) if found else _NO_REFS
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise _unstorable(value, exc) from exc
    finally:
        if found:
            found.clear()
        _keepers.append(keeper)


def _unstorable(value: Any, exc: Exception) -> InvalidInput:
    return invalid("payload", value, f"can't be stored ({exc})", "pass JSON-like values, bytes or arrays")


def _unpack(code: int, data: memoryview) -> Any:
    if code == _ARRAY:
        return _unpack_array(data)
    if code == _REF:
        return Ref(TaskId(bytes(data)))
    raise InternalError(f"stored payload has the unknown extension type {code}")


_decoder = msgspec.msgpack.Decoder(ext_hook=_unpack)


def decode(data: bytes, results: Mapping[TaskId, Any] | None = None) -> Any:
    """Return plain values; references become the given results, or stay `Ref` where none are given."""
    if not results:
        return _decoder.decode(data)

    def unpack(code: int, raw: memoryview) -> Any:
        return results[TaskId(bytes(raw))] if code == _REF else _unpack(code, raw)

    return msgspec.msgpack.decode(data, ext_hook=unpack)


def _from_plain(wanted: Any, value: Any) -> Any:
    if wanted is TaskId or wanted is TaskType:
        return wanted(value)
    if isinstance(wanted, type) and isinstance(value, wanted):
        return value
    if getattr(wanted, "__name__", "") == "ndarray":
        import numpy as np

        return np.asarray(value)
    if hasattr(wanted, "model_validate"):
        return wanted.model_validate(value)
    raise TypeError(f"can't make {wanted!r} of {type(value).__name__}")


def convert(value: Any, wanted: type[T] | Any, field: str = "input", *, strict: bool = True) -> T:
    """Return `value` as the wanted type. Raises InvalidInput that names the path within the field.

    Bytes are bytes: a text is not taken for base64.
    """
    try:
        return msgspec.convert(value, wanted, dec_hook=_from_plain, strict=strict, builtin_types=BYTES)
    except (msgspec.ValidationError, TypeError, AttributeError) as exc:  # the last of an array where a dict is wanted
        name = getattr(wanted, "__name__", str(wanted))
        raise invalid(field, value, str(exc), f"pass what fits {name}") from exc
    except ValueError as exc:  # pydantic's ValidationError is one
        raise invalid(field, value, str(exc), "pass a value that validates") from exc


def encode_input(value: TaskInput) -> tuple[bytes, tuple[TaskId, ...]]:
    return encode(value)


_input_decoder: msgspec.msgpack.Decoder[TaskInput] = msgspec.msgpack.Decoder(TaskInput, ext_hook=_unpack)
_output_decoder: msgspec.msgpack.Decoder[TaskOutput] = msgspec.msgpack.Decoder(TaskOutput, ext_hook=_unpack)
_output_looker = msgspec.msgpack.Decoder(TaskOutput, ext_hook=lambda code, data: None)
_error_decoder = msgspec.msgpack.Decoder(ErrorInfo)


def decode_input(data: bytes, results: Mapping[TaskId, Any] | None = None) -> TaskInput:
    """Return the input; with results of parents put in place of the references. Raises InvalidInput."""
    if not results:
        try:
            return _input_decoder.decode(data)
        except (msgspec.DecodeError, InternalError) as exc:
            raise InvalidInput(f"the stored input can't be read ({exc}); submit the task again") from exc
    return convert(decode(data, results), TaskInput)


def decode_output(data: bytes, results: Mapping[TaskId, Any] | None = None) -> TaskOutput:
    if not results:
        return _output_decoder.decode(data)
    return convert(decode(data, results), TaskOutput)


def is_output(data: bytes) -> bool:
    """Whether stored bytes are an output. What its arrays hold is not looked at."""
    try:
        _output_looker.decode(data)
    except msgspec.DecodeError:
        return False
    return True


def stored_output(task: bytes, data: bytes, results: Mapping[TaskId, Any] | None = None) -> TaskOutput:
    """Return a task's output as `decode_output` does. Raises StoreDamaged."""
    try:
        return decode_output(data, results)
    except UNREADABLE as exc:
        raise unreadable("output", TaskId(task), exc) from exc


def stored_error(task: bytes, data: bytes) -> ErrorInfo:
    """Return why a task did not complete. Raises StoreDamaged."""
    try:
        return _error_decoder.decode(data)
    except msgspec.DecodeError as exc:
        raise unreadable("error", TaskId(task), exc) from exc


def blob_named(task: bytes, field: str, data: bytes) -> str:
    """Return the digest of the blob that a task's payload lives in. Raises StoreDamaged."""
    if not data.isalnum():
        raise unreadable(field, TaskId(task), ValueError(f"{data[:80]!r} names no blob"))
    return data.decode()


def unreadable(field: str, task: TaskId, exc: BaseException) -> StoreDamaged:
    return StoreDamaged(
        f"the stored {field} of task {task} can't be read ({exc}); submit the task again, or restore a backup; "
        "`mainspring doctor --check` finds all such values",
        field=field,
        value=task,
    )


def _json_plain(value: Any) -> Any:
    if type(value).__module__ == "numpy" and type(value).__name__ == "ndarray":
        return value.tolist()
    return _plain(value, lambda ref: {"task": str(ref.id)})


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Text for people and scripts: arrays become lists, bytes base64, times ISO 8601."""
    raw = msgspec.json.encode(value, enc_hook=_json_plain)
    return (raw if indent is None else msgspec.json.format(raw, indent=indent)).decode()


def from_json(text: str | bytes, wanted: type[T] | Any = Any, field: str = "input") -> T:
    try:
        return msgspec.json.decode(text, type=wanted, dec_hook=_from_plain)
    except (msgspec.DecodeError, UnicodeError) as exc:
        raise invalid(field, text, str(exc), "pass valid JSON") from exc


OWN_RULES = "$comment"
"""A schema that has it is for people: what fits is decided elsewhere."""


def json_schema(wanted: Any) -> dict[str, Any]:
    """Return the JSON Schema of a type that `convert` takes."""

    def own(kind: type) -> dict[str, Any]:
        if kind is TaskId:
            return {"type": "string", "format": "uuid"}
        if hasattr(kind, "model_json_schema"):
            return {**kind.model_json_schema(), OWN_RULES: "values are converted by the model's own rules"}
        return {"type": "array"} if kind.__name__ == "ndarray" else {"type": "string"}

    return msgspec.json.schema(wanted, schema_hook=own)


def with_refs(data: bytes, ids: Mapping[bytes, bytes]) -> bytes:
    """Return stored bytes with references to some tasks turned into references to others."""
    for old, new in ids.items():
        data = data.replace(_REF_HEAD + old, _REF_HEAD + new)
    return data


def refs_in(data: bytes) -> tuple[TaskId, ...]:
    """Return the tasks that stored bytes refer to."""
    return tuple([TaskId(id) for id in dict.fromkeys(_refs(data))])


def _refs(data: bytes) -> list[bytes]:
    """Return the ids in all references, in their order."""
    found: list[bytes] = []

    def note(code: int, raw: memoryview) -> Any:
        if code == _REF:
            found.append(bytes(raw))

    msgspec.msgpack.decode(data, ext_hook=note)
    return found


def with_results(data: bytes, outputs: Mapping[bytes, bytes]) -> bytes | None:
    """Return a stored `Custom` input with the values of stored outputs, by task, in place of all references.

    None where that takes more than putting bytes in place of bytes: another kind of input or output, an output that is
    not given, or a value that looks like a reference. Raises msgspec.DecodeError.
    """
    if not data.startswith(_CUSTOM):
        return None
    first, *others = data.split(_REF_HEAD)
    if len(others) != len(_refs(data)):
        return None
    pieces = [first]
    for other in others:
        output = outputs.get(other[:_REF_BYTES])
        if output is None or not output.startswith(_CUSTOM):
            return None
        pieces += (output[len(_CUSTOM) :], other[_REF_BYTES:])
    return b"".join(pieces)
