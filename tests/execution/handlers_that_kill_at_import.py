"""A module that takes the interpreter down while it is imported in a child; in the test's own process it is harmless."""

from __future__ import annotations

import os
import sys

if "pytest" not in sys.modules:
    os._exit(9)


def never() -> None:
    """Nobody gets here."""
