"""What this process serves, as submitters without its code learn of it through the store."""

from __future__ import annotations

from mainspring.processors.custom import Handler
from mainspring.store.base import HandlerRecord
from mainspring.tasks.codec import to_json


def record_of(handler: Handler) -> HandlerRecord:
    """What submitters without the code need to know of a handler."""
    options = {
        "max_retries": handler.retry.max_retries,
        "timeout": handler.timeout,
        "priority": int(handler.priority),
        "cache": handler.cache,
        "cost": None if callable(handler.cost) else handler.cost,
        "batch": handler.batch is not None,
    }
    return HandlerRecord(
        type=str(handler.task_type),
        version=handler.version,
        lane=handler.lane,
        options=to_json(options),
        schema=to_json(handler.schema),
        source=handler.source_hash,
    )
