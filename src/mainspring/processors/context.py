"""What a handler may ask of the engine while it runs."""

from __future__ import annotations

import contextvars
import math
from collections.abc import Awaitable, Callable, Generator, Sequence
from datetime import UTC, datetime
from numbers import Real
from typing import TYPE_CHECKING, Any

from mainspring.errors import InvalidInput, invalid
from mainspring.processors.log import TaskLog, logger
from mainspring.tasks import ChildTasks, Effect, Progress, Ref, Signal, Task, TaskId, Work

if TYPE_CHECKING:
    import asyncio

    from mainspring.models.spending import Traffic

current: contextvars.ContextVar[Context | None] = contextvars.ContextVar("mainspring_context", default=None)
"""The context of the handler that runs here, if one does."""


MOST_COST = 1e15


def as_cost(value: Any) -> float | None:
    """Return a cost as a number of Python's own, also where it is one of numpy's; None for what no task can cost."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        cost = float(value)
    except OverflowError:
        return None
    return cost if 0 <= cost <= MOST_COST else None


def _finite(value: Any) -> float | None:
    """Return a number as a float; None for what is none, or none that a float can be."""
    try:
        number = float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def check_cost(cost: Any, field: str) -> float:
    """Raises InvalidInput for what no task can cost."""
    if (checked := as_cost(cost)) is None:
        raise invalid(field, cost, "is no cost", "use a number from 0, in the unit of the group's cost_rate")
    return checked


class Child(Ref):
    """A task submitted by a handler. Return it, or hand it to another submit; its result can't be awaited here."""

    __slots__ = ("_stored",)

    def __init__(self, id: TaskId, stored: Any = None) -> None:
        super().__init__(id)
        self._stored = stored
        if stored is not None:
            stored.add_done_callback(self._rename)

    def _rename(self, stored: asyncio.Future[TaskId]) -> None:
        """Stand for the task that is in the store: its idempotency key may have had one already."""
        if not stored.cancelled() and stored.exception() is None:
            self.key = stored.result().bytes

    def __await__(self) -> Generator[Any, None, Child]:
        """Wait until the child is accepted (with `now=True`: stored), not until it ends."""
        if self._stored is not None:
            yield from self._stored.__await__()
        return self

    def result(self, timeout: float | None = None) -> Any:
        raise waiting_inside()


def waiting_inside() -> InvalidInput:
    return InvalidInput(
        "waiting for a task inside a handler would hold its slot until that task ends, and for ever when no slot is "
        "left; return the handle instead: whoever depends on this task then gets that task's result",
        field="result",
    )


