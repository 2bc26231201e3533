"""From a task as it was written to a task as it is stored: checked first, so that nothing wrong is half written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from graphlib import CycleError, TopologicalSorter
from typing import Any

import msgspec

from mainspring.config import SchedulerConfig, seconds
from mainspring.dispatch.model_limits import ModelLimits
from mainspring.environment import Environment
from mainspring.errors import InvalidInput, UnsupportedTaskType, invalid
from mainspring.execution.executor import TaskExecutor
from mainspring.processors.calls import check_task, id_of, typed_task, with_declared
from mainspring.processors.context import check_cost
from mainspring.processors.custom import Handler, check_resources, retries_of
from mainspring.processors.declared import Declared
from mainspring.results.cache import ResultCache
from mainspring.results.values import Values
from mainspring.store.base import BLOB_INPUT, COSTS, HAS_REFS, POLICY_CODE, RESERVES, WANTS_KEPT, NewTask, Spec, Store
from mainspring.tasks import Custom, Resources, Task, TaskId, TaskPriority, TaskType
from mainspring.tasks.codec import encode, encode_input
from mainspring.tasks.texts import check_text
from mainspring.tracing import Trace, Tracing

_spec_encoder = msgspec.msgpack.Encoder()
_spec_decoder = msgspec.msgpack.Decoder(Spec)
_MAX_NAME = 128
_PRIORITIES = frozenset(TaskPriority)
_MAX_KEY = 512
_SHOWN = 10
_DRIFT_MS = 1_000
"""Two clocks that differ by less show the same time."""


class Intake:
    """Checks tasks and makes them ready for the store."""

    def __init__(
        self,
        executor: TaskExecutor,
        store: Store,
        values: Values,
        cache: ResultCache,
        config: SchedulerConfig,
        env: Environment,
        tracing: Tracing | None = None,
    ) -> None:
        self._cache = cache
        self._executor = executor
        self._store = store
        self._values = values
        self._config = config
        self._env = env
        self._tracing = tracing
        self._elsewhere: frozenset[str] = frozenset()
        self._elsewhere_declared: dict[str, Declared] = {}  # handlers whose code is not here
        self.limits: ModelLimits | None = None
        """Where tasks run too: a model that was just registered has its limits stored before its first tasks."""
        self.impossible: Callable[[Resources], str | None] | None = None
        """Says why nothing can ever run what needs that, where no other worker can come with other settings."""
        self._makers: dict[str, CallMaker] = {}  # of calls without options, by type

    async def new_tasks(self, tasks: Sequence[Task | NewTask]) -> list[NewTask]:
        """Return the tasks in their stored form. Raises InvalidInput or UnsupportedTaskType for the first bad one."""
        if not isinstance(tasks, Sequence):
            raise invalid("tasks", tasks, "is no list of tasks", "pass [Task(...), ...]")
        if self.limits is not None and self.limits.is_due:
            await self.limits.store_new()
        result = []
        served, inline, parents = self._executor.types, self._values.inline_bytes, self._config.max_dependencies
        for task in tasks:
            if isinstance(task, NewTask):
                new = task
            else:
                check_task(task)
                if task.task_type not in served:
                    await self._check_elsewhere(task)
                new = self._new_task(task)
            if len(new.after) > parents:
                raise _too_many_parents(len(new.after), parents)
            if len(new.input) > inline:
                new.input = await self._values.put(new.input, "input")
                new.flags |= BLOB_INPUT
            result.append(new)
        if self._tracing is not None and (trace := self._tracing.current()) is not None:
            _put_trace(result, trace)
        return result

    def call_maker(self, handler: Handler, options: Mapping[str, Any]) -> CallMaker:
        """Return what makes calls of a handler with these options: they are checked once, not for each call.

        Raises: InvalidInput.
        """
        if not options and (known := self._makers.get(handler.task_type)) is not None and known.handler is handler:
            return known
        task = typed_task(handler.task_type, Custom({}), with_declared(handler, options))
        self._check_fields(task)
        maker = CallMaker(handler, task, self._stored(task, b"", (), task.cost), self._cache, self._env.new_id)
        if not options:
            self._makers[handler.task_type] = maker
        return maker

    def _new_task(self, task: Task) -> NewTask:
        handler = self._executor.handlers.get(task.task_type)
        if handler is not None and (maker := self.call_maker(handler, {})).makes(task):
            data, refs = encode_input(task.input)
            self._executor.check(task, has_refs=bool(refs))
            return maker.stored(task.id.bytes, data, refs)
        self._check_fields(task)
        data, refs = encode_input(task.input)
        self._executor.check(task, has_refs=bool(refs))
        cost = self._cost(task, has_refs=bool(refs))
        guess = self._guess(task) if cost is None and not refs else None
        new = self._stored(task, data, refs, cost if guess is None else guess)
        new.is_guess = guess is not None
        if new.flags & WANTS_KEPT and not refs:
            work = self._cache.name(task.task_type, task.namespace, task.model_id, task.params, data)
            new.work = None if work is None else work.key
        return new

    async def _check_elsewhere(self, task: Task) -> None:
        """A submitter need not have the code: some worker may have registered it in the store."""
        known = self._elsewhere_declared.get(task.task_type)
        try:
            if known is None:
                known = await self._look_elsewhere(task.task_type)
            if known is not None:
                known.check(task.input)
        except InvalidInput:  # a newer worker may take it
            known = await self._look_elsewhere(task.task_type)
            if known is not None:
                known.check(task.input)

    async def _look_elsewhere(self, kind: TaskType) -> Declared | None:
        row = await self._store.declared(kind)
        if row is not None:
            self._elsewhere_declared[kind] = Declared.read(TaskType(kind).name, *row)
            return self._elsewhere_declared[kind]
        if kind not in self._elsewhere:
            self._elsewhere = frozenset(await self._store.registered_types())
        if kind not in self._elsewhere:
            known = ", ".join(sorted({*self._executor.types, *self._elsewhere}))
            why = f"task_type = {str(kind)!r}: nobody has registered it; registered are {known}"
            raise UnsupportedTaskType(why, field="task_type", value=kind)
        return None

    def child(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Task:
        """Return the task of a handler's call of `ctx.submit`, from whatever thread. Raises InvalidInput."""
        task = self._executor.task_of(function, args, kwargs)
        self._check_fields(task)
        return task

    def _check_fields(self, task: Task) -> None:
        """Raises InvalidInput for what no task may be, whatever its type and input."""
        if task.timeout is not None and seconds(task.timeout, "timeout") == 0:
            raise invalid("timeout", task.timeout, "leaves no time", "use a positive number of seconds, or None")
        if task.priority not in _PRIORITIES:
            raise invalid("priority", task.priority, "is unknown", "use a TaskPriority")
        retries_of("max_retries", task.max_retries)
        if type(task.retry_count) is not int or task.retry_count:
            why = "is of a task that was tried, and this one is new"
            raise invalid("retry_count", task.retry_count, why, "leave it out: it begins at 0")
        self._check_resources(task)
        if task.cost is not None:
            check_cost(task.cost, "cost")
        _check_names(task)
        if type(task.dependencies) is not tuple and not isinstance(task.dependencies, list):
            raise invalid("dependencies", task.dependencies, "is no sequence of tasks", "pass a tuple of ids")
        if len(task.dependencies) > self._config.max_dependencies:
            raise _too_many_parents(len(task.dependencies), self._config.max_dependencies)
        if type(task.on_dependency_failure) is not str or task.on_dependency_failure not in POLICY_CODE:
            raise invalid(
                "on_dependency_failure",
                task.on_dependency_failure,
                "is unknown",
                f"use one of {', '.join(POLICY_CODE)}",
            )

    def _check_resources(self, task: Task) -> None:
        if task.resources is not None:
            check_resources(task.resources)
        declared = self._declared(task.task_type, "resources") if task.resources is None else task.resources
        if self.impossible is not None and isinstance(declared, Resources):
            why = self.impossible(declared)
            if why is not None:
                raise invalid("resources", declared, why, "declare less, or run it where there is more")

    def _cost(self, task: Task, *, has_refs: bool) -> float | None:
        """Return what a task is to cost its group, as far as that is said: what others will give is not known yet."""
        if task.cost is not None or task.group is None:
            return task.cost
        handler = self._executor.handlers.get(task.task_type)
        if handler is None or not callable(handler.cost):
            declared: float | None = self._declared(task.task_type, "cost")
            return declared
        assert isinstance(task.input, Custom)  # checked just now
        return None if has_refs else handler.cost_of(task.input.value)

    def _guess(self, task: Task) -> float | None:
        """Return what a model's server will count for a task, about. It has a group, also where it names none."""
        expected = getattr(self._executor.types.get(task.task_type), "expected_cost", None)
        return None if expected is None else expected(task.input, task.model_id, task.params)

    def _stored(self, task: Task, data: bytes, refs: Sequence[TaskId], cost: float | None) -> NewTask:
        deadline_ms = not_before_ms = None
        if task.deadline is not None:
            deadline_ms = _ms(task.deadline, "deadline")
            if deadline_ms <= self._env.wall_ms():
                raise invalid("deadline", task.deadline.isoformat(), "has passed already", "use a later one, or None")
        if task.not_before is not None:
            not_before_ms = _ms(task.not_before, "not_before")
            if deadline_ms is not None and not_before_ms >= deadline_ms:
                raise invalid("not_before", task.not_before.isoformat(), "is not before the deadline", "swap them")
        timeout = self._declared(task.task_type, "timeout") if task.timeout is None else task.timeout
        cache = self._declared(task.task_type, "cache") if task.cache is None else task.cache
        keep_ms = 0 if cache is None else int(seconds(cache, "cache") * 1000)
        if keep_ms:
            self._cache.check(task.task_type, task.model_id)
        after: tuple[bytes, ...] = ()
        if task.dependencies or refs:
            after = tuple(dict.fromkeys(id_of(item).bytes for item in (*task.dependencies, *refs)))
        return NewTask(
            task.id.bytes,
            (task.namespace, task.task_type, task.group or self._executor.group_of(task)),
            data,
            priority=int(task.priority),
            max_retries=int(task.max_retries),
            timeout_ms=None if timeout is None else max(1, int(seconds(timeout, "timeout") * 1000)),
            deadline_ms=self._by_store(deadline_ms),
            not_before_ms=self._by_store(not_before_ms),
            flags=(HAS_REFS if refs else 0)
            | (WANTS_KEPT if keep_ms else 0)
            | (0 if task.resources is None else RESERVES)
            | (0 if cost is None else COSTS),
            spec=self._spec(task, keep_ms, cost),
            keep_ms=keep_ms,
            key=task.idempotency_key,
            after=after,
            policy=POLICY_CODE[task.on_dependency_failure],
        )

    def _declared(self, kind: TaskType, option: str) -> Any:
        """Return what a handler was declared with, where the task says nothing."""
        if (handler := self._executor.handlers.get(kind)) is not None:
            return getattr(handler, option)
        known = self._elsewhere_declared.get(kind)
        return None if known is None else known.options.get(option)

    def _by_store(self, ms: int | None) -> int | None:
        """Return a moment by the store's clock: the wall clock may have been moved since the store was opened."""
        if ms is None:
            return None
        ahead_ms = self._store.now_ms() - self._env.wall_ms()
        return ms if abs(ahead_ms) < _DRIFT_MS else ms + ahead_ms

    def _spec(self, task: Task, keep_ms: int, cost: float | None) -> bytes | None:
        """Return the columns that most tasks go without; whatever is stored there can be read back."""
        if not (
            task.params
            or keep_ms
            or task.metadata
            or task.model_id is not None
            or task.idempotency_key is not None
            or task.resources is not None
            or cost is not None
            or task.on_dependency_failure != "require"
        ):
            return None
        if not isinstance(task.params, dict):
            raise invalid("params", task.params, "is no mapping", "use a dict of option to value")
        if not isinstance(task.metadata, dict):
            raise invalid("metadata", task.metadata, "is no mapping", "use a dict of str to str")
        for name, value in task.metadata.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise invalid("metadata", {name: value}, "is not text", "use str for names and values")
        spec = Spec(
            model_id=task.model_id,
            metadata=task.metadata,
            params=task.params,
            on_dependency_failure=task.on_dependency_failure,
            idempotency_key=task.idempotency_key,
            resources=task.resources,
            keep_ms=keep_ms or None,
            cost=cost,
        )
        raw = self._encode_spec(spec)
        for field in ("metadata", "params"):
            limit = getattr(self._config, f"max_{field}_bytes")
            if len(raw) > limit and (much := len(_spec_encoder.encode(getattr(task, field)))) > limit:
                why = f"are above max_{field}_bytes = {limit}"
                raise invalid(field, f"{much} bytes", why, "put large values into the input")
        return raw

    def _encode_spec(self, spec: Spec) -> bytes:
        try:
            raw = _spec_encoder.encode(spec)
            _spec_decoder.decode(raw)
            return raw
        except (TypeError, ValueError, OverflowError, RecursionError) as exc:
            raise invalid(
                "metadata and params", spec.params, f"can't be stored ({exc})", "use JSON-like values"
            ) from exc


