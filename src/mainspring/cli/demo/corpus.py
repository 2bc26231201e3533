"""The documentation of the Python that is running, as documents: docstrings of the standard library and `pydoc` topics.

Nothing is downloaded and nothing is copied into the package: the texts are read from the interpreter, so they differ a
little from one Python to the next.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from mainspring.cli.demo.docstrings import Document, layout, of_modules
from mainspring.cli.demo.library import load_modules
from mainspring.errors import invalid

MARKER = ".mainspring-corpus"
"""Name of the file that says: this folder was made by `write_corpus`."""

LONGEST_TOPIC = 4_500
"""In characters. Longer topics are chapters of the reference manual, or collections of others; only in `full`."""


def documents(*, full: bool = False) -> list[Document]:
    """Return the documentation of the running Python, in the same order each time for the same Python.

    Names, number and texts are not the same in two versions of Python; modules that this installation lacks are left
    out silently. Imports the modules it reads (see `library`).

    Raises: InvalidInput: Python runs with `-OO`, which removes all docstrings.
    """
    if sys.flags.optimize >= 2:
        raise invalid("python -OO", sys.flags.optimize, "removes the docstrings it searches", "run it without -OO")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated modules and names say so when touched
        found = [*of_modules(load_modules(full=full)), *_topics(full=full)]
    return list({document.name: document for document in reversed(found)}.values())[::-1]


def _topics(*, full: bool) -> Iterator[Document]:
    from pydoc_data.topics import topics

    for label, text in sorted(topics.items()):
        if full or len(text) <= LONGEST_TOPIC:
            name = f"topic:{label}"
            yield Document(name=name, module="pydoc_data.topics", kind="topic", text=layout(name, "", text.strip()))


def file_names(corpus: Iterable[Document]) -> dict[str, Document]:
    """Return the file name under which `write_corpus` stores each document, unique also where case does not count."""
    names: dict[str, Document] = {}
    taken: set[str] = set()
    for document in corpus:
        base = document.name.replace(":", "-")
        name, number = f"{base}.txt", 2
        while name.casefold() in taken:
            name, number = f"{base}-{number}.txt", number + 1
        taken.add(name.casefold())
        names[name] = document
    return names


def write_corpus(folder: Path, *, full: bool = False) -> list[Path]:
    """Write one UTF-8 text file for each document and return their paths, in the order of `documents`.

    A file whose content is right already is not touched, so its time stays. Text files in the folder that belong to no
    document any more are removed; that is why the folder must be new, empty or made by this function.

    Raises: InvalidInput: the folder holds something else, or can't be made; nothing was written.
    """
    files = file_names(documents(full=full))
    _own(folder)
    for name, document in files.items():
        _write_if_changed(folder / name, document.text.encode())
    for path in folder.glob("*.txt"):
        if path.name not in files:
            path.unlink()
    return [folder / name for name in files]


def _own(folder: Path) -> None:
    marker = folder / MARKER
    if folder.exists() and not marker.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise invalid("folder", str(folder), "holds files that are not the demo's", "name an empty or a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        why = f"can't be made ({exc.strerror})"
        raise invalid("folder", str(folder), why, "name one that can, or make the folder above writable") from exc
    if not marker.exists():
        marker.write_text("Made by `mainspring demo`: text files in this folder are replaced and removed by it.\n")


def _write_if_changed(path: Path, content: bytes) -> None:
    if not path.exists() or path.read_bytes() != content:
        path.write_bytes(content)
