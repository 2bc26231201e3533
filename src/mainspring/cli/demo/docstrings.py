"""From imported modules to documents: which names are public, what an object is called, what is worth a document."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import GetSetDescriptorType, MemberDescriptorType, ModuleType
from typing import Any, Literal

Kind = Literal["module", "class", "function", "method", "property", "object", "topic"]

_SAYS_NOTHING = re.compile(
    r"\w+(\([^()]*\))?|Alias for field number \d+|An enumeration\.|Initialize self\.  See help\(type\(self\)\).*"
)
"""Docstrings that Python writes by itself, for tuples with names, data classes, enumerations and syntax nodes."""

_LONGEST_SIGNATURE = 160  # characters; subprocess.Popen's 500 would fill half of what the model reads
_LONGEST_DEFAULT = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One documented thing. `text` is what is indexed; its first line is `name`."""

    name: str  # "json.dumps", "pathlib.Path.read_text", "topic:with"; unique
    module: str  # "json"; "pydoc_data.topics" for topics
    kind: Kind
    text: str


class _Elided:
    """Stands in a signature for a default that may differ between machines, as os.environ does."""

    def __repr__(self) -> str:
        return "..."


def of_modules(modules: Mapping[str, ModuleType]) -> Iterator[Document]:
    """Yield a document for each module, public class, function, method and property with a docstring of its own.

    Modules come in the order given. Of several names for one object the one in the module that stands first wins: there
    a name outside of classes, and of those the one that the object calls itself.
    """
    seen: set[int] = set()
    for module, content in modules.items():
        yield from _document(module, module, "module", "", content.__doc__)
        for attribute, thing in _unseen(_public(module, content), seen).items():
            name = f"{module}.{attribute}"
            if inspect.isclass(thing):
                yield from _of_class(name, module, thing, seen)
            elif inspect.isroutine(thing):
                yield from _document(name, module, "function", _signature(thing), thing.__doc__)
            elif thing.__doc__ != type(thing).__doc__:
                yield from _document(name, module, "object", "", thing.__doc__)


def _unseen(things: Mapping[str, Any], seen: set[int]) -> dict[str, Any]:
    """Return the things that were not seen yet under one name each, alphabetically but aliases last, and mark them."""
    fresh: dict[str, Any] = {}
    for name in sorted(things, key=lambda name: (name != getattr(things[name], "__name__", None), name)):
        function = _function(things[name])
        if id(function) not in seen:
            seen.add(id(function))
            fresh[name] = things[name]
    return fresh


def _public(module: str, content: ModuleType) -> dict[str, Any]:
    listed = getattr(content, "__all__", None)
    names = listed if listed is not None else [name for name in vars(content) if not name.startswith("_")]
    things = {name: _original(content, name) for name in names}
    if listed is None and module != "builtins":  # where all belongs together: open() says that it lives in io
        homes = (module, f"_{module}")  # the C half of sqlite3 is _sqlite3
        things = {name: thing for name, thing in things.items() if getattr(thing, "__module__", None) in homes}
    return {name: thing for name, thing in things.items() if thing is not None and not inspect.ismodule(thing)}


def _original(content: ModuleType, name: str) -> Any:
    """Return what the module has by that name; a hook, say sys.excepthook, as it was before a program set its own."""
    found = getattr(content, name, None)
    return getattr(content, f"__{name}__", found) if name.endswith("hook") else found


def _of_class(name: str, module: str, cls: type, seen: set[int]) -> Iterator[Document]:
    docs = [cls.__doc__, vars(cls)["__init__"].__doc__ if "__init__" in vars(cls) else None]
    yield from _document(name, module, "class", _signature(cls), "\n\n".join(filter(None, map(_cleaned, docs))))
    for attribute, thing in _unseen(_members(cls), seen).items():
        if isinstance(thing, (property, functools.cached_property, GetSetDescriptorType, MemberDescriptorType)):
            yield from _document(f"{name}.{attribute}", module, "property", "", thing.__doc__)
        elif inspect.isroutine(thing):
            function = _function(thing)
            yield from _document(f"{name}.{attribute}", module, "method", _signature(function), function.__doc__)


def _members(cls: type) -> dict[str, Any]:
    """Return what the class defines, also in bases that nobody can name: most of socket.socket is in _socket.socket."""
    hidden = [base for base in cls.__bases__ if any(part.startswith("_") for part in base.__module__.split("."))]
    found = {name: thing for owner in (*hidden, cls) for name, thing in vars(owner).items()}
    return {name: thing for name, thing in found.items() if not name.startswith("_")}


def _function(thing: Any) -> Any:
    """Return what a bound, class or static method wraps: random.choice is the function of Random.choice."""
    return getattr(thing, "__func__", thing)


def _signature(thing: Any) -> str:
    """Return the parameters as text, "(s, *, cls=None)", or "" where Python doesn't know them."""
    try:
        found = inspect.signature(thing)
    except (ValueError, TypeError, NameError, AttributeError):  # C code without one; annotations that don't resolve
        return ""
    parameters = [
        parameter.replace(annotation=parameter.empty, default=_stable(parameter.default))
        for parameter in found.parameters.values()
        if parameter.name not in ("self", "cls")
    ]
    text = str(found.replace(parameters=parameters, return_annotation=found.empty))
    return text if len(text) <= _LONGEST_SIGNATURE else f"{text[:_LONGEST_SIGNATURE]}...)"


def _stable(default: Any) -> Any:
    if default is inspect.Parameter.empty:
        return default
    literal = default is None or isinstance(default, (bool, int, float, str, bytes))
    return default if literal and len(repr(default)) <= _LONGEST_DEFAULT else _Elided()


def _cleaned(doc: object) -> str:
    text = inspect.cleandoc(doc).strip() if isinstance(doc, str) else ""
    return "" if _SAYS_NOTHING.fullmatch(text) else text


def _document(name: str, module: str, kind: Kind, signature: str, doc: object) -> Iterator[Document]:
    body = _cleaned(doc)
    if body:
        yield Document(name=name, module=module, kind=kind, text=layout(name, signature, body))


def layout(name: str, signature: str, body: str) -> str:
    """Return the text that is indexed for a document: a question must meet the name in it (see docs/demo-data.md)."""
    return "\n".join(filter(None, (name, signature))) + f"\n\n{body}\n"
