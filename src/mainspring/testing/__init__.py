"""What users and the project itself test with: the checker of a store's invariants.

In: a store's file, open or not, and what was seen from outside. Out: what it breaks. Nothing here writes to a store.
"""

from __future__ import annotations

from mainspring.testing.history import ROWS, check_history
from mainspring.testing.violation import Violation

__all__ = ["ROWS", "Violation", "check_history"]
