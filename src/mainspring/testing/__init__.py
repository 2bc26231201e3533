"""What users and the project itself test with: simulated engines and crashes, and the checker of a store's invariants.

In: a store's file, open or not, and what was seen from outside; or a user's handlers and scenarios. Out: what breaks.
The names here are public. They load when first used: the pytest plugin beside them is loaded by every run of pytest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mainspring.testing.history import ROWS, check_history
    from mainspring.testing.stage.crashes import Crashes, CrashesBroken, CrashReport
    from mainspring.testing.stage.engine import SimulatedEngine, SimulatedSync, StillPending
    from mainspring.testing.stage.lanes import Crash
    from mainspring.testing.stage.loop import NoOutside
    from mainspring.testing.stage.stage import NothingHappens
    from mainspring.testing.violation import Violation

_HOMES = {
    "history": "ROWS check_history",
    "stage.crashes": "CrashReport Crashes CrashesBroken",
    "stage.engine": "SimulatedEngine SimulatedSync StillPending",
    "stage.lanes": "Crash",
    "stage.loop": "NoOutside",
    "stage.stage": "NothingHappens",
    "violation": "Violation",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "ROWS",
    "Crash",
    "CrashReport",
    "Crashes",
    "CrashesBroken",
    "NoOutside",
    "NothingHappens",
    "SimulatedEngine",
    "SimulatedSync",
    "StillPending",
    "Violation",
    "check_history",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'mainspring.testing' has no attribute {name!r}")
    value = getattr(import_module(f"mainspring.testing.{home}"), name)
    globals()[name] = value
    return value
