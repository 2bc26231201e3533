"""What every test may use."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

pytest_plugins = ["pytester"]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio alone: it is the loop that the engine is written for."""
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def _without_a_server_afterwards() -> Iterator[None]:
    """Whoever asked for a server leaves it in order."""
    yield
    if (postgres := sys.modules.get("tests.postgres")) is not None:
        postgres.close()
