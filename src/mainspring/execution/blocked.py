"""Says in the log what keeps the event loop from turning: everything else of its process stands still meanwhile."""

from __future__ import annotations

import asyncio
import logging
import sys
import traceback

from mainspring.environment import Environment

logger = logging.getLogger("mainspring.execution")

BLOCKED_S = 1.0
"""The loop answers within this time unless something blocks it."""
_LOOKS = 4  # within that time
_FRAMES = 8


class LoopWatch:
    """Asks the running loop for an answer again and again, from a thread of its own."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._loop = asyncio.get_running_loop()
        self._thread = env.thread_ident()
        self._asked_s: float | None = None  # since when an answer is waited for
        self._tell_after_s = BLOCKED_S
        self._ticker = env.every(BLOCKED_S / _LOOKS, self.look, "mainspring-loop-watch")

    def close(self) -> None:
        self._ticker.stop()

    def look(self) -> None:
        now_s, asked_s = self._env.monotonic(), self._asked_s
        if asked_s is None:
            self._asked_s = now_s
            try:
                self._loop.call_soon_threadsafe(self._answer)
            except RuntimeError:  # the loop was closed before us
                self._ticker.stop()
        elif now_s - asked_s >= self._tell_after_s:
            self._tell_after_s *= 10
            self._tell(now_s - asked_s)

    def _answer(self) -> None:
        if self._tell_after_s > BLOCKED_S and self._asked_s is not None:
            logger.warning("the event loop turns again after %.1f s", self._env.monotonic() - self._asked_s)
        self._tell_after_s, self._asked_s = BLOCKED_S, None

    def _tell(self, seconds: float) -> None:
        frame = sys._current_frames().get(self._thread)
        if frame is None:
            return
        place = f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno})"
        logger.warning(
            "the event loop has stood still for %.1f s, in %s; what computes or waits without `await` belongs into "
            'lane="thread" or lane="process"\n%s',
            seconds, place, "".join(traceback.format_stack(frame, _FRAMES)),
        )  # fmt: skip