class Context:
    """A handler's view of its own attempt. Handlers get it by a parameter annotated `Context`; those whose tasks run
    together one for each item, in the same order, by a parameter annotated `list[Context]`.

    Everything it writes is fenced: once the attempt is lost, nothing arrives.
    """

    children: list[Task] | None = None  # made by the first submit
    calls = 0  # of submit
    storing: Sequence[Awaitable[Any]] = ()  # children on their way into the store: the attempt ends after them
    cost: float | None = None  # what the handler said that this attempt cost its group
    made_cpu_s = 0.0  # CPU time of asyncio tasks that the handler has made
    _cancelled = False
    _http: Any = None
    _traffic: Traffic | None = None
    _log: TaskLog | None = None

    def __init__(
        self,
        id: bytes,
        attempt: int,
        send: Callable[[Signal], None],
        submit: Callable[..., Child] | None = None,
        deadline_ms: int | None = None,
        retry_count: int = 0,
        work: Work | None = None,
    ) -> None:
        self._id = id
        self.attempt = attempt
        self.retry_count = retry_count
        self._deadline_ms = deadline_ms
        self._send = send
        self._submit = submit
        self._work = work

    @property
    def id(self) -> TaskId:
        return TaskId(self._id)

    @property
    def deadline(self) -> datetime | None:
        """When the task had to be started by, in UTC."""
        return None if self._deadline_ms is None else datetime.fromtimestamp(self._deadline_ms / 1000, UTC)

    @property
    def cancelled(self) -> bool:
        """True once somebody asked this attempt to stop. Long loops in threads should look at it."""
        return self._cancelled

    def cancel(self) -> None:
        """Set by the engine; harmless to call twice."""
        self._cancelled = True

    def progress(self, done: float, total: float = 1.0) -> None:
        """Tell how far this attempt is. Cheap; only the newest value is kept."""
        so_much, of_all = _finite(done), _finite(total)
        if so_much is None or of_all is None:
            raise invalid("progress", (done, total), "are no finite numbers", "pass how much is done, and of how much")
        self._send(Progress(so_much, of_all))

    def usage(self, *, cost: float) -> None:
        """Tell what this attempt really cost its group, in the unit of the group's `cost_rate`.

        Counts when the attempt ends, however it does, in place of the estimate; said again the newest value holds. An
        attempt that dies without a word keeps what was reserved for it.
        """
        self.cost = check_cost(cost, "cost")

    def used(self, cost: float | None, network_bytes: int | None) -> None:
        """Add what a client of the engine's own has used for this attempt; None: nobody knows."""
        if cost is not None:
            self.cost = (self.cost or 0.0) + cost
        if network_bytes is not None:
            self._count().bytes += network_bytes

    def _count(self) -> Traffic:
        if self._traffic is None:
            from mainspring.models.spending import Traffic

            self._traffic = Traffic()
        return self._traffic

    @property
    def log(self) -> TaskLog:
        """A logger whose records carry the task's id, attempt and type; see `docs/logs.md`."""
        if self._log is None:
            self._log = TaskLog(logger, self.labels())
        return self._log

    def begin_again(self) -> None:
        """Its item goes into another call, as the one before has raised: what was submitted there is not to come."""
        self.children, self.calls = None, 0
        if self._http is not None and self._http.is_closed:
            self._http = None

    @property
    def effects(self) -> tuple[Effect, ...]:
        """What is to be written with a result."""
        return (ChildTasks(tuple(self.children or ())),) if self.calls else ()

    def labels(self) -> dict[str, Any]:
        """Return what a line of a log carries that concerns this attempt."""
        if self._work is None:
            return {"task_id": str(self.id), "attempt": self.attempt}
        return self._work.labels()

    @property
    def http(self) -> Any:
        """An HTTP client that counts this attempt's bytes into its metrics.

        In an `async def` handler an `httpx.AsyncClient`, elsewhere an `httpx.Client`; it is closed when the attempt
        ends.
        """
        if self._http is None:
            import asyncio

            from mainspring.processors import http

            traffic = self._count()
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                self._http = http.blocking_client(traffic)
            else:
                self._http = http.async_client(traffic)
        return self._http

    @property
    def is_open(self) -> bool:
        """Whether something has to be awaited or closed before the attempt is over."""
        return bool(self.storing) or self._http is not None

    @property
    def network_bytes(self) -> int | None:
        """Bytes moved through `http` or to a model behind HTTP; None where there was none of that."""
        return None if self._traffic is None else self._traffic.bytes

    async def close(self) -> None:
        """Close what an `async def` handler used."""
        if self._http is not None:
            await self._http.aclose()

    def close_blocking(self) -> None:
        """Close what a plain handler used."""
        if self._http is not None:
            self._http.close()

    def submit(self, function: Callable[..., Any], /, *args: Any, now: bool = False, **options: Any) -> Child:
        """Submit a child task: a call of a registered function, or of an operation such as `engine.embed`.

        It is stored together with this attempt's outcome, so that an attempt that fails leaves no children behind. With
        `now=True` it is stored at once, under an id derived from this task and the number of the call: a repeated
        attempt finds it again instead of doubling it. A transaction of your own takes no children: see `Engine.submit`.

        Returns: a handle to return or to pass on. Awaiting the handle waits until the child is accepted.
        """
        if self._submit is None:
            raise InvalidInput("ctx.submit works only in a handler that the engine runs", field="ctx")
        for name in ("connection", "wait_for_room"):
            if name in options:
                why = "does not go with a child, which is stored with this attempt's outcome"
                raise invalid(name, "...", why, "leave it out, or use engine.submit for a task that is no child")
        return self._submit(self, function, args, options, now)
