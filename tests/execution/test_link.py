"""What a child tells its parent: ends go with the next start, in one frame, and never get behind what follows."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from mainspring.children.frames import BlockingPipe
from mainspring.execution.base import BatchReport, Report
from mainspring.execution.child_frames import (
    Finished,
    FinishedBatch,
    Key,
    Loading,
    Note,
    ToParent,
    decode_to_parent,
)
from mainspring.execution.child_main import Link
from mainspring.tasks import ChildTasks, Started

ONE, OTHER = (b"1" * 16, 1), (b"2" * 16, 3)
DONE = Report(output=b"done")
LIMIT = 20_000
"""Bytes of a frame here: far above an error with its traceback, as long as the paths of the checkout make that."""


@pytest.fixture
def ends() -> Iterator[tuple[Link, BlockingPipe]]:
    theirs, ours = socket.socketpair()
    with theirs, ours:
        ours.settimeout(60)
        yield Link(BlockingPipe(theirs, LIMIT)), BlockingPipe(ours)


def heard(pipe: BlockingPipe) -> list[ToParent]:
    frames = pipe.receive()
    assert frames is not None
    return [decode_to_parent(frame) for frame in frames]


def key_of(frame: ToParent) -> Key:
    assert isinstance(frame, Finished | FinishedBatch | Note | Loading)
    return frame.id, frame.attempt


def test_the_first_start_comes_alone(ends: tuple[Link, BlockingPipe]) -> None:
    link, pipe = ends
    link.started(ONE)
    assert heard(pipe) == [Note(*ONE, Started())]


def test_an_end_and_the_next_start_come_in_one_frame(ends: tuple[Link, BlockingPipe]) -> None:
    link, pipe = ends
    link.finished(ONE, DONE, None)
    link.started(OTHER)
    (frame,) = heard(pipe)
    assert isinstance(frame, Finished)
    assert (key_of(frame), frame.report, frame.begins) == (ONE, DONE, OTHER)
    link.finished(OTHER, DONE, None)
    link.release()
    (last,) = heard(pipe)
    assert isinstance(last, Finished)
    assert (key_of(last), last.begins) == (OTHER, None)


def test_an_end_goes_before_what_follows(ends: tuple[Link, BlockingPipe]) -> None:
    link, pipe = ends
    link.finished(ONE, DONE, None)
    link.loads(OTHER)
    link.finished(OTHER, DONE, None)
    link.finished_batch(ONE, BatchReport([DONE]), None)
    link.finished(ONE, DONE, None)
    link.finished(OTHER, DONE, None)
    link.release()
    told: list[ToParent] = []
    while len(told) < 6:
        told += heard(pipe)
    assert [(type(frame), key_of(frame)) for frame in told] == [
        (Finished, ONE), (Loading, OTHER), (Finished, OTHER), (FinishedBatch, ONE), (Finished, ONE), (Finished, OTHER),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "report",
    [Report(output=b"x" * 2 * LIMIT), Report(output=b"", effects=(ChildTasks((object(),)),))],  # type: ignore[arg-type]
)
def test_an_end_that_can_not_be_sent_is_a_failure(ends: tuple[Link, BlockingPipe], report: Report) -> None:
    link, pipe = ends
    link.finished(ONE, report, None)
    link.started(OTHER)
    (frame,) = heard(pipe)
    assert isinstance(frame, Finished)
    assert (key_of(frame), frame.begins, frame.effects) == (ONE, OTHER, None)
    assert frame.report.error is not None
    assert frame.report.error.type == "InvalidInput"