def _too_many_parents(many: int, limit: int) -> InvalidInput:
    why = f"are more than max_dependencies = {limit}"
    return invalid("dependencies", f"{many} parents", why, "join them in steps")


def _put_trace(tasks: Sequence[NewTask], trace: Trace) -> None:
    """Store with each task in which trace it was submitted."""
    known: dict[bytes | None, bytes] = {}
    for task in tasks:
        raw = task.spec
        if raw not in known:
            known[raw] = _with(raw, trace=trace)
        task.spec = known[raw]


def _with(raw: bytes | None, **fields: Any) -> bytes:
    spec = Spec() if raw is None else _spec_decoder.decode(raw)
    return _spec_encoder.encode(msgspec.structs.replace(spec, **fields))


def unordered(tasks: Sequence[NewTask]) -> InvalidInput | None:
    """Return what is wrong where a parent that the store does not know stands in the same call all the same."""
    place = {task.id: n for n, task in enumerate(tasks)}
    graph = {task.id: [parent for parent in task.after if parent in place] for task in tasks}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        cycle = [str(TaskId(id)) for id in exc.args[1]]
        shown = " <- ".join(cycle if len(cycle) <= _SHOWN else [*cycle[:_SHOWN], "..."])
        return invalid("dependencies", TaskId(exc.args[1][0]), f"closes a cycle: {shown}", "leave one of these out")
    for n, task in enumerate(tasks):
        for parent in graph[task.id]:
            if place[parent] > n:
                why = f"stands later in the same call than its child {TaskId(task.id)}"
                return invalid("dependencies", TaskId(parent), why, "put parents before their children")
    return None


