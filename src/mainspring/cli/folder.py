"""What a folder holds: the files worth indexing, and how they differ from what is indexed already."""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from mainspring.errors import invalid

_DOCUMENTS = frozenset(("application/pdf", "application/xhtml+xml", "application/json", "application/xml"))
_READ_BYTES = 1 << 20
_names = mimetypes.MimeTypes()
"""Python's own table: the system's differs from machine to machine."""


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A file as it was when the folder was looked at."""

    source: str  # absolute path
    size: int  # bytes
    modified_ns: int
    digest: str = ""  # blake3 of the content; "" until it was read, and where it can't be


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    source: str
    step: str  # look, retrieve, chunk, embed or upsert
    reason: str


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    folder: Path  # its real place
    documents: list[Document]
    skipped: int  # files that are no documents by their names: images, archives, programs
    failures: list[Failure]  # folders that can't be listed, names that are no text


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    todo: list[Document]  # new or changed, in order of their paths, with their digests
    unchanged: int
    removed: list[str]  # sources that are indexed and not in the folder any more


def look(folder: Path, store: Path | None) -> Listing:
    """Return the documents below a folder, in order of their paths.

    Hidden files and folders and the store's own files are left out, links to folders not followed. A file counts as a
    document unless its name says that it is something else.

    Raises: InvalidInput: no folder, or no document in it.
    """
    if not folder.is_dir():
        raise invalid("path", str(folder), "is no folder", "name an existing folder")
    failures: list[Failure] = []
    documents: list[Document] = []
    skipped = 0
    folder = folder.resolve()
    for path in _files(folder, store and store.absolute(), failures):
        if not _may_be_document(path):
            skipped += 1
        elif (found := _seen(path, failures)) is not None:
            documents.append(found)
    if not documents:
        raise invalid(
            "path", str(folder), "holds no readable documents", "name a folder with text, Markdown, HTML or PDF files"
        )
    return Listing(folder=folder, documents=documents, skipped=skipped, failures=failures)


def compare(listing: Listing, indexed: Mapping[str, Mapping[str, Any]], pipeline: str) -> Changes:
    """Return what is to be done. `indexed` has the metadata of a record for each source.

    Size and time of change are compared first; only files that differ there are read.
    """
    todo: list[Document] = []
    for document in listing.documents:
        known = indexed.get(document.source, {})
        current = known.get("pipeline") == pipeline
        if current and (known.get("size"), known.get("modified_ns")) == (document.size, document.modified_ns):
            continue
        digest = _digest(Path(document.source))
        if not current or digest != known.get("digest"):
            todo.append(msgspec.structs.replace(document, digest=digest))
    return Changes(
        todo=todo,
        unchanged=len(listing.documents) - len(todo),
        removed=sorted(_removed(listing, indexed)),
    )


def _removed(listing: Listing, indexed: Iterable[str]) -> Iterator[str]:
    """Yield what is gone; what lies in a folder that can't be listed now is not gone."""
    there = {document.source for document in listing.documents}
    unseen = tuple(Path(failure.source) for failure in listing.failures)
    for source in indexed:
        path = Path(source)
        if source not in there and path.is_relative_to(listing.folder) and not any(map(path.is_relative_to, unseen)):
            yield source


def _files(folder: Path, store: Path | None, failures: list[Failure]) -> Iterator[Path]:
    def unlisted(error: OSError) -> None:
        failures.append(Failure(source=_shown(str(error.filename)), step="look", reason=str(error.strerror)))

    for parent, folders, names in os.walk(folder, onerror=unlisted):
        own = store.name if store is not None and Path(parent) == store.parent else None
        folders[:] = sorted(name for name in folders if not _is_left_out(name, own))
        yield from (Path(parent, name) for name in sorted(names) if not _is_left_out(name, own))


def _is_left_out(name: str, own: str | None) -> bool:
    return name.startswith(".") or (own is not None and (name == own or name.startswith(f"{own}-")))


def _may_be_document(path: Path) -> bool:
    kind, packed = _names.guess_type(path.name)
    return packed is None and (kind is None or kind.startswith("text/") or kind in _DOCUMENTS)


def _seen(path: Path, failures: list[Failure]) -> Document | None:
    source = str(path)
    try:
        source.encode()
        status = path.stat()
    except UnicodeEncodeError:
        failures.append(Failure(source=_shown(source), step="look", reason="its name is not UTF-8"))
        return None
    except OSError as exc:
        failures.append(Failure(source=source, step="look", reason=str(exc.strerror)))
        return None
    if not path.is_file():
        return None
    return Document(source=source, size=status.st_size, modified_ns=status.st_mtime_ns)


def _shown(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _digest(path: Path) -> str:
    """Return blake3 of the content; "" where it can't be read: its retrieval will say why."""
    import blake3

    whole = blake3.blake3()
    try:
        with path.open("rb") as file:
            while data := file.read(_READ_BYTES):
                whole.update(data)
    except OSError:
        return ""
    return whole.hexdigest()
