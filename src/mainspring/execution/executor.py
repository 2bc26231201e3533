"""The executor: knows every task type's processor and lane, checks tasks against them, and runs one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from mainspring.config import ExecutorConfig, TaskManagerConfig, check_given, seconds
from mainspring.environment import SYSTEM, Environment, Lock
from mainspring.errors import Conflict, InvalidInput, TaskTimeout, UnsupportedTaskType, invalid
from mainspring.execution.base import Report, Runner, Work
from mainspring.execution.loop import LoopRunner
from mainspring.execution.threads import ThreadRunner
from mainspring.models.base import EmbeddingModel
from mainspring.models.manager import ModelManager
from mainspring.processors.base import Lane, Processor
from mainspring.processors.calls import call_task, check_task, task_of
from mainspring.processors.context import Child
from mainspring.processors.custom import Handler, HandlerProcessor
from mainspring.processors.embedding import EmbeddingProcessor
from mainspring.processors.importable import check_importable
from mainspring.processors.inference import InferenceProcessor
from mainspring.processors.text import TextProcessor
from mainspring.tasks import (
    Custom,
    ErrorInfo,
    Retry,
    Signal,
    Task,
    TaskId,
    TaskMetrics,
    TaskResult,
    TaskStatus,
)
from mainspring.tasks.codec import convert, decode_output, encode_input
from mainspring.tasks.limits import group_of_model
from mainspring.tracing import Tracing

_NO_RETRY_POLICY = Retry()


class TaskExecutor:
    """Processors and handlers by task type, and the lanes they run in.

    The engine takes claimed tasks through it; `execute_task` runs a single one here and now, without any store. By
    itself it knows the built-in types that need no store: text processing, embedding generation and model inference.
    """

    def __init__(
        self,
        config: ExecutorConfig | None = None,
        processors: Iterable[Processor] | None = None,
        *,
        slots: TaskManagerConfig | None = None,
        env: Environment = SYSTEM,
        tracing: Tracing | None = None,
    ) -> None:
        check_given(config=(config, ExecutorConfig), slots=(slots, TaskManagerConfig))
        self._tracing = tracing
        self.config = config or ExecutorConfig()
        self._slots = slots or TaskManagerConfig()
        self._env = env
        self._processors: dict[str, Processor] = {}
        self._handlers: dict[str, Handler] = {}
        self._runners: dict[Lane, Runner] = {}
        self._kept_here: set[str] = set()  # types that no child can run, as was found out
        self._loaded: set[str] = set()
        self._loading = Lock()
        self.submit: Callable[..., Child] | None = None
        self.store_now: Any = None
        for processor in _without_a_store(env) if processors is None else processors:
            self._processors[processor.task_type] = processor

    @property
    def types(self) -> Mapping[str, Processor]:
        return self._processors

    @property
    def handlers(self) -> Mapping[str, Handler]:
        return self._handlers

    def register(self, handler: Handler) -> None:
        """Add a handler. Raises Conflict for a second one of the same name."""
        known = self._handlers.get(handler.task_type)
        if known is not None and known.function is not handler.function:
            raise Conflict(
                f"a handler named {handler.name!r} is registered already ({known.function.__module__}."
                f"{known.function.__qualname__}); pass name=... to one of them"
            )
        self._handlers[handler.task_type] = handler
        self._processors[handler.task_type] = HandlerProcessor(handler, self.config.traceback_chars)
        if handler.lane == "process":
            # Imported now: when its first task comes, no descriptor may be left to read it with.
            from mainspring.execution import processes  # noqa: F401
        if (process := self._runners.get("process")) is not None:
            process.add(handler)  # type: ignore[attr-defined]

    def handler_of(self, function: Callable[..., Any]) -> Handler | None:
        """Return the handler that a function stands for here: other engines may have registered it too."""
        handler: Handler | None = getattr(function, "__mainspring__", None)
        if handler is None or self._handlers.get(handler.task_type) is handler:
            return handler
        return next((own for own in self._handlers.values() if own.function is function), None)

    def task_of(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Task:
        """Return the task that a call of a handler or of a built-in operation stands for. Raises InvalidInput."""
        handler = self.handler_of(function)
        return task_of(function, args, kwargs) if handler is None else call_task(handler, args, kwargs)

    def group_of(self, task: Task) -> str:
        """Return the group of a task that names none: its model's, where it is computed with one; else ''."""
        processor = self._processors.get(task.task_type)
        if isinstance(processor, (EmbeddingProcessor, InferenceProcessor)):
            return group_of_model(processor.model_of(task.model_id))
        return ""

    def lane_of(self, task_type: str) -> Lane:
        return self._processors[task_type].lane

    def types_by_lane(self) -> dict[str, frozenset[str]]:
        lanes: dict[str, set[str]] = {}
        for kind, processor in self._processors.items():
            lanes.setdefault(processor.lane, set()).add(kind)
        return {lane: frozenset(types) for lane, types in lanes.items()}

    def retry_of(self, task_type: str) -> Retry:
        handler = self._handlers.get(task_type)
        return _NO_RETRY_POLICY if handler is None else handler.retry

    def check(self, task: Task, *, has_refs: bool) -> None:
        """Refuse a task that could never work. Values from parents are checked when they are known.

        Raises: InvalidInput.
        """
        processor = self._processors.get(task.task_type)
        if processor is None:
            return  # served elsewhere; its worker checks it
        handler = self._handlers.get(task.task_type)
        if handler is None:
            convert(task.params, processor.Params, "params")
        processor.check(task.input, task.model_id, task.params)
        if handler is not None and not has_refs:
            assert isinstance(task.input, Custom)  # checked just now
            handler.check_arguments(task.input.value)

    def runner(self, lane: Lane) -> Runner:
        """Return the lane's runner, making it when it is first needed."""
        if lane not in self._runners:
            self._runners[lane] = self._make_runner(lane)
        return self._runners[lane]

    def _make_runner(self, lane: Lane) -> Runner:
        if lane == "async":
            return LoopRunner(self._processors, self._submit_child, self._env, self._tracing)
        if lane == "thread":
            own = sum(getattr(processor, "has_own_slot", False) for processor in self._processors.values())
            threads = self._slots.thread_slots + own
            return ThreadRunner(self._processors, self.load, self._submit_child, self._env, threads, self._tracing)
        if lane == "process":
            from mainspring.execution.processes import ProcessRunner

            return ProcessRunner(
                self._handlers,
                slots=self._slots.process_slots,
                config=self.config,
                store_now=self._store_child,
                environment=self._env,
                tracing=self._tracing,
            )
        raise invalid("lane", lane, "is unknown", "use async, thread or process")

    def _submit_child(self, *args: Any) -> Child:
        """Runners may be made before a manager says how children are stored."""
        if self.submit is None:
            raise InvalidInput("ctx.submit works only in a handler that the engine runs", field="ctx")
        return self.submit(*args)

    async def _store_child(self, task: Task) -> TaskId:
        if self.store_now is None:
            raise InvalidInput("ctx.submit works only in a handler that the engine runs", field="ctx")
        return await self.store_now(task)  # type: ignore[no-any-return]

    def child_runner(self, task_type: str) -> Runner:
        """Return the process lane's runner, ready to run this type although its own lane is another."""
        runner = self.runner("process")
        runner.serve(self._handlers[task_type])  # type: ignore[attr-defined]
        return runner

    def children(self) -> Mapping[int, tuple[bytes, int] | None]:
        """Return which attempt each child of the process lane runs, by its pid: task id and number; None: it rests."""
        runner = self._runners.get("process")
        return {} if runner is None else runner.children()  # type: ignore[attr-defined]

    def relieve(self) -> None:
        """Have children that rest give back their memory."""
        if (runner := self._runners.get("process")) is not None:
            runner.relieve()  # type: ignore[attr-defined]

    def can_run_in_child(self, task_type: str) -> bool:
        """Whether a child process could import this type's handler, and has what that asks for, as far as is known."""
        handler = self._handlers.get(task_type)
        if handler is None or task_type in self._kept_here:
            return False
        try:
            check_importable(handler.function, handler.name)
        except InvalidInput:
            return False
        return True

    def keep_here(self, task_type: str) -> None:
        """Note that no child can run this type: it asks for what only this process has."""
        self._kept_here.add(task_type)

    def load(self, task_type: str) -> None:
        """Get a type's processor ready; the first call does it, others wait for it. Blocks."""
        if task_type in self._loaded:
            return
        with self._loading:
            if task_type not in self._loaded:
                self._processors[task_type].load()
                self._loaded.add(task_type)

    async def execute_task(self, task: Task) -> TaskResult:
        """Run one task here and now and return how it ended: one attempt, no store, no dependencies.

        A failure is a result with its error, not an exception.

        Raises: UnsupportedTaskType, InvalidInput: the task can't be run at all.
        """
        check_task(task)
        if task.task_type not in self._processors:
            known = ", ".join(sorted(self._processors))
            why = f"task_type = {str(task.task_type)!r}: not registered; registered are {known}"
            raise UnsupportedTaskType(why, field="task_type", value=task.task_type)
        data, refs = encode_input(task.input)
        if refs or task.dependencies:
            raise invalid("dependencies", task.dependencies or refs, "need a store", "submit the task to an engine")
        self.check(task, has_refs=False)
        limit_s = self._limit_s(task)
        work = Work(
            task.id.bytes,
            1,
            task.task_type,
            data,
            task.namespace,
            task.model_id,
            msgspec.msgpack.encode(task.params) if task.params else None,
            task.retry_count,
        )
        lane = self.lane_of(task.task_type)
        runner = self.runner(lane)
        report = runner.run(work, _Unheard())
        if not isinstance(report, Report):
            report = await self._within(limit_s, runner, work, report)
        return self._result(task, report, lane)

    def _limit_s(self, task: Task) -> float | None:
        if task.timeout is not None:
            return seconds(task.timeout, "timeout")
        handler = self._handlers.get(task.task_type)
        return None if handler is None else handler.timeout

    async def _within(self, limit_s: float | None, runner: Runner, work: Work, report: Awaitable[Report]) -> Report:
        """Await a report; past the limit the attempt is asked to stop, then given up."""
        going = asyncio.ensure_future(report)
        try:
            await asyncio.wait({going}, timeout=limit_s)
            if going.done():
                return going.result()
            for hard in (False, True):
                runner.stop(work, hard=hard)
                await asyncio.wait({going}, timeout=seconds(self._slots.grace_s, "grace_s"))
            return Report(error=ErrorInfo(type="TaskTimeout", message=f"it ran longer than {limit_s} s"))
        finally:
            going.cancel()

    def _result(self, task: Task, report: Report, lane: Lane) -> TaskResult:
        usage = report.usage
        return TaskResult(
            task_id=task.id,
            status=_status_of(report),
            output=None if report.output is None else decode_output(report.output),
            error=report.error,
            metrics=TaskMetrics(
                duration=usage.duration,
                memory_bytes=usage.memory_bytes,
                cpu_usage=None if usage.cpu_time is None or not usage.duration else usage.cpu_time / usage.duration,
                network_bytes=usage.network_bytes,
                retry_count=task.retry_count,
                cpu_time=usage.cpu_time,
                lane=lane,
            ),
            timestamp=datetime.fromtimestamp(self._env.wall_ms() / 1000, UTC),
        )

    async def close(self) -> None:
        """Stop threads and children, close processors. Nothing runs any more when this is called."""
        for runner in self._runners.values():
            await runner.close()
        self._runners.clear()
        for kind in sorted(self._loaded):
            self._processors[kind].close()
        self._loaded.clear()


def _status_of(report: Report) -> TaskStatus:
    if report.error is None:
        return TaskStatus.COMPLETED
    return TaskStatus.TIMEOUT if report.error.type == TaskTimeout.__name__ else TaskStatus.FAILED


def _without_a_store(env: Environment) -> tuple[Processor, ...]:
    models = ModelManager(environment=env)

    def tokenizer(model_id: str | None) -> EmbeddingModel:
        with models.acquire_embedding(model_id or models.config.default_embedding) as model:
            return model

    return TextProcessor(tokenizer), EmbeddingProcessor(models), InferenceProcessor(models)


class _Unheard:
    def send(self, signal: Signal) -> None:
        """Nobody listens to a task that runs outside a store."""
