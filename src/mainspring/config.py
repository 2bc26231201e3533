"""Settings: one frozen struct a room, each default with its unit and reason, checked once when made.

Environment, files and flags are read only at the doors (`cli/`); everything below gets these structs.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from datetime import timedelta
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import msgspec
from msgspec.structs import force_setattr

from mainspring.errors import InvalidInput, invalid

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)\s*")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_NEARLY = re.compile(
    r".*://"  # of something else
    r"|\s*postgres(?:ql)?(?:\+\w+)?(?::|//)"  # with one sign too few
    r"|(?://)?[^/:@]+:[^@]*@"  # USER:PASSWORD@ without what goes before
    r"|(?:.*[?&\s])?(?:ssl)?password\s*=",  # as words with their values
    re.IGNORECASE | re.DOTALL,
)
_SECRET = re.compile(r"\w*passw", re.IGNORECASE)
RESOURCE_KINDS = ("cpu", "memory", "gpu", "children")
"""Kinds of resources that have a meaning of their own; all others are users'."""
_PLAIN = frozenset({int, float, bool})
MAX_DURATION_S = 10 * 365 * 86400.0
"""Ten years: whatever is longer is a mistake in units."""


def seconds(value: float | str | timedelta, field: str) -> float:
    """Return a duration given as seconds, as text such as "8ms", "30s", "1.5h", "7d", or as a timedelta.

    Raises: InvalidInput: not a duration, negative, not a number, or longer than ten years.
    """
    if type(value) is float and 0 <= value <= MAX_DURATION_S:
        return value
    if isinstance(value, timedelta):
        result = value.total_seconds()
    elif isinstance(value, str):
        match = _DURATION.fullmatch(value)
        if match is None:
            raise invalid(field, value, "is no duration", 'use seconds, or text such as "8ms", "30s", "2h" or "7d"')
        result = float(match[1]) * _UNIT_S[match[2]]
    elif isinstance(value, Real) and not isinstance(value, bool):  # numpy's are some
        try:
            result = float(value)
        except OverflowError:
            result = math.inf
    else:
        raise invalid(field, value, "is no duration", 'use seconds, or text such as "30s"')
    if not 0 <= result <= MAX_DURATION_S:  # NaN fails this too
        raise invalid(field, value, "is out of range", "use a duration from 0 to ten years")
    return result


def is_server(store: str | Path) -> bool:
    """Whether a store is named by the address of a server."""
    return str(store).startswith(("postgres://", "postgresql://"))


def without_password(store: str | Path) -> str:
    """Return the name of a store as it may be shown."""
    text = str(store)
    scheme, _, rest = text.partition("://")
    if _is_nearly_an_address(text):
        return f"{scheme}://..." if re.fullmatch(r"\s*[A-Za-z][\w+.-]{0,30}", scheme) else "..."
    if not is_server(text):
        return text
    user, at, where = rest.rpartition("@")
    where, sign, options = where.partition("?")
    shown = [option for option in options.split("&") if "=" in option and not _SECRET.match(unquote(option))]
    return f"{scheme}://{user.partition(':')[0]}{at}{where}" + (f"{sign}{'&'.join(shown)}" if shown else "")


def refuse_address(
    field: str,
    store: str | Path,
    remedy: str = 'use "postgresql://USER@HOST/DATABASE"; a file of such a name is "./NAME"',
) -> None:
    """See that what is taken for a file's name is none.

    Raises: InvalidInput: it is nearly the address of a server. What may be a password in it is not shown.
    """
    if _is_nearly_an_address(str(store)):
        raise invalid(field, without_password(store), "is no address of a store", remedy)


def _is_nearly_an_address(text: str) -> bool:
    return not is_server(text) and _NEARLY.match(unquote(text)) is not None


def cores() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_is(field: str, value: Any, wanted: type, remedy: str = "pass one") -> None:
    """Raises InvalidInput for what is none of a class."""
    if not isinstance(value, wanted):
        raise invalid(field, value, f"is no {wanted.__name__}", remedy)


def check_given(**given: tuple[Any, type]) -> None:
    """Raises InvalidInput for what is given, not None, and is none of its class."""
    for field, (value, wanted) in given.items():
        if value is not None:
            check_is(field, value, wanted)


