"""Handlers may fork. A copy has one thread, no locks, and the loop's own descriptors: it must not get back here.

A process that forks and then makes an engine of its own is no copy: only runners that were there before the fork are.
"""

from __future__ import annotations

import logging
import os
import sys
from weakref import WeakSet

logger = logging.getLogger("mainspring.execution")


class Original:
    """A runner that notices when it is only a copy of one, left by a handler that has forked."""

    is_copy = False

    def __init__(self) -> None:
        _ORIGINALS.add(self)


_ORIGINALS: WeakSet[Original] = WeakSet()


def leave() -> None:
    """End a copy whose handler has come to its end there too; the original reports for both."""
    logger.warning("a copy of this process, forked by a handler, has come back from that handler; it ends here")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _forked() -> None:
    for runner in list(_ORIGINALS):
        runner.is_copy = True


os.register_at_fork(after_in_child=_forked)
