"""Handlers whose tasks run together in child processes."""

from __future__ import annotations

import os
import signal
import time


def lengths(texts: list[str]) -> list[int]:
    if "poison" in texts:
        raise ValueError("poison")
    if "death" in texts:
        os._exit(3)
    if "large" in texts and len(texts) > 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if "slow" in texts:
        time.sleep(60)
    return [len(text) for text in texts]
