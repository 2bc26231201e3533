"""Whether another process finds a function again, by its module and name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from mainspring.errors import invalid


def check_importable(function: Callable[..., Any], name: str) -> None:
    """Refuse what a child process could not import again by module and name. Raises: InvalidInput."""
    qualname = getattr(function, "__qualname__", None)
    if qualname is None:
        raise invalid(
            "lane",
            "process",
            f"{name} is an object of {type(function).__name__}, which a child process can't import by a name",
            "wrap it in a function at the top level of a module",
        )
    if "<lambda>" in qualname or "<locals>" in qualname:
        raise invalid(
            "lane",
            "process",
            f"{name} ({qualname}) can't be imported by a child process",
            "move it to the top level of a module and use def",
        )
    module = sys.modules.get(getattr(function, "__module__", ""))
    if module is None or not (getattr(module, "__file__", None) or getattr(module, "__spec__", None)):
        raise invalid(
            "lane",
            "process",
            f"{name} was not defined in a file that a child process can import",
            "put it into a module",
        )
