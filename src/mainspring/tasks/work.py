"""An attempt on its way to where it runs, and the report of how it ended there."""

from __future__ import annotations

from typing import Any

import msgspec

from mainspring.tasks.effects import Effect, Usage
from mainspring.tasks.identity import TaskId
from mainspring.tasks.task import ErrorInfo


class Work(msgspec.Struct, array_like=True, gc=False):
    """One attempt, ready to run: self-contained, so that it can cross a pipe."""

    id: bytes
    attempt: int
    task_type: str
    input: bytes  # MessagePack of a TaskInput, parents' results in place
    namespace: str = "default"
    model_id: str | None = None
    params: bytes | None = None  # MessagePack of a mapping
    retry_count: int = 0
    deadline_ms: int | None = None
    trace: dict[str, str] | None = None  # of the span that it runs in, or that submitted it: `traceparent` and so on

    def bare(self) -> Work:
        """Return the work alone, where a store's claim stands for it."""
        return Work(
            self.id,
            self.attempt,
            self.task_type,
            self.input,
            self.namespace,
            self.model_id,
            self.params,
            self.retry_count,
            self.deadline_ms,
            self.trace,
        )

    @property
    def task_id(self) -> TaskId:
        return TaskId(self.id)

    def labels(self) -> dict[str, Any]:
        """Return what a line of a log carries that concerns it."""
        labels = {
            "task_id": str(self.task_id),
            "attempt": self.attempt,
            "type": str(self.task_type),
            "namespace": self.namespace,
        }
        if self.trace is not None:
            _, labels["trace_id"], labels["span_id"], *_ = self.trace["traceparent"].split("-")
        return labels


class Report(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How an attempt ended where it ran. Exactly one of `output` and `error` is there."""

    output: bytes | None = None  # MessagePack of a TaskOutput
    refs: tuple[bytes, ...] = ()  # ids of tasks that the output stands for
    error: ErrorInfo | None = None
    retryable: bool = True
    retry_after: float | None = None  # seconds
    effects: tuple[Effect, ...] = ()
    usage: Usage = Usage()
    crashed: bool = False  # the process that ran it died: counted apart from failures
    unstarted: bool = False  # it never began and is charged nothing
    short_of_memory: bool = False  # it was ended for want of memory, or could get no more
    other_code: bool = False  # where it ran, its handler's code is another than here: the file was changed
    misses_handler: bool = False  # it failed as its child can't tell a handler that its engine may have
    for_all: bool = False  # it is true for all of its call that have no outcome yet: nobody calls again for them now
    program_bytes: int = 0  # it failed, and so much at most a program used that it had started in its child; 0: none
