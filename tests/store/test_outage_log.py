"""What the log says of an outage: little, and when it is over."""

from __future__ import annotations

import pytest
from tests.conformance.kit import Clock

from mainspring.store.sql.outage import OutageLog


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock) -> OutageLog:
    return OutageLog(clock)


def test_one_line_when_it_is_lost_one_a_minute_and_one_when_it_is_back(
    log: OutageLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """However many parts of a store meet it, and however often."""
    for _ in range(130):
        for part in ("writing", "looking", "upkeep"):
            log.lost(part, "connection refused")
        clock.advance(1)
    for part in ("writing", "looking", "upkeep"):
        log.back(part)
        log.back(part)
    assert caplog.messages == [
        "the store is out of reach, writing: connection refused",
        "the store has been out of reach for 60 s, writing: connection refused",
        "the store has been out of reach for 120 s, writing: connection refused",
        "the store is in reach again after 130 s",
    ]


def test_it_is_over_when_no_part_is_cut_off(log: OutageLog, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """It lasts from when the first part was cut off until the last one is not."""
    log.lost("writing", "disk full")
    clock.advance(5)
    log.lost("upkeep", "disk full")
    log.back("writing")
    clock.advance(5)
    assert len(caplog.messages) == 1
    log.back("upkeep")
    assert caplog.messages[1:] == ["the store is in reach again after 10 s"]


def test_one_that_comes_and_goes_fills_no_log(log: OutageLog, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """A full disk refuses what is written, and nothing else: what happens again within a minute is told then."""
    for _ in range(65):
        log.lost("writing", "disk full")
        log.back("writing")
        clock.advance(1)
    assert (
        caplog.messages
        == ["the store is out of reach, writing: disk full", "the store is in reach again after 0 s"] * 2
    )