class CallMaker:
    """Makes calls of one handler with the same options, straight in their stored form: `pattern` is that of `task`."""

    __slots__ = ("_asks_cost", "_cache", "_fields", "_new_id", "_pattern", "handler")

    def __init__(
        self, handler: Handler, task: Task, pattern: NewTask, cache: ResultCache, new_id: Callable[[], bytes]
    ) -> None:
        self._cache = cache
        self._fields = _fields_of(task)
        self.handler = handler
        self._pattern = pattern
        self._new_id = new_id
        self._asks_cost = pattern.class_key[2] != "" and callable(handler.cost) and not pattern.flags & COSTS

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any], id: bytes | None = None) -> NewTask:
        """Raises InvalidInput for arguments that don't fit or can't be stored."""
        handler = self.handler
        bound = handler.bind(args, kwargs)
        try:
            data, refs = encode(Custom(bound))
        except InvalidInput as exc:
            raise _argument(bound) or exc from exc
        if not refs:
            handler.check_arguments(bound)
        new = self.stored(id or self._new_id(), data, refs)
        if self._asks_cost and not refs:
            new.flags |= COSTS
            new.spec = _with(new.spec, cost=handler.cost_of(bound))
        return new

    def makes(self, task: Task) -> bool:
        """Whether a task says nothing else than these calls, beside its id and its arguments."""
        return _fields_of(task) == self._fields and type(task.max_retries) is int

    def stored(self, id: bytes, data: bytes, refs: Sequence[TaskId]) -> NewTask:
        """Return the call whose encoded arguments these are. What its own arguments say of its cost is not in it."""
        like, work = self._pattern, None
        flags, after = like.flags, like.after
        if refs:
            flags |= HAS_REFS
            after = tuple(dict.fromkeys([*after, *[ref.bytes for ref in refs]]))
        elif flags & WANTS_KEPT:
            work = self._cache.name(self.handler.task_type, like.class_key[0], None, None, data)
        return NewTask(
            id, like.class_key, data, like.priority, like.max_retries, like.timeout_ms,
            like.deadline_ms, like.not_before_ms, flags, like.spec, like.key, after, like.policy,
            None if work is None else work.key, like.keep_ms,
        )  # fmt: skip


