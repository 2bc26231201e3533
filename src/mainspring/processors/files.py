"""Reading files by address, and only below allowed folders."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from mainspring.config import RetrievalConfig
from mainspring.errors import InvalidInput, invalid

_FIELD = "input.url"
_PASS = getattr(os, "O_PATH", os.O_RDONLY)  # a folder that may be passed through need not be readable


class AllowedFiles:
    """Files whose real place, after all symbolic links, is below one of `config.allowed_roots`."""

    def __init__(self, config: RetrievalConfig) -> None:
        self._config = config

    def read(self, url: str, start: int = 0, end: int | None = None) -> bytes:
        """Return the bytes [start, end) of a regular file; fewer where it ends earlier.

        Raises: InvalidInput: not allowed, not there, no regular file, or more than `max_bytes`.
        """
        with self._opened(url) as descriptor:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise invalid(_FIELD, url, "is no regular file", "name a file, or pass a pattern to list a folder")
            end = status.st_size if end is None else min(end, status.st_size)
            check_size(_FIELD, url, end - start, self._config.max_bytes)
            with os.fdopen(os.dup(descriptor), "rb") as file:
                file.seek(start)
                return file.read(max(0, end - start))

    def list(self, url: str, pattern: str, limit: int, after: str) -> list[dict[str, Any]]:
        """Return address, size and time of change of the folder's regular files that match, in order of address.

        `pattern` is a glob below the folder, where ** stands for any depth. Links that lead out of the roots are left
        out. At most `limit` files whose address comes after `after`.
        """
        parts = PurePosixPath(pattern)
        if not pattern or parts.is_absolute() or ".." in parts.parts:
            raise invalid("input.pattern", pattern, "leads out of the folder", 'use a pattern such as "**/*.md"')
        root, relative = self._place(url)
        folder = root / relative
        if not folder.is_dir():
            raise invalid(_FIELD, url, "is no folder", "name an existing folder")
        found = {path.as_uri(): path for path in folder.glob(pattern) if _lies_in(path, root) and path.is_file()}
        return [_entry(address, found[address]) for address in sorted(found) if address > after][:limit]

    def _place(self, url: str) -> tuple[Path, Path]:
        """Return the root and the real path below it."""
        path = _path(url)
        real = Path(os.path.realpath(path))
        for folder in self._config.allowed_roots:
            root = Path(os.path.realpath(folder))
            if real.is_relative_to(root):
                return root, real.relative_to(root)
        remedy = "name a file below retrieval.allowed_roots, or add its folder there"
        raise invalid(_FIELD, url, "lies outside of the folders that may be read", remedy)

    @contextmanager
    def _opened(self, url: str) -> Iterator[int]:
        """Open step by step without following links: none may be put in between the look and the opening."""
        root, relative = self._place(url)
        descriptor = -1
        try:
            descriptor = os.open(root, _PASS | os.O_DIRECTORY)
            for n, part in enumerate(relative.parts, 1):
                how = os.O_RDONLY | os.O_NONBLOCK if n == len(relative.parts) else _PASS | os.O_DIRECTORY
                step = os.open(part, how | os.O_NOFOLLOW, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = step
            yield descriptor
        except OSError as exc:
            raise _refusal(url, exc) from exc
        finally:
            if descriptor >= 0:
                os.close(descriptor)


def check_size(field: str, value: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise invalid(field, value, f"is {size} bytes, above max_bytes {max_bytes}", "read a range, or raise max_bytes")


def _path(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise invalid(_FIELD, url, "is no file of this machine", 'use "file:///folder/name"')
    path = os.fsdecode(unquote_to_bytes(parts.path))
    if parts.query or parts.fragment or "\0" in path or not path.startswith("/"):
        raise invalid(_FIELD, url, "is no plain file address", "write ? and # of a name as %3F and %23")
    return path


def _lies_in(path: Path, root: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(root)


def _entry(address: str, path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"url": address, "size": status.st_size, "modified_ms": status.st_mtime_ns // 1_000_000}


def _refusal(url: str, exc: OSError) -> InvalidInput | OSError:
    if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
        return invalid(_FIELD, url, "does not exist", "name an existing file")
    if exc.errno in (errno.EACCES, errno.EPERM, errno.ENXIO, errno.EISDIR):
        return invalid(_FIELD, url, f"can't be read ({exc.strerror})", "allow the engine's user to read it")
    return exc  # the disk's own trouble, which may pass
