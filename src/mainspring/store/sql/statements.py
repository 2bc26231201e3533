"""Named statements in .sql files."""

from __future__ import annotations

import pkgutil
import re

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def read(package: str, file: str) -> str:
    data = pkgutil.get_data(package, file)  # `importlib.resources` takes as long to load as half of the store
    if data is None:
        raise FileNotFoundError(f"{package} has no {file}")
    return data.decode()


def named(package: str, file: str) -> dict[str, str]:
    """Return the statements of a package's file by name."""
    parts = _NAME.split(read(package, file))
    return {
        name: "\n".join(line for line in body.splitlines() if not line.startswith("--")).strip().rstrip(";")
        for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }
