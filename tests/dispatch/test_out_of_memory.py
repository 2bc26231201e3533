"""A container that is too small for all slots, and a kernel that kills for real: see bench/memory.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.memory import LIMIT, group, in_group


@pytest.fixture
def container() -> Iterator[Path]:
    try:
        with group(LIMIT) as folder:
            yield folder
    except OSError as exc:
        pytest.skip(f"no control group with a limit can be made here: {exc}")


def test_the_kernel_kills_and_it_is_told(container: Path) -> None:
    """Where nothing is declared attempts are killed; what killed them is known, and all end well after all."""
    found = in_group(container, "undeclared", 6)
    assert found["oom_kills"] > 0
    assert found["killed"] == found["oom_kills"]
    assert re.search(r"out of memory: it used \d+ MiB", found["error"])
    assert f"MiB, and its container may use {LIMIT >> 20} MiB" in found["error"]
    assert found["completed"] == 6


@pytest.mark.parametrize("way", ["declared", "learned"])
def test_what_is_known_to_be_large_is_not_killed(container: Path, way: str) -> None:
    """No more run at a time than there is memory for."""
    found = in_group(container, way, 6)
    assert (found["completed"], found["killed"], found["oom_kills"]) == (6, 0, 0), found
