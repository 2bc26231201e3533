"""One run: a crew is started, harassed, left to come to rest, and judged."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import apsw

from proof.figures import Finding
from proof.kills.check import Evidence, check, evidence, mistakes
from proof.kills.killer import HOW, Crew

_QUIET_WITHIN_S = 90.0
_CONTROL_QUIET_WITHIN_S = 10.0


class Outcome(NamedTuple):
    findings: list[Finding]
    signals: Counter[str]
    seen: Evidence
    took_s: float


async def run(crew: Crew, cycles: int, *, at_once: int = 2, how: Mapping[str, int] = HOW, among: str = "") -> Outcome:
    """Start a crew, harass it, let it come to rest, and check."""
    began = time.monotonic()
    async with crew.at_work():
        await crew.harass(cycles, at_once, how, among)
        await crew.dismiss("submitter")
        await _quiet(crew.store, _CONTROL_QUIET_WITHIN_S if crew.without else _QUIET_WITHIN_S)
        await crew.dismiss("worker")
    seen = evidence(crew.store, crew.ledger)
    findings = [Finding("process", fault) for fault in crew.faults]
    findings += mistakes(member.log for member in crew.members)
    findings += check(crew.store, seen)
    return Outcome(findings, crew.done, seen, time.monotonic() - began)


async def _quiet(store: Path, limit_s: float) -> None:
    """Wait until nothing is left to do, or for as long as that can take: what has not ended then never will."""
    connection = apsw.Connection(str(store), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        async with asyncio.timeout(limit_s):
            while connection.execute("SELECT 1 FROM task WHERE status < 2 LIMIT 1").fetchone():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    except TimeoutError:
        pass
    finally:
        connection.close()
