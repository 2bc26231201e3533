"""Which modules of the running Python are read, and how they are imported without harm."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

MODULES: tuple[str, ...] = tuple(
    """
    builtins
    string re textwrap struct base64
    datetime zoneinfo calendar collections collections.abc heapq bisect weakref types copy pprint enum graphlib
    math fractions random statistics itertools functools operator
    pathlib os.path os filecmp tempfile glob fnmatch linecache shutil
    pickle shelve sqlite3 zlib gzip zipfile csv tomllib json
    hashlib hmac secrets time argparse getpass platform logging
    threading multiprocessing concurrent.futures subprocess sched queue contextvars asyncio signal
    html html.parser mimetypes urllib.request urllib.parse urllib.error uuid webbrowser
    colorsys gettext locale shlex
    typing timeit cProfile tracemalloc
    sys sysconfig warnings dataclasses contextlib abc atexit traceback gc keyword
    """.split()
)
"""The default corpus: what scripts and services are written with.

Left to `full`: protocols and servers (socket, http, smtplib, email, ssl, ftplib), what lies below `open` (io, codecs),
tools that read code (inspect, ast, dis, importlib), test frameworks (unittest), larger or rarer formats (tarfile, xml,
configparser), large modules for one purpose (decimal, difflib, ipaddress, logging.handlers), debuggers, build tools,
what one system alone has.
Of two names for one object the one in the module that stands first here wins, hence `builtins` leads.
"""

EXCLUDED: Mapping[str, str] = {
    "antigravity": "opens a web browser when imported",
    "this": "prints a poem when imported",
    "__hello__": "prints when imported",
    "__phello__": "prints when imported",
    "readline": "changes the terminal when imported",
    "rlcompleter": "installs a completer when imported",
    "site": "runs the user's start-up files when used, tells little",
    "idlelib": "an application, needs a display library",
    "tkinter": "needs a display library, which many installations lack",
    "turtle": "needs tkinter",
    "turtledemo": "needs tkinter",
    "test": "Python's own tests, with side effects",
    "distutils": "replaced by setuptools in many environments; gone since 3.12",
    "lib2to3": "writes grammar caches when imported; gone since 3.13",
    "ensurepip": "an installer",
    "encodings": "tables behind `codecs`",
    "pydoc_data": "read as topics",
    "posixpath": "documented as os.path",
    "ntpath": "documented as os.path",
    "genericpath": "documented as os.path",
    "posix": "documented as os",
    "nt": "documented as os",
    "imp": "gone since 3.12; warns",
}
"""Modules (with all below them) that are never imported here, and why."""


def load_modules(*, full: bool) -> dict[str, ModuleType]:
    """Return the modules to be read by name, MODULES first; what this installation lacks is left out.

    Only modules that came with this interpreter are imported, never a user's file that has the same name.
    """
    loaded = {name: _import(name) for name in (*MODULES, *(_further_modules() if full else ()))}
    return {name: module for name, module in loaded.items() if module is not None}


def _import(name: str) -> ModuleType | None:
    """Import a module of this interpreter's own library; None where it is missing or a foreign file takes its place."""
    try:
        spec = importlib.util.find_spec(name)
        if spec is None or not _comes_with_python(spec.origin):
            return None
        return importlib.import_module(name)
    except (ImportError, OSError, AttributeError, ValueError):  # what modules of another system raise
        return None


def _comes_with_python(origin: str | None) -> bool:
    if origin is None:  # a folder without __init__.py
        return False
    if origin in ("built-in", "frozen"):
        return True
    path = Path(origin).resolve()
    packages = {"site-packages", "dist-packages"}
    return path.is_relative_to(Path(sys.base_prefix).resolve()) and packages.isdisjoint(path.parts)


def _further_modules() -> Iterator[str]:
    """Yield the names of all public modules that are not in MODULES."""
    for name in sorted(sys.stdlib_module_names):
        if not _skipped(name):
            yield from (name,) if name not in MODULES else ()
            yield from _submodules(name)


def _submodules(name: str) -> Iterator[str]:
    module = _import(name)
    for info in pkgutil.iter_modules(getattr(module, "__path__", ())):
        full_name = f"{name}.{info.name}"
        if not _skipped(full_name):
            yield from (full_name,) if full_name not in MODULES else ()
            yield from _submodules(full_name) if info.ispkg else ()


def _skipped(name: str) -> bool:
    parts = name.split(".")
    return parts[0] in EXCLUDED or any(part.startswith("_") or part in ("test", "tests") for part in parts)
