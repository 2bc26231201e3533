"""Handlers whose code is not here: what the store knows of them checks their arguments.

The JSON Schema is read as far as `tasks.codec.json_schema` writes it. What it leaves open (values that other tasks will
give, models that convert by themselves) passes: the worker looks again.
"""

from __future__ import annotations

import operator
import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from mainspring.errors import InvalidInput, StoreDamaged, invalid
from mainspring.tasks import Custom, Ref, TaskInput
from mainspring.tasks.codec import OWN_RULES, decode, encode

Schema = Mapping[str, Any]
_object = msgspec.json.Decoder(dict[str, Any])

_ENCODED = "contentEncoding"
"""A schema that has it stands for bytes."""
_BOUNDS: tuple[tuple[str, Callable[[Any, Any], bool]], ...] = (
    ("minimum", operator.ge),
    ("exclusiveMinimum", operator.gt),
    ("maximum", operator.le),
    ("exclusiveMaximum", operator.lt),
)
_SIZES = (("minLength", str, operator.ge), ("maxLength", str, operator.le), ("minItems", list, operator.ge),
          ("maxItems", list, operator.le))  # fmt: skip


class Declared(msgspec.Struct, frozen=True):
    """A handler as its worker declared it."""

    name: str
    options: dict[str, Any]  # max_retries, timeout, priority
    schema: dict[str, Any]

    @classmethod
    def read(cls, name: str, options: str, schema: str) -> Declared:
        """Return it from its row in the store. Raises StoreDamaged."""
        try:
            return cls(name, _object.decode(options), _object.decode(schema))
        except msgspec.DecodeError as exc:
            raise StoreDamaged(
                f"what the store knows of handler {name} can't be read ({exc}); start a worker that declares it: it "
                "writes that anew",
                field="task_type",
                value=name,
            ) from exc

    @property
    def _arguments(self) -> Schema:
        return self._resolved(self.schema)

    def check(self, input: TaskInput) -> None:
        """Raises InvalidInput for arguments that the handler does not take."""
        parameters = self._arguments.get("properties", {})
        takes = f"{self.name} takes ({', '.join(parameters)})"
        if not isinstance(input, Custom) or not isinstance(input.value, dict):
            raise invalid("input", input, "is not Custom with the arguments by name", takes)
        for name in input.value:
            if name not in parameters:
                raise invalid(str(name), input.value[name], f"is no parameter of {self.name}", takes)
        if missing := set(self._arguments.get("required", ())) - input.value.keys():
            raise InvalidInput(f"{self.name} misses {', '.join(sorted(missing))}; {takes}", field=min(missing))
        stored = decode(encode(input.value)[0])  # what the worker will see
        for name, value in stored.items():
            if why := self._fault(value, parameters[name], name):
                raise invalid(name, input.value[name], why, f"pass what {self.name} is annotated with")

    def from_json(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return arguments that came as JSON with the bytes that stand there as base64."""
        parameters = self._arguments.get("properties", {})
        return {name: self._with_bytes(value, parameters.get(name, {})) for name, value in arguments.items()}

    def _with_bytes(self, value: Any, schema: Schema | bool) -> Any:
        if isinstance(schema, bool):
            return value
        schema = self._resolved(schema)
        for kind in schema.get("anyOf", ()):
            if not self._fault(found := self._with_bytes(value, kind), kind, ""):
                return found
        if isinstance(value, str) and _ENCODED in schema:
            try:
                return b64decode(value, validate=True)
            except ValueError:
                return value  # `check` says so
        if isinstance(value, list):
            first, rest = schema.get("prefixItems", []), schema.get("items", True)
            return [self._with_bytes(item, first[n] if n < len(first) else rest) for n, item in enumerate(value)]
        if isinstance(value, dict):
            named, others = schema.get("properties", {}), schema.get("additionalProperties", True)
            return {name: self._with_bytes(item, named.get(name, others)) for name, item in value.items()}
        return value

    def _resolved(self, schema: Schema) -> Schema:
        while "$ref" in schema:
            schema = self.schema.get("$defs", {}).get(schema["$ref"].rpartition("/")[2], {})
        return schema

    def _fault(self, value: Any, schema: Schema | bool, path: str) -> str:
        """Return what is wrong with a value; nothing when it fits."""
        if isinstance(value, Ref) or isinstance(schema, bool):
            return ""
        schema = self._resolved(schema)
        if OWN_RULES in schema:
            return ""
        if "anyOf" in schema:
            faults = [self._fault(value, kind, path) for kind in schema["anyOf"]]
            return "" if "" in faults else f"{path} fits none of its types: {'; '.join(dict.fromkeys(faults))}"
        if "enum" in schema and not any(type(value) is type(one) and value == one for one in schema["enum"]):
            return f"{path} is none of {schema['enum']}"
        kind = schema.get("type")
        if kind in _FITS and not _FITS[kind](value, schema):
            return f"{path} is no {'bytes' if _ENCODED in schema else kind}"
        return _out_of_bounds(value, schema, path) or self._fault_inside(value, schema, path)

    def _fault_inside(self, value: Any, schema: Schema, path: str) -> str:
        if isinstance(value, list):
            first = schema.get("prefixItems", [])
            rest = schema.get("items", True)
            kinds = [*first, *[rest] * (len(value) - len(first))]
            faults = (self._fault(item, kind, f"{path}[{n}]") for n, (item, kind) in enumerate(zip(value, kinds)))  # noqa: B905 - bounds tell a wrong length
        elif isinstance(value, dict):
            if missing := [name for name in schema.get("required", ()) if name not in value]:
                return f"{path} misses {', '.join(missing)}"
            named, others = schema.get("properties", {}), schema.get("additionalProperties", True)
            if others is False and (unknown := [name for name in value if name not in named]):
                return f"{path} has the unknown field {unknown[0]}"
            faults = (self._fault(item, named.get(name, others), f"{path}.{name}") for name, item in value.items())
        else:
            return ""
        return next((fault for fault in faults if fault), "")


def _is_number(value: Any, _: Schema) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_text(value: Any, schema: Schema) -> bool:
    """Times, decimals and the like are texts in JSON, and need be none in the store; bytes never are one there."""
    if (_ENCODED in schema) != isinstance(value, bytes):
        return False
    if "format" in schema and _is_number(value, schema):
        return True
    return not isinstance(value, (int, float, list, dict, type(None))) and not hasattr(value, "dtype")


def _is_array(value: Any, schema: Schema) -> bool:
    """Without a type of its items it may stand for an array of numbers, which one number makes too."""
    is_open = not {"items", "prefixItems"} & schema.keys()
    return isinstance(value, list) or (is_open and not isinstance(value, (str, bytes, dict, type(None))))


_FITS: dict[str, Callable[[Any, Schema], bool]] = {
    "null": lambda value, _: value is None,
    "boolean": lambda value, _: isinstance(value, bool),
    "integer": lambda value, _: isinstance(value, int) and not isinstance(value, bool),
    "number": _is_number,
    "string": _is_text,
    "array": _is_array,
    "object": lambda value, _: isinstance(value, dict),
}


def _out_of_bounds(value: Any, schema: Schema, path: str) -> str:
    if _is_number(value, schema):
        for name, holds in _BOUNDS:
            if name in schema and not holds(value, schema[name]):
                return f"{path} is beyond its {name} of {schema[name]}"
    for name, kind, holds in _SIZES:
        if name in schema and isinstance(value, kind) and not holds(len(value), schema[name]):
            return f"{path} has a length of {len(value)}, {name} is {schema[name]}"
    if isinstance(value, str) and "pattern" in schema and re.search(schema["pattern"], value) is None:
        return f"{path} does not match {schema['pattern']}"
    return ""
