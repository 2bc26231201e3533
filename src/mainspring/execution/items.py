"""From work to the item that a processor gets; the same in every lane."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from mainspring.execution.base import Channel, Work
from mainspring.processors.base import Item
from mainspring.processors.context import Child, Context
from mainspring.tasks import TaskId
from mainspring.tasks.codec import decode_input

_params = msgspec.msgpack.Decoder(dict[str, Any])


def item_of(work: Work, channel: Channel, submit: Callable[..., Child] | None) -> Item:
    """Raises what decoding raises: InvalidInput for a parent's result that does not fit."""
    id = TaskId(work.id)
    context = Context(
        id=id,
        attempt=work.attempt,
        send=channel.send,
        submit=submit,
        deadline=None if work.deadline_ms is None else datetime.fromtimestamp(work.deadline_ms / 1000, UTC),
        retry_count=work.retry_count,
    )
    return Item(
        task_id=id,
        attempt=work.attempt,
        input=decode_input(work.input),
        context=context,
        model_id=work.model_id,
        params={} if work.params is None else _params.decode(work.params),
        namespace=work.namespace,
    )