def _fields_of(task: Task) -> tuple[Any, ...]:
    """Return all that a task says beside its type, its input and its id, which come first."""
    return msgspec.structs.astuple(task)[3:]


def _argument(bound: Mapping[str, Any]) -> InvalidInput | None:
    """Return what is wrong with the first argument that can't be stored."""
    for name, value in bound.items():
        try:
            encode(value)
        except InvalidInput as exc:
            return InvalidInput(f"argument {name}: {exc}", field=name, value=value)
    return None


def _check_names(task: Task) -> None:
    if task.model_id is not None and (not isinstance(task.model_id, str) or not task.model_id):
        raise invalid("model_id", task.model_id, "is no model's name", "use its text, or None")
    if task.namespace != "default":
        check_name("namespace", task.namespace)
    if task.group is not None:
        check_name("group", task.group)
    if task.idempotency_key is not None:
        check_name("idempotency_key", task.idempotency_key, _MAX_KEY)


def check_name(field: str, value: Any, most: int = _MAX_NAME) -> None:
    """Raises InvalidInput for what no group, namespace or key may be called."""
    if not isinstance(value, str) or not 0 < len(value) <= most:
        raise invalid(field, value, f"is no text of 1 to {most} characters", "use a shorter one, or a hash")
    check_text(field, value)


def check_kind(type: Any, namespace: Any, group: Any) -> None:
    """Raises InvalidInput for what names no kind of tasks; "" stands for all."""
    if type != "":
        TaskType(type)
    for field, name in (("namespace", namespace), ("group", group)):
        if name != "":
            check_name(field, name)


def _ms(moment: datetime, field: str) -> int:
    if not isinstance(moment, datetime):
        raise invalid(field, moment, "is no datetime", "use datetime.now(UTC) + ...")
    if moment.tzinfo is None:
        raise invalid(field, moment, "has no time zone", "use datetime.now(UTC) + ...")
    if not 1970 <= moment.year < 9000:
        raise invalid(field, moment, "is out of range", "use a date of this age")
    return int(moment.astimezone(UTC).timestamp() * 1000)
