"""A module that takes the interpreter down when a child imports it; harmless in the test's own process."""

from __future__ import annotations

import os
import sys

if "pytest" not in sys.modules:
    os._exit(9)


def never() -> None:
    """Nobody gets here."""
