"""One run: a crew is started, harassed, left to come to rest, and judged."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from mainspring.store.postgres.connection import OUTAGES
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
        await _quiet(crew, _CONTROL_QUIET_WITHIN_S if crew.without else _QUIET_WITHIN_S)
        await crew.dismiss("worker")
    seen = await evidence(crew.store, crew.ledger)
    findings = [Finding("process", fault) for fault in crew.faults]
    findings += mistakes(member.log for member in crew.members)
    findings += check(seen, crew.blobs)
    return Outcome(findings, crew.done, seen, time.monotonic() - began)


async def _quiet(crew: Crew, limit_s: float) -> None:
    """Wait until nothing is left to do, or for as long as that can take: what has not ended then never will."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            while await _has_work(crew):  # noqa: ASYNC110 - it is other processes' work
                await asyncio.sleep(0.05)


async def _has_work(crew: Crew) -> bool:
    try:
        return await crew.look("SELECT 1 FROM task WHERE status < 2 LIMIT 1")
    except OUTAGES:  # the last one may not be over
        return True
