"""How far an indexing run is: a bar on a terminal, some lines elsewhere, nothing for programs. Always on stderr."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol, Self

from mainspring.environment import SYSTEM

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from mainspring.cli.folder import Changes, Document, Failure

_LINES = 20
"""So many lines, about, where there is no terminal."""


class Watcher(Protocol):
    """Whoever wants to know how far an indexing run is."""

    def planned(self, changes: Changes) -> None: ...

    def done(self, document: Document, chunks: int) -> None: ...

    def failed(self, failure: Failure) -> None: ...


class Quiet:
    """Counts what is over and shows nothing. Documents that failed are over too, or a bar would never reach its end."""

    def __init__(self) -> None:
        self.total = self.over = self.chunks = 0
        self._began = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing to clear away."""

    def planned(self, changes: Changes) -> None:
        self.total = len(changes.todo)
        self._began = SYSTEM.monotonic()

    def done(self, document: Document, chunks: int) -> None:
        self.over += 1
        self.chunks += chunks
        self.show()

    def failed(self, failure: Failure) -> None:
        self.over += 1
        self.show()

    def show(self) -> None:
        """Called after each document."""

    @property
    def rate(self) -> float:
        """Chunks a second."""
        return self.chunks / max(SYSTEM.monotonic() - self._began, 0.001)


class Lines(Quiet):
    """Prints a line now and then."""

    def planned(self, changes: Changes) -> None:
        super().planned(changes)
        self._next = 1
        _tell(f"{self.total} documents to index, {changes.unchanged} unchanged, {len(changes.removed)} removed")

    def show(self) -> None:
        if self.over >= self._next:
            self._next = self.over + max(1, self.total // _LINES)
            _tell(f"{self.over}/{self.total} documents, {self.chunks} chunks, {self.rate:.0f} chunks/s")


class Bar(Quiet):
    """A bar with documents, chunks, throughput and the time that is left."""

    _bar: Progress
    _task: TaskID | None = None

    def __enter__(self) -> Self:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from mainspring.cli.screen import console

        self._bar = Progress(
            TextColumn("indexing"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("documents, {task.fields[chunks]} chunks, {task.fields[rate]:.0f} chunks/s"),
            TimeRemainingColumn(),
            console=console(sys.stderr),
        )
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def planned(self, changes: Changes) -> None:
        super().planned(changes)
        if self.total:
            self._task = self._bar.add_task("", total=self.total, chunks=0, rate=0.0)

    def show(self) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=self.over, chunks=self.chunks, rate=self.rate)


def progress(*, as_json: bool) -> Quiet:
    """Return what shows the progress of one run; enter it for the run's length."""
    return Quiet() if as_json else Bar() if sys.stderr.isatty() else Lines()


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
