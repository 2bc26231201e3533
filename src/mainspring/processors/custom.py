"""Handlers: plain functions that users register, and the processor that runs them."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any

import msgspec

from mainspring.config import RESOURCE_KINDS, plain, seconds
from mainspring.errors import InvalidInput, TaskError, invalid, shown
from mainspring.processors.annotations import is_async, resolved
from mainspring.processors.base import Item, Lane, failure, text_of
from mainspring.processors.batch import Batch, Call, are_contexts, asked, items_parameter
from mainspring.processors.code import code_hash
from mainspring.processors.context import Context, check_cost
from mainspring.processors.functions import check_asked, check_function, check_gives_list
from mainspring.processors.importable import check_importable
from mainspring.tasks import (
    Custom,
    CustomOutput,
    Done,
    OnDependencyFailure,
    Outcome,
    Resources,
    Retry,
    TaskId,
    TaskInput,
    TaskPriority,
    TaskType,
    Work,
)
from mainspring.tasks.codec import BYTES, convert, decode, decode_input, encode, json_schema
from mainspring.tasks.texts import check_key, check_text

LANES: tuple[Lane, ...] = ("async", "thread", "process")


class SubmitOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a submit call; the same names in decorator, call, HTTP and CLI."""

    priority: TaskPriority | None = None
    deadline: Any = None  # aware datetime, or a duration from now
    delay: float | str | None = None  # duration from now before which it does not start
    not_before: Any = None  # aware datetime
    timeout: float | str | None = None  # of one attempt
    max_retries: int | None = None
    idempotency_key: str | None = None  # one task per (namespace, key)
    metadata: dict[str, str] | None = None
    group: str | None = None
    namespace: str | None = None
    after: Any = ()  # tasks or handles that must end first, beside those in the arguments
    on_dependency_failure: OnDependencyFailure | None = None
    resources: Resources | None = None
    cache: str | float | None = None
    cost: float | None = None  # what it is to cost its group, in the unit of the limit
    task_id: TaskId | None = None


MAX_RETRIES = 1_000_000
_AMOUNTS = ("cpu", "memory", "gpu")


def check_resources(resources: Any) -> None:
    """Raises InvalidInput for what nobody can reserve."""
    if not isinstance(resources, Resources):
        raise invalid("resources", resources, "is no Resources", "pass Resources(memory=2 * 1024**3)")
    if not isinstance(resources.custom, dict):
        raise invalid("resources.custom", resources.custom, "is no mapping", 'use {"license": 1}')
    for kind, much in resources.custom.items():
        if not isinstance(kind, str) or not kind or kind in RESOURCE_KINDS:
            raise invalid("resources.custom", kind, "is no name of a kind of one's own", 'use one such as "license"')
        _check_amount(f"resources.custom[{kind!r}]", much)
    for name in _AMOUNTS:
        _check_amount(f"resources.{name}", getattr(resources, name))
    if not isinstance(resources.memory, int):
        raise invalid("resources.memory", resources.memory, "is no whole number of bytes", "use an int, as int(2e9)")


def _check_amount(field: str, much: Any) -> None:
    if isinstance(much, bool) or not isinstance(much, (int, float)) or not 0 <= much < 1e18:
        raise invalid(field, much, "is no amount", "use a number from 0; memory is in bytes")


OPTION_NAMES = frozenset(SubmitOptions.__struct_fields__)
_TAKEN_NAMES = OPTION_NAMES | {"connection", "wait_for_room"}
"""What calls of the engine take beside a handler's own arguments."""


