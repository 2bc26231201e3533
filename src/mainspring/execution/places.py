"""Where a handler is found again by another process: by module, or by the file of a script, and name."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from importlib.machinery import SourceFileLoader
from types import ModuleType

import msgspec

from mainspring.errors import invalid
from mainspring.processors.batch import Batch
from mainspring.processors.custom import Handler

_SCRIPT = "__mainspring_main__"


class Place(msgspec.Struct, frozen=True, array_like=True):
    module: str  # importable, unless there is a script
    qualname: str
    name: str  # the handler's own
    version: str
    script: str | None = None  # the file whose top level was `__main__`
    batches: bool = False  # it gets the items of several tasks
    code: str = ""  # hash of what the handler runs in this process


def place_of(handler: Handler) -> Place:
    """Return where a child finds the handler. Raises: InvalidInput: nowhere."""
    function = handler.function
    module, script = _home(function.__module__, handler.name)
    return Place(
        module, function.__qualname__, str(handler.name), handler.version, script, handler.batch is not None,
        handler.source_hash,
    )  # fmt: skip


def imported_as(module: str, name: str) -> str:
    """Return what a child calls the module of the handler of this name. Raises: InvalidInput: it can't have it."""
    module, script = _home(module, name)
    return module if script is None else _SCRIPT


def _home(module: str, name: str) -> tuple[str, str | None]:
    if module != "__main__":
        return module, None
    main = sys.modules["__main__"]
    if main.__spec__ is not None:  # python -m NAME
        return main.__spec__.name, None
    if getattr(main, "__file__", None):
        return module, os.path.abspath(str(main.__file__))
    raise invalid("lane", "process", f"{name} was not defined in a file", "put it into a module")


def load(place: Place) -> Handler:
    """Import the handler. A script runs once, under another name than `__main__`. Raises what its top level raises."""
    found: object = importlib.import_module(place.module) if place.script is None else _script(place.script)
    for name in place.qualname.split("."):
        found = getattr(found, name)
    handler = getattr(found, "__mainspring__", None)
    if isinstance(handler, Handler):
        if handler.name == place.name:
            return handler
        found = handler.function
    if not callable(found):
        raise invalid("handler", place.qualname, "is no function", "keep the handler's name for the function itself")
    return Handler(
        found, name=place.name, version=place.version, lane="process", batch=Batch() if place.batches else None
    )


def _script(path: str) -> ModuleType:
    if _SCRIPT in sys.modules:
        return sys.modules[_SCRIPT]
    loader = SourceFileLoader(_SCRIPT, path)
    spec = importlib.util.spec_from_loader(_SCRIPT, loader)
    if spec is None:
        raise invalid("script", path, "can't be imported", "give it a readable file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_SCRIPT] = module
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[_SCRIPT]
        raise
    return module
