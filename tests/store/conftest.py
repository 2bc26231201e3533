"""What the tests of stores on a server share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conformance.kit import PostgresFactory


@pytest.fixture
def factory(tmp_path: Path) -> Iterator[PostgresFactory]:
    """Stores in a schema that goes with the test."""
    made = PostgresFactory(tmp_path)
    yield made
    made.drop()
