"""Reading a `ModelInput`: which field is set, and whether what stands there fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from mainspring.errors import InvalidInput, invalid
from mainspring.tasks import ModelInput, Ref

T = TypeVar("T")
FIELDS = ("text", "pairs", "messages", "arrays")


def field_of(model_id: str, input: ModelInput, accepted: Sequence[str]) -> str:
    """Return the one field that is set. Raises InvalidInput when it is none, or another than the model reads."""
    present = [name for name in FIELDS if getattr(input, name) is not None]
    if len(present) != 1 or present[0] not in accepted:
        why = f"{' and '.join(present) or 'no field'} given, but model {model_id} reads {' or '.join(accepted)}"
        raise invalid("input", input, why, f"pass ModelInput({accepted[0]}=...)")
    return present[0]


def check_params(model_id: str, params: dict[str, Any], read: frozenset[str]) -> None:
    """Refuse options that would silently do nothing."""
    for name, value in params.items():
        if value is not None and value != {} and name not in read:
            known = ", ".join(sorted(read)) or "no options"
            raise invalid(f"params.{name}", value, f"model {model_id} does not read it", f"it reads {known}")


def texts_of(value: Any) -> list[str]:
    """Return a text or a list of texts as a list."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise invalid("input.text", value, "is neither a text nor a list of texts", "pass str or list[str]")
    return list(texts)


def pairs_of(value: Any) -> list[tuple[str, str]]:
    """Return the pairs of texts."""
    if not isinstance(value, (list, tuple)):
        raise invalid("input.pairs", value, "is no list of pairs", 'pass [("one text", "another"), ...]')
    for pair in value:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise invalid("input.pairs", pair, "is no pair of texts", 'pass ("one text", "another")')
    return [(pair[0], pair[1]) for pair in value]


def has_ref(value: Any) -> bool:
    """Whether a parent's result is still to come here."""
    if isinstance(value, dict):
        return any(has_ref(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return any(has_ref(item) for item in value)
    return isinstance(value, Ref)


def check_texts(model_id: str, input: ModelInput, accepted: Sequence[str] = ("text", "pairs")) -> None:
    """Refuse what a model of texts, of pairs or of both can't read."""
    field = field_of(model_id, input, accepted)
    value = getattr(input, field)
    if not has_ref(value):
        texts_of(value) if field == "text" else pairs_of(value)


def each(inputs: Sequence[ModelInput], read: Callable[[ModelInput], T]) -> list[T | InvalidInput]:
    """Apply `read` to every input; the error of one that does not fit stands in its place."""
    found: list[T | InvalidInput] = []
    for input in inputs:
        try:
            found.append(read(input))
        except InvalidInput as exc:
            found.append(exc)
    return found
