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
    string re difflib textwrap struct codecs base64
    datetime zoneinfo calendar collections collections.abc heapq bisect weakref types copy pprint enum graphlib
    math decimal fractions random statistics itertools functools operator
    pathlib os.path os fileinput filecmp tempfile glob fnmatch linecache shutil io
    pickle shelve sqlite3 zlib gzip zipfile tarfile csv configparser tomllib json
    hashlib hmac secrets time argparse getpass platform logging logging.handlers
    threading multiprocessing concurrent.futures subprocess sched queue contextvars asyncio socket select signal
    email email.message email.utils html html.parser mimetypes xml.etree.ElementTree
    urllib.request urllib.parse urllib.error http http.client http.server http.cookies
    smtplib uuid ipaddress webbrowser colorsys gettext locale shlex
    typing unittest unittest.mock timeit cProfile tracemalloc faulthandler
    sys sysconfig warnings dataclasses contextlib abc atexit traceback gc inspect
    pkgutil importlib importlib.metadata importlib.resources ast keyword dis
    """.split()
)
"""The default corpus: what scripts, services and their tests are written with.

Left to `full`: machinery that few call by hand (ssl, importlib.abc, xml.sax, xml.dom, parts of packages), debuggers,
other protocols (ftplib, imaplib, xmlrpc), rarer compressions and encodings, what one system alone has, build tools.
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
