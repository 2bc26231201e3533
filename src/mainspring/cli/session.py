"""A working engine for the length of one command, which Ctrl-C and SIGTERM end politely."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Final, Self

from mainspring.cli.opening import is_missing
from mainspring.cli.screen import Screen
from mainspring.config import EngineConfig, ModelConfig
from mainspring.engine import Engine
from mainspring.models.fetch import ALL_MINILM_L6_V2, fetch, is_complete

INTERRUPTED: Final = 130
"""Exit code after Ctrl-C, as shells have it."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_DRAIN_S = 5.0
"""What runs for longer is handed back and begun anew next time: nobody who presses Ctrl-C waits half a minute."""


def fetch_model(config: ModelConfig, screen: Screen) -> None:
    """Bring the default model onto this machine; people are told when that means a download.

    Raises: ProcessingFailed: it can't be had now; the message says where to put it by hand.
    """
    wanted = config.default_embedding
    by_hand = any((folder / wanted / "model.onnx").is_file() for folder in config.folders)
    if wanted == ALL_MINILM_L6_V2.model_id and not by_hand:
        here = is_complete(ALL_MINILM_L6_V2, config.cache_folder / wanted)
        fetch(ALL_MINILM_L6_V2, config.cache_folder, None if here else screen.note)


class Session:
    """The first signal ends what `until_stopped` waits for, a second one the drain."""

    def __init__(self, store: str | Path, config: EngineConfig, screen: Screen) -> None:
        self.engine = Engine(store, config)
        self._is_new = is_missing(str(store))
        self._screen = screen
        self._work: asyncio.Future[Any] | None = None
        self._signals = 0

    async def __aenter__(self) -> Self:
        if self._is_new:
            self._screen.note(f"makes a new store at {self.engine.address}")
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._stop)
        await self.engine.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        loop = asyncio.get_running_loop()
        try:
            await self.engine.stop(drain_s=_DRAIN_S)
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    async def until_stopped(self, work: Awaitable[Any]) -> bool:
        """Wait for the work or for a signal, which cancels it; returns whether it came to its end. Raises its error."""
        self._work = asyncio.ensure_future(work)
        if self._signals:
            self._work.cancel()
        try:
            await self._work
        except asyncio.CancelledError:
            if not self._signals:
                raise
            return False
        finally:
            self._work = None
        return True

    def _stop(self) -> None:
        self._signals += 1
        if self._signals > 1:
            self.engine.manager.hurry()
            return
        self._screen.note("stopping: what runs comes to its end, the rest waits for the next start (again: at once)")
        if self._work is not None:
            self._work.cancel()
