"""The stored form of values: what goes in comes out, and what is broken is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring import Custom, InternalError, InvalidInput, SearchHit, SearchQuery, TaskId, TaskPriority, TaskType, Text
from mainspring.tasks import (
    Binary,
    CustomOutput,
    EmbeddingOutput,
    ModelInput,
    Ref,
    SearchResults,
    StoredRef,
    TextOutput,
)
from mainspring.tasks.codec import (
    convert,
    decode,
    decode_input,
    decode_output,
    encode,
    from_json,
    json_schema,
    refs_in,
    to_json,
    with_results,
)
from mainspring.tasks.lifecycle import ALLOWED, TRANSITIONS, as_markdown

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(PLAIN)
def test_plain_values_come_back(value: Any) -> None:
    """JSON-like values and bytes, of every shape."""
    data, refs = encode(value)
    assert decode(data) == value
    assert refs == ()


@settings(max_examples=50, deadline=None)
@given(PLAIN, st.integers(0, 3))
def test_references_are_found_and_replaced(value: Any, count: int) -> None:
    """Whatever stands around them; each once, in the order of their appearance."""
    ids = [TaskId() for _ in range(count)]
    data, refs = encode([value, [Ref(id) for id in ids], {"again": [Ref(id) for id in ids]}])
    assert list(refs) == list(refs_in(data)) == ids
    assert decode(data)[1] == [Ref(id) for id in ids]
    results = {id: n for n, id in enumerate(ids)}
    if ids:
        assert decode(data, results) == [value, list(range(count)), {"again": list(range(count))}]


@pytest.mark.parametrize("given", [math.nan, math.inf, -math.inf, -0.0])
def test_odd_floats(given: float) -> None:
    """They are kept bit for bit."""
    back = decode(encode(given)[0])
    assert math.copysign(1, back) == math.copysign(1, given)
    assert back == given or (math.isnan(back) and math.isnan(given))


@pytest.mark.parametrize(
    "payload",
    [
        Text("a"),
        Text(["a", "b"]),
        Binary(b"x"),
        SearchQuery(text="a", top_k=3, filter={"k": 1}),
        ModelInput(text="x"),
        Custom({"a": [1]}),
    ],
    ids=lambda payload: type(payload).__name__,
)
def test_inputs(payload: Any) -> None:
    """Each kind by itself."""
    assert decode_input(encode(payload)[0]) == payload


@pytest.mark.parametrize(
    "payload",
    [
        TextOutput("a"), CustomOutput({"a": None}), SearchResults((SearchHit("1", 0.5, "t", {"k": 1}),), "c"),
        StoredRef("key", 3, "d"),
    ],
    ids=lambda payload: type(payload).__name__,
)  # fmt: skip
def test_outputs(payload: Any) -> None:
    """Each kind by itself, with its plain value."""
    assert decode_output(encode(payload)[0]) == payload
    if hasattr(payload, "value"):
        assert payload.value is not None


def test_vectors() -> None:
    """Embeddings come back as float32."""
    vectors = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    back = decode_output(encode(EmbeddingOutput(vectors, "m", (1,)))[0])
    assert isinstance(back, EmbeddingOutput)
    np.testing.assert_array_equal(back.vectors, vectors)


@pytest.mark.parametrize("header", [("|O", (1,)), ("<f4", (5,)), ("<f4", (-1, -1)), ("<U1", (1,))])
def test_broken_arrays_are_refused(header: Any) -> None:
    """A header that does not fit its bytes, or that would make objects, is never trusted."""
    raw = msgspec.msgpack.encode(header)
    data = msgspec.msgpack.encode(msgspec.msgpack.Ext(2, bytes((len(raw),)) + raw + b"\x00" * 4))
    with pytest.raises((InternalError, msgspec.DecodeError, ValueError)):
        decode(data)


def test_unknown_extensions_are_refused() -> None:
    """Written by something else."""
    with pytest.raises((InternalError, msgspec.DecodeError)):
        decode(msgspec.msgpack.encode(msgspec.msgpack.Ext(77, b"")))


def test_json_for_people() -> None:
    """Arrays become lists, bytes base64, references their id; broken JSON names itself."""
    id = TaskId()
    assert to_json({"a": np.arange(2), "b": b"ab", "r": Ref(id)}) == f'{{"a":[0,1],"b":"YWI=","r":{{"task":"{id}"}}}}'
    assert from_json('{"kind":"text","text":"a"}', Text) == Text("a")
    with pytest.raises(InvalidInput):
        from_json("{")
    assert json_schema(TaskId) == {"type": "string", "format": "uuid"}


def test_ids() -> None:
    """Fresh ones differ and grow; every form of one is the same."""
    ids = [TaskId.new() for _ in range(1_000)]
    assert len(set(ids)) == 1_000
    assert ids == sorted(ids)
    one = ids[0]
    assert TaskId(str(one)) == TaskId(one.bytes) == TaskId(one) == one
    assert TaskId(str(one).upper()) == one
    assert eval(repr(one)) == one
    assert one != str(one)
    wrong: list[Any] = [b"short", "x", 5, 1.5, [], "0" * 31]
    for bad in wrong:
        with pytest.raises(InvalidInput, match="task id"):
            TaskId(bad)


def test_types_and_priorities() -> None:
    """Text forms and numbers are the design's."""
    assert str(TaskType.TEXT_PROCESSING) == "text_processing"
    assert TaskType.custom("resize") == "custom:resize"
    assert (TaskType.custom("resize").name, TaskType.VECTOR_SEARCH.name) == ("resize", "vector_search")
    assert [int(priority) for priority in TaskPriority] == [0, 1, 2, 3]


