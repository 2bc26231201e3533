"""Kill, stop and drain real workers and submitters, and check what is left.

    python -m proof.kills                        100 cycles, about 90 s on two cores
    python -m proof.kills --cycles 1000          the nightly size, about 15 minutes
    python -m proof.kills --store postgres       on a server, which is killed too: 110 cycles, about 5 minutes
    python -m proof.kills --ablations            without fencing by attempts, under long stops of workers: must find
                                                 violations; about half a minute

A cycle is one signal: SIGKILL (of a worker, a submitter, or a child of theirs), SIGTERM, or SIGSTOP with SIGCONT up to
twice the stall limit later. On a server also SIGKILL of it (it is started again on the same data), SIGKILL of one of
its processes, and the end of one connection. The same seed sends the same signals; what they meet is the
machine's choice.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

from proof.figures import Figures, announce
from proof.kills.ablations import ABLATIONS
from proof.kills.killer import HOW, HOW_ON_A_SERVER, Crew
from proof.kills.loop import Outcome, run
from proof.server import OwnServer

_SHOWN = 12
_CONTROL_CYCLES = 20
CONTROL_SLOWNESS = 10.0


def report(figures: Figures, outcome: Outcome, without: str = "") -> None:
    """Fill in what a run came to, and print what it found."""
    counts = outcome.seen.figures
    for what, n in [*sorted(outcome.signals.items()), *counts.items()]:
        figures.note(what, n)
    figures.note("seconds", outcome.took_s)
    kinds = Counter(finding.kind for finding in outcome.findings)
    for finding in outcome.findings[:_SHOWN]:
        print(f"{finding.kind}: {finding.what}")
    print(f"found {dict(kinds) or 'nothing'}")
    if without:  # what has not ended is no evidence: a control waits for the end only so long
        figures.some(f"violations found without the {without}", kinds.total() - kinds["lost"])
    else:
        figures.some("attempts that were repeated", counts["starts beyond the first"])
        if "kill of the server" in outcome.signals:
            figures.some("submits in doubt or refused", counts["in doubt or refused"])
        figures.none("violations", kinds.total())


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m proof.kills", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cycles", type=int, default=None, help="default 100, on a server 110")
    parser.add_argument("--store", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--ablations", action="store_true", help="see that what is taken out of workers is found")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--submitters", type=int, default=2)
    parser.add_argument("--only", choices=sorted(HOW | HOW_ON_A_SERVER), help="send nothing but this")
    parser.add_argument("--among", choices=("worker", "submitter"), default="", help="of these alone")
    parser.add_argument("--at-once", type=int, default=2, help="processes that are being taken down at the same time")
    parser.add_argument("--keep", type=Path, help="keep the store, the ledger and the logs in this folder")
    given = parser.parse_args()
    is_served = given.store == "postgres"
    figures, among, whole = Figures(), given.among, HOW_ON_A_SERVER if is_served else HOW
    how, cycles = {given.only: 1} if given.only else whole, given.cycles or 10 * sum(whole.values())
    if given.ablations:
        how, among, cycles = {"stop": 1}, "worker", min(cycles, _CONTROL_CYCLES)
    options = " --store postgres" * is_served + " --ablations" * given.ablations
    announce(given.seed, f"proof.kills --seed {given.seed}" + options)
    for without in ABLATIONS if given.ablations else ("",):
        with contextlib.ExitStack() as stack:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="mainspring-kills-"))
            crew = Crew(
                folder=given.keep or Path(scratch), seed=given.seed, workers=given.workers,
                submitters=given.submitters, without=[without] if without else [],
                slowness=CONTROL_SLOWNESS if without else 1.0,
                server=stack.enter_context(OwnServer()) if is_served else None,
            )  # fmt: skip
            outcome = asyncio.run(run(crew, cycles, at_once=given.at_once, how=how, among=among))
        report(figures, outcome, without)
    return figures.conclude()


if __name__ == "__main__":
    sys.exit(main())
