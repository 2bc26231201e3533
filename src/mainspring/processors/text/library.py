"""Optional libraries, loaded at first use."""

from __future__ import annotations

import importlib
from typing import Any

from mainspring.errors import invalid


def library(module: str, step: str) -> Any:
    """Return a module of the `text` extra. Raises InvalidInput that tells what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        remedy = "pip install 'mainspring[text]'"
        raise invalid(
            "params.steps", step, f"needs {module.partition('.')[0]}, which is not installed", remedy
        ) from exc
