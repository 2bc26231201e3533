"""Ids are values: ordered, unchangeable, and made of whatever names a UUID."""

from __future__ import annotations

import copy
import uuid
from typing import Any

import pytest
import uuid_utils

from mainspring import InvalidInput, TaskId, TaskType


def test_an_id_does_not_change() -> None:
    """It is a key in dictionaries and in the store."""
    id = TaskId()
    with pytest.raises(AttributeError):
        id.bytes = b"1" * 16  # type: ignore[misc]
    assert copy.deepcopy(id) == id


def test_ids_have_an_order() -> None:
    """All four comparisons, by time of creation; with other things there is none."""
    first, second = TaskId(), TaskId()
    assert first < second
    assert first <= second
    assert second > first
    assert second >= first
    assert first <= copy.copy(first)
    other: Any = 5
    for compare in (lambda: first < other, lambda: first >= other):
        with pytest.raises(TypeError):
            compare()


def test_what_makes_an_id() -> None:
    """UUIDs of any library, their text and their bytes; the rest is refused by name."""
    given = uuid.uuid4()
    for same in (given, uuid_utils.UUID(str(given)), str(given), given.bytes, TaskId(given)):
        assert str(TaskId(same)) == str(given)
    for bad in (5, b"12", "no id", object(), 1.5):
        with pytest.raises(InvalidInput) as caught:
            TaskId(bad)  # type: ignore[arg-type]
        assert caught.value.field == "task id"


@pytest.mark.parametrize("bad", [5, None, [], "x", b"text_processing"], ids=str)
def test_what_is_no_type(bad: object) -> None:
    """Refused whatever it is."""
    with pytest.raises(InvalidInput, match="is no task type"):
        TaskType(bad)  # type: ignore[arg-type]
