"""Every test of this folder runs on every store there is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.kit import FACTORIES, Factory, Port, opened


@pytest.fixture(params=FACTORIES)
def factory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Factory]:
    made: Factory = FACTORIES[request.param](tmp_path)
    yield made
    made.drop()


@pytest.fixture
async def store(factory: Factory) -> AsyncIterator[Any]:
    async with opened(factory.make()) as store:
        yield store


@pytest.fixture
async def port(store: Any) -> Port:
    """A worker without room: nothing is handed over until the test has some."""
    port = Port(store)
    await port.serve()
    return port
