"""What every test may use."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio alone: it is the loop that the engine is written for."""
    return "asyncio"