def check_store(store: Any) -> None:
    """Raises InvalidInput for what names no store."""
    if not isinstance(store, (str, Path)) or not str(store):
        raise invalid("store", store, "is no path or address", 'use "work.db", ":memory:" or "postgresql://..."')
    refuse_address("store", store)


def plain(number: Any) -> Any:
    """Return a number of another library, as numpy's, as one of Python's own; whatever is no number stays as it is."""
    if type(number) in _PLAIN or not isinstance(number, Real):
        return number
    return int(number) if isinstance(number, Integral) else float(number)


def _check(ok: bool, field: str, value: Any, why: str, remedy: str) -> None:
    if not ok:
        raise invalid(field, value, why, remedy)


def _check_counts(config: msgspec.Struct, *names: str, least: int = 1) -> None:
    for name in names:
        value = getattr(config, name)
        number = plain(value)
        if type(number) is not int or number < least:
            raise invalid(name, value, f"is no whole number from {least}", f"use {least} or more")
        force_setattr(config, name, number)


def _check_folder(config: msgspec.Struct, name: str) -> None:
    value = getattr(config, name)
    is_path = isinstance(value, (str, Path)) and bool(str(value))
    _check(is_path, name, value, "is no folder's path", 'use a Path, such as Path("/srv/shared")')
    force_setattr(config, name, Path(value))


def _check_folders(config: msgspec.Struct, name: str) -> None:
    folders = getattr(config, name)
    is_sequence = isinstance(folders, (tuple, list)) and all(isinstance(folder, (str, Path)) for folder in folders)
    _check(is_sequence, name, folders, "is no tuple of folders' paths", 'use a tuple, such as (Path("/srv/shared"),)')
    force_setattr(config, name, tuple(map(Path, folders)))


def _is_amount(much: Any) -> bool:
    number = plain(much)
    return isinstance(number, (int, float)) and not isinstance(number, bool) and 0 <= number < 1e18


