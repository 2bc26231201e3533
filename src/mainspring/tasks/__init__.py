"""What travels between rooms: tasks, inputs, outputs, results, effects, signals, the lifecycle table and the codec.

Data only: nothing here acts, opens files or knows a store.
"""

from mainspring.tasks.effects import (
    BlobDelete,
    BlobRef,
    ChildTasks,
    Done,
    Effect,
    Failed,
    Outcome,
    Usage,
    VectorDelete,
    VectorRecord,
    VectorUpsert,
)
from mainspring.tasks.identity import BUILT_IN_TYPES, Reason, TaskId, TaskPriority, TaskStatus, TaskType
from mainspring.tasks.payloads import (
    Binary,
    BinaryOutput,
    Chunk,
    Custom,
    CustomOutput,
    EmbeddingOutput,
    ModelInput,
    ModelOutput,
    Ref,
    SearchHit,
    SearchQuery,
    SearchResults,
    StoredRef,
    TaskInput,
    TaskOutput,
    Text,
    TextOutput,
)
from mainspring.tasks.signals import ItemDone, Log, OutputChunk, Progress, Signal, Started, UsageSample
from mainspring.tasks.task import (
    Attempt,
    ErrorInfo,
    OnDependencyFailure,
    Resources,
    Retry,
    RunningTask,
    Task,
    TaskInfo,
    TaskMetrics,
    TaskResult,
)

__all__ = [name for name in dir() if not name.startswith("_") and name[0].isupper()]
