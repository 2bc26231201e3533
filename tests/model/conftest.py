"""The tests of this folder kill workers and refuse effects by the hundred: what the store logs of that is no news."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "mainspring")
