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

    Modules come in the order given. Of several names for one object the one in the module that stands first wins, and
    there the one that the object calls itself.
    """
    named = _canonical_names(modules)
    seen = {id(_function(thing)) for things in named.values() for thing in things.values()}
    for module, things in named.items():
        yield from _document(module, module, "module", "", modules[module].__doc__)
        for attribute, thing in things.items():
            name = f"{module}.{attribute}"
            if inspect.isclass(thing):
                yield from _of_class(name, module, thing, seen)
            elif inspect.isroutine(thing):
                yield from _document(name, module, "function", _signature(thing), thing.__doc__)
            elif thing.__doc__ != type(thing).__doc__:
                yield from _document(name, module, "object", "", thing.__doc__)


def _canonical_names(modules: Mapping[str, ModuleType]) -> dict[str, dict[str, Any]]:
    """Return for each module the public things that are called by its name: alphabetically, but aliases last."""
    taken: set[int] = set()
    named: dict[str, dict[str, Any]] = {}
    for module, content in modules.items():
        public = _public(module, content)
        named[module] = {}
        for name in sorted(public, key=lambda name: (name != getattr(public[name], "__name__", None), name)):
            function = _function(public[name])
            if id(function) not in taken:
                taken.add(id(function))
                named[module][name] = public[name]
    return named


def _public(module: str, content: ModuleType) -> dict[str, Any]:
    if hasattr(content, "__all__"):
        things = {name: getattr(content, name, None) for name in content.__all__}
    else:
        things = {name: thing for name, thing in vars(content).items() if not name.startswith("_")}
        homes = (module, f"_{module}")  # the C half of sqlite3 is _sqlite3
        if module != "builtins":  # where all belongs together: open() says that it lives in io
            things = {name: thing for name, thing in things.items() if getattr(thing, "__module__", None) in homes}
    return {name: thing for name, thing in things.items() if thing is not None and not inspect.ismodule(thing)}


def _of_class(name: str, module: str, cls: type, seen: set[int]) -> Iterator[Document]:
    docs = [cls.__doc__, *(vars(cls)[name].__doc__ for name in ("__init__",) if name in vars(cls))]
    yield from _document(name, module, "class", _signature(cls), "\n\n".join(filter(None, map(_cleaned, docs))))
    for attribute, thing in sorted(_members(cls).items()):
        if attribute.startswith("_") or id(_function(thing)) in seen:
            continue
        seen.add(id(_function(thing)))
        if isinstance(thing, (property, functools.cached_property, GetSetDescriptorType, MemberDescriptorType)):
            yield from _document(f"{name}.{attribute}", module, "property", "", thing.__doc__)
        elif inspect.isroutine(thing):
            function = _function(thing)
            yield from _document(f"{name}.{attribute}", module, "method", _signature(function), function.__doc__)


def _members(cls: type) -> dict[str, Any]:
    """Return what the class defines, also in bases that nobody can name: most of socket.socket is in _socket.socket."""
    hidden = [base for base in cls.__bases__ if any(part.startswith("_") for part in base.__module__.split("."))]
    return {name: thing for owner in (*hidden, cls) for name, thing in vars(owner).items()}


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
    """Return the text that is indexed for a document."""
    return f"{name}\n{name}{signature}\n\n{body}\n"
