"""What processes tell each other of claims: which they would run, and which somebody urgent waits for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from mainspring.store.base import RESERVES, Claimed
from mainspring.store.ready import Asker
from mainspring.store.sql.transaction import ClassKey, Memory
from mainspring.store.sql.weighing import said
from mainspring.tasks.needs import Need, Passes

_MOST = 500
"""Pairs of holder and class in one message."""
_MOST_HASTENED = 100
"""Tasks in one message."""


class _Request(msgspec.Struct, array_like=True):
    wanted: list[tuple[int, int]]  # holders, and classes of which they hold tasks
    passes: Passes
    spare: dict[str, float]  # what is free of each kind of resource


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Request)
_haste_decoder = msgspec.msgpack.Decoder(list[tuple[bytes, int]])


def request(memory: Memory, lane: Asker, held: Sequence[tuple[int, int, ClassKey]]) -> bytes | None:
    """Return the message that asks for what a lane would run of what others hold; None: there is nothing."""
    wanted = [
        (holder, class_id) for holder, class_id, key in held if key[1] in lane.types and not memory.is_paused(key)
    ]
    return _encoder.encode(_Request(wanted[:_MOST], lane.passes, dict(lane.spare))) if wanted else None


def requested(memory: Memory, message: bytes) -> tuple[Callable[[Claimed], bool], Need] | None:
    """Return what tells the claims that a message asks of this process, and what is free where it comes from. None: it
    asks others."""
    known = memory.class_keys
    asked = _decoder.decode(message)
    passes = asked.passes
    keys = {known.get(class_id) for holder, class_id in asked.wanted if holder == memory.owner} - {None}

    def is_wanted(claim: Claimed) -> bool:
        kind = claim.task_type
        if claim.class_key not in keys or kind not in passes.types:
            return claim.class_key in keys
        return passes.short(kind, said(claim.spec if claim.flags & RESERVES else None)) is None

    return (is_wanted, asked.spare) if keys else None


def hastenings(tasks: Sequence[tuple[bytes, int]]) -> Iterator[bytes]:
    """Yield the messages that tell holders of these, (id, rank), that somebody urgent waits for them."""
    for at in range(0, len(tasks), _MOST_HASTENED):
        yield _encoder.encode(tasks[at : at + _MOST_HASTENED])


def hastened(message: bytes) -> list[tuple[bytes, int]]:
    return _haste_decoder.decode(message)
