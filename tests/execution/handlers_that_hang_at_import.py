"""A module whose import never ends in a child; harmless in the test's own process."""

from __future__ import annotations

import sys
import threading

if "pytest" not in sys.modules:
    threading.Event().wait()


def late() -> None:
    """Nobody gets here."""