def test_the_lifecycle_table() -> None:
    """Final states are absorbing, everything can be cancelled before its end, and the table reads as a page."""
    finals = {t.after for t in TRANSITIONS if t.after.status.is_final}
    assert len(finals) == 4
    assert not any(before in finals for before, _ in ALLOWED if before is not None)
    cancelled = next(state for state in finals if state.status.value == "cancelled")
    for state in {t.after for t in TRANSITIONS} - finals:
        assert (state, cancelled) in ALLOWED
    assert as_markdown().count("\n") == len(TRANSITIONS) + 1


def test_payloads_of_another_kind() -> None:
    """Asking for another kind is a typed error that names what came."""
    for call in (Text("a").as_query, Binary(b"a").as_text, Custom(1).as_model_input, SearchQuery(text="a").as_binary):
        with pytest.raises(InvalidInput, match="is not"):
            call()
    for wrong in (Text(5), Text([5]), Text([{"no": "text"}])):
        with pytest.raises(InvalidInput, match=r"input\.text"):
            wrong.as_text()


def test_a_text_is_no_bytes() -> None:
    """Stored bytes come as bytes; a text in their place would pass for base64."""
    assert convert({"a": [b"\xff"]}, dict[str, list[bytes]]) == {"a": [b"\xff"]}
    with pytest.raises(InvalidInput, match="Expected `bytes`, got `str`"):
        convert({"a": ["abcd"]}, dict[str, list[bytes]])


IDS = [TaskId(bytes([n]) * 16) for n in range(3)]
MARK = encode(Ref(IDS[0]))[0]
"""A reference, as it is stored: bytes that hold it are no reference."""
WITH_REFS = st.recursive(
    PLAIN | st.sampled_from([Ref(id) for id in IDS]) | st.sampled_from([MARK, MARK[:4], IDS[0].bytes]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab"), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(WITH_REFS, st.lists(PLAIN, min_size=3, max_size=3))
def test_results_are_put_in_place_as_bytes(value: Any, results: list[Any]) -> None:
    """Whatever stands around a reference: what comes of it is what decoding and encoding makes of it, or nothing."""
    data = encode(Custom(value))[0]
    outputs = {id.bytes: encode(CustomOutput(result))[0] for id, result in zip(IDS, results, strict=True)}
    whole = with_results(data, outputs)
    if whole is not None:
        assert decode_input(whole) == decode_input(data, dict(zip(IDS, results, strict=True)))
    else:
        assert data.count(MARK[:2]) != len(list(_refs_of(value)))


def _refs_of(value: Any) -> Iterator[Ref]:
    if isinstance(value, Ref):
        yield value
    for item in value if isinstance(value, list) else value.values() if isinstance(value, dict) else ():
        yield from _refs_of(item)


def test_what_only_looks_like_a_reference_stays() -> None:
    """Bytes that hold one, and results that are not given or of another kind, are left to the decoder."""
    output = encode(CustomOutput([1, 2]))[0]
    data = encode(Custom({"a": Ref(IDS[0]), "b": MARK}))[0]
    assert with_results(data, {IDS[0].bytes: output}) is None
    data = encode(Custom([Ref(IDS[0]), Ref(IDS[1]), Ref(IDS[0])]))[0]
    assert with_results(data, {IDS[0].bytes: output}) is None
    assert with_results(data, {IDS[0].bytes: output, IDS[1].bytes: encode(TextOutput("x"))[0]}) is None
    whole = with_results(data, {IDS[0].bytes: output, IDS[1].bytes: encode(CustomOutput("x"))[0]})
    assert whole == encode(Custom([[1, 2], "x", [1, 2]]))[0]
    assert with_results(encode(Text(Ref(IDS[0])))[0], {IDS[0].bytes: output}) is None


class _Noted:
    """A value whose own plain form takes encoding another one."""

    def __init__(self, ref: Ref) -> None:
        self.ref = ref

    def model_dump(self, mode: str) -> dict[str, Any]:
        assert encode([self.ref])[1] == (self.ref.id,)
        return {}


def test_values_that_are_encoded_within_one_another_keep_their_own_references() -> None:
    outer, inner = Ref(TaskId()), Ref(TaskId())
    assert encode([outer, _Noted(inner), outer])[1] == (outer.id,)


def test_a_value_that_could_not_be_encoded_leaves_no_reference_behind() -> None:
    with pytest.raises(InvalidInput):
        encode([Ref(TaskId()), object()])
    assert encode([1])[1] == ()
