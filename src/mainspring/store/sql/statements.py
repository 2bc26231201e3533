"""Named statements in .sql files."""

from __future__ import annotations

import re
from importlib import resources

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def read(package: str, file: str) -> str:
    return resources.files(package).joinpath(file).read_text(encoding="utf-8")


def named(package: str, file: str) -> dict[str, str]:
    """Return the statements of a package's file by name."""
    parts = _NAME.split(read(package, file))
    return {
        name: "\n".join(line for line in body.splitlines() if not line.startswith("--")).strip().rstrip(";")
        for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }
