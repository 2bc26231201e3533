"""How far a long command is that goes through stages: bars on a terminal, nothing elsewhere. Always on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress


class Stages:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing to clear away."""

    def of(self, name: str) -> Callable[[int, int], None]:
        """Begin a stage; returns what is told how much of it is done, of how much."""
        return lambda done, total: None


class Bars(Stages):
    """A bar for each stage."""

    _bars: Progress

    def __enter__(self) -> Self:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from mainspring.cli.screen import console

        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console(sys.stderr),
        )
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()

    def of(self, name: str) -> Callable[[int, int], None]:
        stage = self._bars.add_task(name, total=None, visible=False)
        return lambda done, total: self._bars.update(stage, completed=done, total=total, visible=True)


def stages(*, as_json: bool) -> Stages:
    """Return what shows the progress of one run; enter it for the run's length."""
    return Bars() if not as_json and sys.stderr.isatty() else Stages()
