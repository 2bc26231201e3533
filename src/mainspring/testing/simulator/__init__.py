"""Deterministic simulation of real engines: whole worlds of processes in one thread, in virtual time, from a seed.

In: a seed. Out: what happened, and what must not have. Nothing here sleeps, waits for a thread or reads a clock; the
store is real SQLite.
"""

from __future__ import annotations

from mainspring.testing.simulator.run import Outcome, simulate

__all__ = ["Outcome", "simulate"]
