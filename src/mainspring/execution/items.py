"""From work to the item that a processor gets; the same in every lane."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from mainspring.execution.base import Channel, Work
from mainspring.processors.base import Item
from mainspring.processors.context import Child, Context
from mainspring.tasks.codec import decode_input

_params = msgspec.msgpack.Decoder(dict[str, Any])


def item_of(work: Work, channel: Channel, submit: Callable[..., Child] | None) -> Item:
    """Raises what decoding raises: InvalidInput for a parent's result that does not fit."""
    context = Context(work.id, work.attempt, channel.send, submit, work.deadline_ms, work.retry_count, work)
    params = {} if work.params is None else _params.decode(work.params)
    return Item(decode_input(work.input), context, work.model_id, params, work.namespace)
