"""The tests of this folder that ask for a `home` or a `store` run on every kind there is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vectors.homes import HOMES, Home

from mainspring.vectors import VectorStore


@pytest.fixture(params=HOMES)
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Home]:
    made = HOMES[request.param](tmp_path)
    yield made
    made.drop()


@pytest.fixture
def store(home: Home) -> VectorStore:
    return home.open()
