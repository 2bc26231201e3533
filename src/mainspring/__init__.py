"""Mainspring: durable tasks for AI work in Python. One file, no server.

The names here are public; everything else may change. They load when first used: importing the package is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mainspring.blobs import BlobInfo, BlobStore
    from mainspring.config import (
        EngineConfig,
        ExecutorConfig,
        ModelConfig,
        RetrievalConfig,
        SchedulerConfig,
        StoreConfig,
        TaskManagerConfig,
    )
    from mainspring.dispatch.manager import TaskManager
    from mainspring.engine import Engine, SyncEngine, SyncHandle, TaskHandle
    from mainspring.errors import (
        ClaimLost,
        Conflict,
        DependencyNotMet,
        InsufficientResources,
        InternalError,
        InvalidInput,
        PartlySubmitted,
        Permanent,
        ProcessingFailed,
        QueueFull,
        ResourceLimitExceeded,
        RetryAfter,
        StoreDamaged,
        StoreForeign,
        StoreMoved,
        StoreNewer,
        StoreReadOnly,
        StoreRefused,
        StoreUnavailable,
        SubmitIndeterminate,
        TaskCancelled,
        TaskError,
        TaskNotFound,
        TaskTimeout,
        UnsupportedTaskType,
    )
    from mainspring.execution.executor import TaskExecutor
    from mainspring.models import Model, ModelInfo, ModelManager
    from mainspring.processors.base import Item, Processor
    from mainspring.processors.batch import Batch
    from mainspring.processors.context import Context
    from mainspring.resources import ResourceMonitor, ResourceUsage
    from mainspring.scheduling import TaskScheduler
    from mainspring.tasks import (
        Attempt,
        Binary,
        BinaryOutput,
        Chunk,
        Custom,
        CustomOutput,
        EmbeddingOutput,
        ErrorInfo,
        GroupLimit,
        Ledger,
        LedgerRow,
        ModelInput,
        ModelOutput,
        Ref,
        Resources,
        Retry,
        RunningTask,
        SearchHit,
        SearchQuery,
        SearchResults,
        StoredRef,
        Task,
        TaskId,
        TaskInfo,
        TaskInput,
        TaskMetrics,
        TaskOutput,
        TaskPriority,
        TaskResult,
        TaskStatus,
        TaskType,
        Text,
        TextOutput,
        VectorRecord,
    )
    from mainspring.vectors import Collection, VectorStore

_HOMES = {
    "blobs": "BlobInfo BlobStore",
    "config": ("EngineConfig ExecutorConfig ModelConfig RetrievalConfig SchedulerConfig StoreConfig TaskManagerConfig"),
    "dispatch.manager": "TaskManager",
    "engine": "Engine SyncEngine SyncHandle TaskHandle",
    "errors": (
        "ClaimLost Conflict DependencyNotMet InsufficientResources InternalError InvalidInput PartlySubmitted "
        "Permanent ProcessingFailed QueueFull ResourceLimitExceeded RetryAfter StoreDamaged StoreForeign StoreMoved "
        "StoreNewer StoreReadOnly StoreRefused StoreUnavailable SubmitIndeterminate TaskCancelled TaskError "
        "TaskNotFound TaskTimeout UnsupportedTaskType"
    ),
    "execution.executor": "TaskExecutor",
    "models": "Model ModelInfo ModelManager",
    "processors.base": "Item Processor",
    "processors.batch": "Batch",
    "processors.context": "Context",
    "resources": "ResourceMonitor ResourceUsage",
    "scheduling": "TaskScheduler",
    "tasks": (
        "Attempt Binary BinaryOutput Chunk Custom CustomOutput EmbeddingOutput ErrorInfo GroupLimit Ledger LedgerRow "
        "ModelInput ModelOutput Ref Resources Retry RunningTask SearchHit SearchQuery SearchResults StoredRef Task "
        "TaskId TaskInfo TaskInput TaskMetrics TaskOutput TaskPriority TaskResult TaskStatus TaskType Text "
        "TextOutput VectorRecord"
    ),
    "vectors": "Collection VectorStore",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "Attempt",
    "Batch",
    "Binary",
    "BinaryOutput",
    "BlobInfo",
    "BlobStore",
    "Chunk",
    "ClaimLost",
    "Collection",
    "Conflict",
    "Context",
    "Custom",
    "CustomOutput",
    "DependencyNotMet",
    "EmbeddingOutput",
    "Engine",
    "EngineConfig",
    "ErrorInfo",
    "ExecutorConfig",
    "GroupLimit",
    "InsufficientResources",
    "InternalError",
    "InvalidInput",
    "Item",
    "Ledger",
    "LedgerRow",
    "Model",
    "ModelConfig",
    "ModelInfo",
    "ModelInput",
    "ModelManager",
    "ModelOutput",
    "PartlySubmitted",
    "Permanent",
    "ProcessingFailed",
    "Processor",
    "QueueFull",
    "Ref",
    "ResourceLimitExceeded",
    "ResourceMonitor",
    "ResourceUsage",
    "Resources",
    "RetrievalConfig",
    "Retry",
    "RetryAfter",
    "RunningTask",
    "SchedulerConfig",
    "SearchHit",
    "SearchQuery",
    "SearchResults",
    "StoreConfig",
    "StoreDamaged",
    "StoreForeign",
    "StoreMoved",
    "StoreNewer",
    "StoreReadOnly",
    "StoreRefused",
    "StoreUnavailable",
    "StoredRef",
    "SubmitIndeterminate",
    "SyncEngine",
    "SyncHandle",
    "Task",
    "TaskCancelled",
    "TaskError",
    "TaskExecutor",
    "TaskHandle",
    "TaskId",
    "TaskInfo",
    "TaskInput",
    "TaskManager",
    "TaskManagerConfig",
    "TaskMetrics",
    "TaskNotFound",
    "TaskOutput",
    "TaskPriority",
    "TaskResult",
    "TaskScheduler",
    "TaskStatus",
    "TaskTimeout",
    "TaskType",
    "Text",
    "TextOutput",
    "UnsupportedTaskType",
    "VectorRecord",
    "VectorStore",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'mainspring' has no attribute {name!r}")
    value = getattr(import_module(f"mainspring.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
