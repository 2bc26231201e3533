"""What is said of a task is the same on every store."""

from tests.engine.conftest import place

__all__ = ["place"]
