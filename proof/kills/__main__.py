"""Kill, stop and drain real workers and submitters, and check what is left.

    python -m proof.kills --cycles 100           about 90 s on two cores
    python -m proof.kills --cycles 1000          the nightly size, about 15 minutes
    python -m proof.kills --without attempt      negative control (better with --only stop --among worker): must find
                                                 violations, and fails when it finds none

A cycle is one signal: SIGKILL (of a worker, a submitter, or a child of the process lane), SIGTERM, or SIGSTOP with
SIGCONT up to twice the stall limit later. The same seed sends the same signals; what they meet is the machine's choice.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import apsw

from proof.figures import Figures
from proof.kills.check import Evidence, Finding, check, evidence, mistakes
from proof.kills.guards import GUARDS
from proof.kills.killer import HOW, Crew

_QUIET_WITHIN_S = 90.0
_CONTROL_QUIET_WITHIN_S = 10.0
_SHOWN = 12


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


def report(outcome: Outcome, seed: int, *, is_control: bool) -> bool:
    """Print the figures; return whether they are as wanted."""
    figures, counts = Figures(), outcome.seen.figures
    for what, n in [*sorted(outcome.signals.items()), *counts.items()]:
        figures.note(what, n)
    figures.note("seconds", outcome.took_s)
    kinds = Counter(finding.kind for finding in outcome.findings)
    if is_control:
        figures.some("violations found without the safeguard", kinds.total())
    else:
        figures.some("attempts that were repeated", counts["starts beyond the first"])
        figures.none("violations", kinds.total())
    for finding in outcome.findings[:_SHOWN]:
        print(f"{finding.kind}: {finding.what}")
    print(f"seed {seed}: found {dict(kinds) or 'nothing'}")
    print(figures.table())
    return figures.are_met


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m proof.kills", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--submitters", type=int, default=2)
    parser.add_argument("--only", choices=sorted(HOW), help="send nothing but this")
    parser.add_argument("--among", choices=("worker", "submitter"), default="", help="of these alone")
    parser.add_argument("--at-once", type=int, default=2, help="processes that are being taken down at the same time")
    parser.add_argument("--without", action="append", default=[], choices=sorted(GUARDS), help="a safeguard to remove")
    parser.add_argument("--keep", type=Path, help="keep the store, the ledger and the logs in this folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mainspring-kills-") as scratch:
        crew = Crew(
            folder=given.keep or Path(scratch), seed=given.seed, workers=given.workers, submitters=given.submitters,
            without=given.without,
        )  # fmt: skip
        how = {given.only: 1} if given.only else HOW
        outcome = asyncio.run(run(crew, given.cycles, at_once=given.at_once, how=how, among=given.among))
    return 0 if report(outcome, given.seed, is_control=bool(given.without)) else 1


if __name__ == "__main__":
    sys.exit(main())
