"""Handlers may fork. A copy has one thread, no locks, and the loop's own descriptors: it must not get back here."""

from __future__ import annotations

import logging
import os
import sys

logger = logging.getLogger("mainspring.execution")


def leave() -> None:
    """End a copy whose handler has come to its end there too; the original reports for both."""
    logger.warning("a copy of this process, forked by a handler, has come back from that handler; it ends here")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