def _check_seconds(config: msgspec.Struct, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _check(not isinstance(value, str), name, value, "is no number of seconds", "use a number")
        seconds(value, name)


class StoreConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where tasks live, and for how long."""

    durability: Literal["full", "relaxed"] = "full"
    """full: an accepted task survives power loss. relaxed: it survives a crash of the process, but the last seconds
    before a power loss may be gone."""
    inline_bytes: int = 64 * KIB  # larger payloads become blobs, so that the task table's log stays small
    max_payload_bytes: int = 64 * MIB  # refused before anything is written
    keep_completed_s: float = 7 * 86400.0  # then pruned
    keep_failed_s: float = 30 * 86400.0  # failed, timed out and cancelled ones are looked at later
    keep_tombstones_s: float = 90 * 86400.0  # id and status of pruned tasks
    max_completed: int = 1_000_000  # pruned earlier above this many
    cache_bytes: int = 256 * MIB  # results kept for equal work; those not used for longest go first
    wal_limit_bytes: int = 64 * MIB  # the log is truncated at the next quiet moment above this
    ageing_s: float = 60.0  # a step of priority is worth this much waiting
    lock_timeout_s: float = 10.0  # how long a write waits for another process's
    stall_s: float = 600.0  # a process that lives and does nothing for so long loses what it holds
    dead_s: float = 10.0  # on a server: a process that nobody has heard of for so long is dead
    blobs: Path | None = None  # folder of large payloads; beside the file. On a server: one that all machines share
    schema: str = "mainspring"  # on a server: where its tables are

    def __post_init__(self) -> None:
        _check(
            self.durability in ("full", "relaxed"), "durability", self.durability, "is unknown", "use full or relaxed"
        )
        _check(isinstance(self.schema, str), "schema", self.schema, "is no text", "name a schema")
        if self.blobs is not None:
            _check_folder(self, "blobs")
        _check_counts(self, "inline_bytes", "max_payload_bytes", "wal_limit_bytes")
        _check_counts(self, "max_completed", "cache_bytes", least=0)
        _check_seconds(
            self, "keep_completed_s", "keep_failed_s", "keep_tombstones_s", "ageing_s", "lock_timeout_s", "stall_s",
            "dead_s",
        )  # fmt: skip
        _check(
            0 < self.inline_bytes <= self.max_payload_bytes,
            "inline_bytes",
            self.inline_bytes,
            "is not between 1 and max_payload_bytes",
            "use about 65536",
        )
        _check(self.ageing_s > 0, "ageing_s", self.ageing_s, "is not positive", "use about 60")
        _check(self.stall_s > 0, "stall_s", self.stall_s, "is not positive", "use about 600")
        _check(self.dead_s >= 3, "dead_s", self.dead_s, "is less than three heartbeats", "use about 10")


QUEUE_SIZE = 100_000
"""Where nothing is said. A process that only submits obeys workers that have less then."""


class TaskManagerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker takes and runs tasks."""

    queue_size: int | None = QUEUE_SIZE  # unfinished tasks allowed in the store; None: unbounded
    batch_size: int = 512  # claims per store call
    processing_interval: float | str = 1.0  # seconds between safety looks beside the wake-ups
    async_slots: int = 64  # handlers awaiting at once on the event loop
    thread_slots: int = msgspec.field(
        default_factory=lambda: max(2, cores())  # numeric libraries release the GIL; one more takes searches alone
    )
    process_slots: int = msgspec.field(default_factory=cores)  # child processes, started when first needed
    prefetch_s: float = (
        0.02  # claim ahead what starts within this time: longer delays urgent work, shorter starves slots
    )
    prefetch_max: int = 2048  # and never more than this, a lane; nor of the kinds that a batch handler's calls are of
    cpu_capacity: float | None = None  # cores that attempts here may reserve; None: all this container may use
    memory_capacity: int | None = None  # bytes, max_memory_bytes at most; None: that. What others use is taken off
    gpu_capacity: float = 0.0  # devices
    custom_capacity: dict[str, float] = {}  # of users' own kinds
    grace_s: float = 2.0  # between asking a handler to stop and giving its slot up
    drain_s: float = 30.0  # how long stop() lets running work finish before releasing it

    def __post_init__(self) -> None:
        if self.queue_size is not None:
            _check_counts(self, "queue_size")
        _check_counts(self, "batch_size", "async_slots", "thread_slots", "process_slots", "prefetch_max")
        self._check_capacities()
        for name in ("async_slots", "thread_slots", "process_slots"):
            _check(getattr(self, name) <= 10_000, name, getattr(self, name), "is above 10,000", "use more processes")
        for name in ("processing_interval", "grace_s", "drain_s", "prefetch_s"):
            seconds(getattr(self, name), name)
        _check(
            seconds(self.processing_interval, "processing_interval") > 0,
            "processing_interval",
            self.processing_interval,
            "is not positive",
            "use about 1",
        )

    def _check_capacities(self) -> None:
        if self.memory_capacity is not None:
            _check_counts(self, "memory_capacity")
        custom, use = self.custom_capacity, 'use {"license": 2}'
        _check(isinstance(custom, dict), "custom_capacity", custom, "is no mapping of names to amounts", use)
        for kind in custom:
            is_own = isinstance(kind, str) and kind and kind not in RESOURCE_KINDS
            _check(
                bool(is_own), "custom_capacity", kind, "is no name of a kind of one's own", 'use one such as "license"'
            )
        amounts = {"gpu_capacity": self.gpu_capacity}
        amounts |= {f"custom_capacity[{kind!r}]": much for kind, much in custom.items()}
        for name, much in amounts.items():
            _check(_is_amount(much), name, much, "is no amount", "use a number from 0")
        cpu = self.cpu_capacity
        is_cpu = cpu is None or (_is_amount(cpu) and cpu > 0)
        _check(is_cpu, "cpu_capacity", cpu, "is no number of cores", "use one above 0, or None for all there are")
        for name in ("cpu_capacity", "gpu_capacity"):
            force_setattr(self, name, plain(getattr(self, name)))
        force_setattr(self, "custom_capacity", {kind: plain(much) for kind, much in custom.items()})


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """When a submit is refused rather than stored."""

    max_cpu_usage: float | None = None  # share of the machine, 0..1; None: never refuse for CPU
    max_memory_bytes: int | None = None  # in use on the machine; None: 95 % of what there is
    max_storage_bytes: int | None = None  # in use on the store's disk; None: 95 % of what there is
    max_dependencies: int = 100_000  # parents of one task
    max_metadata_bytes: int = 16 * KIB
    max_params_bytes: int = 64 * KIB

    def __post_init__(self) -> None:
        _check_counts(self, "max_dependencies", "max_metadata_bytes", "max_params_bytes", least=0)
        for name in ("max_memory_bytes", "max_storage_bytes"):
            if getattr(self, name) is not None:
                _check_counts(self, name)
        if self.max_cpu_usage is not None:
            _check(
                _is_amount(self.max_cpu_usage) and 0 < self.max_cpu_usage <= 1,
                "max_cpu_usage",
                self.max_cpu_usage,
                "is no share",
                "use 0..1, as 0.9",
            )
            force_setattr(self, "max_cpu_usage", plain(self.max_cpu_usage))


class ExecutorConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How handlers are run."""

    traceback_chars: int = 4_000  # tail kept with a failure
    child_recycle_tasks: int = 100_000  # a child process is replaced after this many tasks; a start takes 0.2 s of CPU
    child_recycle_bytes: int = 2 * GIB  # or when it has grown beyond this
    child_prefetch: int = 32  # quick tasks sent to a child ahead of time; 0: it is woken for each
    child_stderr_bytes: int = 8 * KIB  # tail of a dead child's stderr kept as evidence
    child_start_timeout_s: float = 60.0  # imports of heavy libraries are slow on a loaded machine

    def __post_init__(self) -> None:
        _check_counts(self, "child_recycle_tasks", "child_recycle_bytes")
        _check_counts(self, "traceback_chars", "child_prefetch", "child_stderr_bytes", least=0)
        _check(self.child_prefetch <= 1000, "child_prefetch", self.child_prefetch, "is above 1000", "use 32")
        _check_seconds(self, "child_start_timeout_s")


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Which models there are and how much memory they may take."""

    default_embedding: str = "all-MiniLM-L6-v2"
    folders: tuple[Path, ...] = ()  # looked through first: FOLDER/MODEL_ID/model.onnx
    cache_folder: Path = msgspec.field(  # one for all programs of this user, so that a model is fetched once
        default_factory=lambda: Path.home() / ".cache" / "mainspring" / "models"
    )
    budget_bytes: int = 4 * GIB  # of models and search matrices in all processes of this user on this machine together;
    # what was not used for longest goes first
    budget_wait_s: float | str = 30.0  # how long a load waits for memory that other processes have in use
    shared_folder: Path = msgspec.field(  # where these find each other: one for all of them, on a local disk
        default_factory=lambda: Path(tempfile.gettempdir(), f"mainspring-{os.getuid()}")
    )
    max_batch_tokens: int = 256  # padded tokens of one call: on CPUs larger batches are slower
    threads_per_call: int = 1  # one caller a core beats threads inside a call

    def __post_init__(self) -> None:
        _check_counts(self, "budget_bytes", "max_batch_tokens", "threads_per_call")
        _check_folders(self, "folders")
        for name in ("cache_folder", "shared_folder"):
            _check_folder(self, name)
        check_is("default_embedding", self.default_embedding, str, "name a model")
        _check_seconds(self, "budget_wait_s")


class RetrievalConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What data retrieval may read."""

    allowed_roots: tuple[Path, ...] = ()  # folders that file:// addresses may lie in; none by default
    max_bytes: int = 64 * MIB  # of one file or blob

    def __post_init__(self) -> None:
        _check_folders(self, "allowed_roots")
        _check_counts(self, "max_bytes")


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All rooms' settings together."""

    store: StoreConfig = StoreConfig()
    manager: TaskManagerConfig = msgspec.field(default_factory=TaskManagerConfig)
    scheduler: SchedulerConfig = SchedulerConfig()
    executor: ExecutorConfig = ExecutorConfig()
    models: ModelConfig = msgspec.field(default_factory=ModelConfig)
    retrieval: RetrievalConfig = RetrievalConfig()
    tracing: bool = False  # make spans for OpenTelemetry; needs the extra `otel`, and a provider set up by the program

    def __post_init__(self) -> None:
        for name, wanted in _types_of(type(self)).items():
            check_is(name, getattr(self, name), wanted)


@cache
def _types_of(config: type[EngineConfig]) -> dict[str, Any]:
    """Return what its fields may hold. Kept: annotations are compiled each time that they are asked for."""
    return {field.name: field.type for field in msgspec.structs.fields(config)}


__all__ = [
    "EngineConfig",
    "ExecutorConfig",
    "InvalidInput",
    "ModelConfig",
    "RetrievalConfig",
    "SchedulerConfig",
    "StoreConfig",
    "TaskManagerConfig",
    "cores",
    "seconds",
]