class Handler:
    """A registered function with its declared options. `@engine.task` makes one; the function itself stays as it is."""

    __slots__ = (
        "__weakref__",
        "accepted",
        "batch",
        "by_place",
        "cache",
        "context_parameter",
        "contexts_parameter",
        "convert_input",
        "cost",
        "declared",
        "function",
        "is_async",
        "is_native",
        "items",
        "lane",
        "name",
        "parameters",
        "params_type",
        "places",
        "priority",
        "required",
        "resources",
        "retry",
        "schema",
        "source_hash",
        "task_type",
        "timeout",
        "version",
    )

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        version: str = "1",
        lane: Lane | None = None,
        retry: Retry | int | None = None,
        timeout: float | str | None = None,
        priority: TaskPriority = TaskPriority.NORMAL,
        resources: Resources | None = None,
        batch: Batch | None = None,
        cache: float | str | None = None,
        cost: float | Callable[..., float] | None = None,
    ) -> None:
        check_function(function)
        self.function = function
        self.is_async = is_async(function)
        if name is not None and not isinstance(name, str):
            raise invalid("name", name, "is no text", 'name the handler, such as "resize", or leave it out')
        self.name = str(getattr(function, "__name__", "")) if name is None else name
        if self.name in ("", "<lambda>"):
            raise invalid("handler", function, "has no name to find it by", "pass name=... or use def")
        self.task_type = TaskType.custom(self.name)
        self.version = version
        if not isinstance(version, str) or not version:
            raise invalid("version", version, "is no text", 'use one such as "2"')
        check_text("version", version)
        check_key("version", version)
        self.lane = lane if lane is not None else ("async" if self.is_async else "thread")
        self.retry = _retry_of(retry)
        self.timeout = None if timeout is None else seconds(timeout, "timeout")
        if self.timeout == 0:
            raise invalid("timeout", timeout, "leaves no time", "use a positive duration, or None")
        self.priority = priority_of(priority)
        self.resources = resources
        self.batch = batch
        self.cache = None if cache is None else seconds(cache, "cache")
        self.cost = cost if cost is None or callable(cost) else check_cost(cost, "cost")
        declared = {"max_retries": self.retry.max_retries, "timeout": self.timeout, "cache": self.cache}
        self.declared: dict[str, Any] = {  # the fields of a task that says nothing of them
            "priority": self.priority,
            **{name: value for name, value in declared.items() if value is not None},
        }
        self.source_hash = code_hash(function)
        if self.cache:
            self.check_kept()
        self._read_signature()
        self._check()

    def check_kept(self) -> None:
        """Refuse to keep results where nothing tells this code from a changed one. Raises: InvalidInput."""
        if not self.source_hash:
            raise invalid(
                "cache", self.name, "is an object or has defaults that are no data: nothing tells its code from a "
                "changed one", "wrap it in a function with def and plain defaults, or leave it out",
            )  # fmt: skip

    def _read_signature(self) -> None:
        signature = inspect.signature(self.function)
        hints = resolved(self.function, self.name)
        self.items = ""  # the parameter that gets the items of a batch
        if self.batch is not None:
            self.items, hints[self.items] = items_parameter(self.batch, self.name, signature, hints)
            check_gives_list(self.function, self.name)
        self.context_parameter: str | None = None
        self.contexts_parameter: str | None = None  # of all tasks in a call
        fields: list[Any] = []
        self.parameters: tuple[str, ...] = ()
        names: list[str] = []
        places = 0
        required: list[str] = []
        typed = False
        for parameter in signature.parameters.values():
            hint = hints.get(parameter.name, Any)
            if self._gets_context(parameter.name, hint):
                continue
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
                raise invalid(
                    "handler",
                    f"{self.name}{signature}",
                    f"parameter {parameter.name} can't be named in a stored task",
                    "use ordinary parameters: inputs are stored by name",
                )
            if parameter.name in _TAKEN_NAMES:
                raise invalid(
                    "handler",
                    f"{self.name}{signature}",
                    f"parameter {parameter.name} is also the name of a submit option",
                    "rename the parameter",
                )
            names.append(parameter.name)
            if parameter.kind is not parameter.KEYWORD_ONLY:
                places += 1
            typed = typed or hint is not Any
            if parameter.default is parameter.empty:
                required.append(parameter.name)
                fields.append((parameter.name, hint))
            else:
                fields.append((parameter.name, hint, msgspec.field(default_factory=_constant(parameter.default))))
        self.parameters = tuple(names)
        self.places = places
        self.by_place = places if places == len(names) else -1
        self.required = frozenset(required)
        self.accepted = frozenset(names)
        self.params_type = msgspec.defstruct(f"{self.name.replace('.', '_')}_input", fields, kw_only=True)
        self.convert_input = typed
        self.is_native = _is_native(self.params_type)
        try:
            self.schema = json_schema(self.params_type)
        except (TypeError, ValueError, RuntimeError, NameError) as exc:
            raise invalid(
                "handler",
                f"{self.name}{signature}",
                f"a parameter's type can't be converted ({exc})",
                "annotate it with JSON-like types, bytes, arrays, structs, dataclasses or models, or with Any",
            ) from exc

    def _gets_context(self, name: str, hint: Any) -> bool:
        """Whether a parameter is no argument of a task, as the engine fills it."""
        if typing.get_origin(hint) is typing.Annotated and hint.__origin__ in (Context, Context | None):
            hint = Context
        if hint is Context or hint == Context | None:
            self.context_parameter = name
        elif are_contexts(hint):
            self.contexts_parameter = name
        else:
            return False
        return True

    def _check(self) -> None:
        if self.lane not in LANES:
            raise invalid("lane", self.lane, "is unknown", f"use one of {', '.join(LANES)}")
        if self.lane == "async" and not self.is_async:
            raise invalid(
                "lane", self.lane, f"{self.name} is a plain function and would block the loop", "use lane='thread'"
            )
        if self.lane == "thread" and self.is_async:
            raise invalid(
                "lane", self.lane, f"{self.name} is async and belongs on the loop", "leave lane out, or use def"
            )
        if self.lane == "process":
            check_importable(self.function, self.name)
        if self.contexts_parameter is not None and self.batch is None:
            why, remedy = "gets contexts of several tasks without batch=", "annotate it as Context, or declare a batch"
            raise invalid("handler", f"{self.name}({self.contexts_parameter}: list[Context])", why, remedy)
        retries_of("retry.max_retries", self.retry.max_retries)
        if self.resources is not None:
            check_resources(self.resources)
        if callable(self.cost):
            takes = ", ".join(self.parameters) or "nothing"
            check_asked(self.cost, "cost", len(self.parameters), f"pass a plain function that takes {takes}")
        if type(self.retry.factor) not in (int, float) or not 1 <= self.retry.factor <= 1_000:
            raise invalid("retry.factor", self.retry.factor, "is not between 1 and 1000", "use about 2")
        seconds(self.retry.delay, "retry.delay")
        seconds(self.retry.max_delay, "retry.max_delay")

    def bind(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the call's arguments by name, as they are stored. Raises InvalidInput for what does not fit."""
        parameters = self.parameters
        if len(args) == self.by_place and not kwargs:
            return dict(zip(parameters, args))  # noqa: B905 - equally long; the argument costs more than the rest
        if len(args) > self.places:
            why = f"{self.name} takes {self.places} of them" + (" by place" if self.by_place < 0 else "")
            raise invalid("arguments", args, why, f"it wants ({', '.join(parameters)})")
        bound = dict(zip(parameters, args, strict=False))
        for name, value in kwargs.items():
            if name not in parameters or name in bound:
                why = "is given twice" if name in bound else f"is no parameter of {self.name}"
                remedy = f"it takes ({', '.join(parameters)}) and options {sorted(OPTION_NAMES)}"
                if name == "retry" and name not in bound:
                    remedy = "a call says max_retries=N; how soon is declared, with @engine.task(retry=Retry(...))"
                raise invalid(name, value, why, remedy)
            bound[name] = value
        if len(bound) < len(parameters) and not self.required <= bound.keys():
            missing = ", ".join(sorted(self.required - bound.keys()))
            raise InvalidInput(f"{self.name} misses {missing}; it takes ({', '.join(parameters)})", field=missing)
        return bound

    def check_arguments(self, bound: dict[str, Any]) -> None:
        """Refuse arguments that can't work, in calls without references: those are checked when they are known."""
        if self.convert_input:
            self._as_called(bound)
        if self.batch is not None and self.batch.oversize == "refuse":
            self.batch.cost_of(self.item_of(decode(encode(bound)[0])), self.name)

    def item_of(self, stored: dict[str, Any]) -> Any:
        """Return the item of stored arguments as the function gets it. Raises InvalidInput where its type raises."""
        try:
            return (self.typed(stored) if self.convert_input else stored)[self.items]
        except TaskError:
            raise
        except BaseException as exc:  # as in `Batch.cost_of`: types have code of their own
            why = f"its type raised {type(exc).__name__} for {shown(stored.get(self.items))}: {text_of(exc)}"
            raise invalid(f"arguments of {self.name}", stored, why, "pass a value that validates") from exc

    def _as_called(self, bound: dict[str, Any]) -> dict[str, Any]:
        try:
            return self.typed(bound)
        except InvalidInput:  # numbers of numpy fit once they are stored as plain ones
            return self.typed(decode(encode(bound)[0]))

    def cost_of(self, bound: dict[str, Any]) -> float | None:
        """Return what a call is to cost its group; None where nothing was declared.

        Raises: InvalidInput, also where the user's function raises anything.
        """
        if not callable(cost := self.cost):
            return cost
        arguments = self._as_called(bound)
        return check_cost(asked(lambda given: cost(*given.values()), "cost", arguments, self.name), "cost")

    def typed(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return stored arguments in the types that the function wants. Raises InvalidInput."""
        if self.is_native:  # no hook: less than half the time
            try:
                return msgspec.structs.asdict(msgspec.convert(arguments, self.params_type, builtin_types=BYTES))
            except (msgspec.ValidationError, AttributeError):  # the latter of an array where a dict is wanted
                pass  # said below
        return msgspec.structs.asdict(convert(arguments, self.params_type, f"arguments of {self.name}"))


def _retry_of(retry: Any) -> Retry:
    if retry is None:
        return Retry()
    if type(number := plain(retry)) is int:
        return Retry(max_retries=number)
    if not isinstance(retry, Retry):
        raise invalid("retry", retry, "is no retry policy", "use Retry(...), or the number of retries")
    return retry


def retries_of(field: str, value: Any) -> int:
    """Return a number of retries as an int. Raises InvalidInput for what is none."""
    number = plain(value)
    if type(number) is not int or not 0 <= number <= MAX_RETRIES:
        raise invalid(field, value, f"is no count from 0 to {MAX_RETRIES}", "use 0 for no retry")
    return number


def priority_of(value: Any) -> TaskPriority:
    """Return a priority given as such, as its number or by its name. Raises InvalidInput."""
    try:
        return TaskPriority[value.upper()] if isinstance(value, str) else TaskPriority(value)
    except (KeyError, ValueError):
        names = ", ".join(item.name for item in TaskPriority)
        raise invalid("priority", value, "is unknown", f"use one of {names}") from None


def _is_native(params: type[msgspec.Struct]) -> bool:
    """Whether msgspec knows all the types by itself."""
    try:
        msgspec.json.schema(params)
    except TypeError:
        return False
    return True


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


class HandlerProcessor:
    """Runs one handler; one call for each item."""

    class Params(msgspec.Struct):
        """Handlers get their values as arguments; there are no other options."""

    def __init__(self, handler: Handler, traceback_chars: int = 4_000) -> None:
        self.handler = handler
        self.task_type = handler.task_type
        self.lane: Lane = handler.lane
        self._traceback_chars = traceback_chars

    def check(self, input: TaskInput, model_id: str | None, params: dict[str, Any]) -> None:
        if not isinstance(input, Custom) or not isinstance(input.value, dict):
            raise invalid(
                "input",
                input,
                "is not Custom with the arguments by name",
                f"use engine.submit({self.handler.name}, ...)",
            )
        if not self.handler.required <= input.value.keys() <= self.handler.accepted:
            self.handler.bind((), input.value)

    def load(self) -> None:
        """Nothing to load: the function is there."""

    def close(self) -> None:
        """Nothing was taken."""

    def process(self, batch: Sequence[Item]) -> Sequence[Outcome] | Awaitable[Sequence[Outcome]]:
        if self.handler.batch is not None:
            return self._await_together(batch) if self.handler.is_async else self._call_together(batch)
        return self._await_all(batch) if self.handler.is_async else [self._call(item) for item in batch]

    @property
    def batch(self) -> Batch | None:
        return self.handler.batch

    def join(self, work: Work) -> tuple[Hashable, float]:
        """See `Batching`."""
        handler, batch = self.handler, self.handler.batch
        assert batch is not None
        if len(handler.parameters) == 1 and batch.cost is None and batch.shape is None:
            return (), 0.0
        arguments = decode_input(work.input).value  # type: ignore[union-attr]  # Custom, checked at submit
        shape, cost = b"", 0.0
        if batch.cost is not None or batch.shape is not None:
            item = handler.item_of(arguments)
            shape, cost = batch.shape_of(item, handler.name), batch.cost_of(item, handler.name)
        others = sorted(argument for argument in arguments.items() if argument[0] != handler.items)
        return encode([others, shape])[0], cost

    def _call_together(self, batch: Sequence[Item]) -> Sequence[Outcome]:
        call = Call(self.handler, batch, self._traceback_chars)
        return call.outcomes(self.handler.function(**call.arguments) if call.arguments else ())

    async def _await_together(self, batch: Sequence[Item]) -> Sequence[Outcome]:
        call = Call(self.handler, batch, self._traceback_chars)
        return call.outcomes(await self.handler.function(**call.arguments) if call.arguments else ())

    async def _await_all(self, batch: Sequence[Item]) -> Sequence[Outcome]:
        outcomes: list[Outcome] = []
        for item in batch:
            try:
                value = await self.handler.function(**self._arguments(item))
            except Exception as exc:  # noqa: BLE001 - what a handler raises is its attempt's recorded failure
                outcomes.append(failure(exc, self._traceback_chars))
            else:
                outcomes.append(Done(CustomOutput(value), item.context.effects))
        return outcomes

    def _call(self, item: Item) -> Outcome:
        try:
            value = self.handler.function(**self._arguments(item))
        except Exception as exc:  # noqa: BLE001 - what a handler raises is its attempt's recorded failure
            return failure(exc, self._traceback_chars)
        return Done(CustomOutput(value), item.context.effects)

    def _arguments(self, item: Item) -> dict[str, Any]:
        handler = self.handler
        arguments = item.input.value  # type: ignore[union-attr]
        if handler.convert_input:
            arguments = handler.typed(arguments)
        if handler.context_parameter is not None:
            arguments = {**arguments, handler.context_parameter: item.context}
        return arguments  # type: ignore[no-any-return]
