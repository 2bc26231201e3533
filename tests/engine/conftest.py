"""What an engine does is the same on every store: modules that say so get theirs by `place`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import postgres


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a new store."""
    folder = Path(tmp_path_factory.mktemp("place"))
    if request.param == "sqlite":
        yield str(folder / "work.db")
        return
    yield postgres.address_of(folder)
    postgres.drop(postgres.schema_of(folder))
