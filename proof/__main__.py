"""Run the proof programmes one after the other; at full size their figures are written to docs/proof.md.

python -m proof --list          what there is, and how long it takes
python -m proof                 all of it at full size
python -m proof --ci            all of it at the size for each change
python -m proof disk kills      only these
python -m proof disk --write    their parts of docs/proof.md, too; all others stay as they are
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import apsw

from proof import ROOT

PAGE = ROOT / "docs" / "proof.md"
_LAST = 20


class Program(NamedTuple):
    name: str  # a module of this package, run as `python -m proof.NAME`
    about: str
    minutes: float  # at full size, on 2 cores
    arguments: tuple[str, ...] = ()  # for its full size, where that is not what it does by itself
    ci: tuple[str, ...] = ()  # those for the size for each change
    ci_minutes: float = 0.0  # 0: for each change the tests in tests/proof are enough

    @property
    def command(self) -> str:
        return " ".join(["python -m", f"proof.{self.name}", *self.arguments])


PROGRAMS = (
    Program("disk", "power cuts and failing disks under the real store", 25, (), ("--stride", "40"), 1),
    Program("points", "a process killed at every statement and in every file operation", 4, (), ("--stride", "40"), 1),
    Program("model", "random calls against the specification of the store", 20, (), ("--examples", "100"), 1),
    Program("model", "the same with safeguards of the store taken out, which must be found", 20, ("--ablations",)),
    Program(
        "simulation", "whole engines in simulated worlds, 10,000 of them", 3, (), ("--seeds", "1000", "--jobs", "1"), 1
    ),
    Program("simulation", "the same with safeguards of the engine taken out, which must be found", 3, ("--ablations",)),
    Program("kills", "real processes killed, stopped and drained", 15, ("--cycles", "1000"), ("--cycles", "100"), 1.5),
    Program("kills", "the same without fencing by attempts, which must be found", 0.5, ("--ablations",)),
    Program(
        "kills", "the same on a server, which dies and loses processes and connections", 6, ("--store", "postgres")
    ),
    Program("soak", "a mixed load for half an hour, in which nothing may grow", 31, (), ("--minutes", "2"), 2.3),
    Program("soak", "the same with a handler that leaks, which must be found", 1, ("--ablations",)),
)
"""In the order in which they run."""
FOR_EACH_CHANGE = tuple(
    program._replace(arguments=program.ci, minutes=program.ci_minutes) for program in PROGRAMS if program.ci_minutes
)

_HEAD = """# Proof

[What is promised](guarantees.md), tried against faults that tests of single rooms can't make. Each program takes the
real store, the real engine or real processes, breaks what they stand on, and looks whether what was told to callers
still holds. With `--ablations`, and in the last lines of some tables, a safeguard is taken away: the program must find
something then, or it proves nothing.

{contents}

All of it: `python -m proof` from the top of the repository, with requirements/dev.txt installed; it writes this page.
`python -m proof --ci` runs the sizes for each change, `python -m proof NAME` only some; each program prints the seed
and the command that repeats it, and exits with 1 when something that is wanted is not met. Where what lies is told in
`proof/__init__.py`; small sizes of all of it run with the tests (`tests/proof`, `tests/model`, `tests/testing`).

The figures below are those of the last run that wrote them, on {cores} cores with {python} and SQLite {sqlite}.
"""


def head(programs: Sequence[Program]) -> str:
    rows = ["| program | what it does | minutes |", "| --- | --- | ---: |"]
    rows += [f"| [`{one.command}`](#{_anchor(one)}) | {one.about} | {one.minutes:g} |" for one in programs]
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return _HEAD.format(contents="\n".join(rows), cores=os.cpu_count(), python=python, sqlite=apsw.sqlite_lib_version())


def _anchor(program: Program) -> str:
    return _title(program).lower().replace(".", "").replace(" ", "-")


def _title(program: Program) -> str:
    return program.command.removeprefix("python -m ")


class Run(NamedTuple):
    """What a program that ran to its end has printed."""

    program: Program
    is_met: bool
    seconds: float
    output: str


def run(program: Program) -> Run:
    """Run a program in a process of its own, passing on what it prints."""
    command = [sys.executable, "-m", f"proof.{program.name}", *program.arguments]
    started = time.monotonic()
    lines: list[str] = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return Run(program, process.returncode == 0, time.monotonic() - started, "".join(lines))


def section(run: Run) -> str:
    """Return a program's part of the page: how to run it again, and its table or, where it has none, its last lines."""
    lines = run.output.splitlines()
    table = [line for line in lines if line.startswith("|")] or ["```text", *lines[-_LAST:], "```"]
    seed = next((f", {line.split(':')[0]}" for line in lines if line.startswith("seed ")), "")
    about = f"{run.program.about.capitalize()}: `{run.program.command}`{seed}, {run.seconds / 60:.0f} minutes."
    verdict = [] if run.is_met else ["", "**Not everything that was wanted is met.**"]
    return "\n".join([f"## {_title(run.program)}", "", about, *verdict, "", *table, ""])


def page(before: str, runs: Sequence[Run]) -> str:
    """Return the page with the parts of these runs in place of their earlier ones; what is no program any more goes."""
    parts = {part.partition("\n")[0]: f"## {part}" for part in before.split("\n## ")[1:]}
    parts |= {_title(run.program): section(run) for run in runs}
    kept = [parts[title].rstrip("\n") + "\n" for title in map(_title, PROGRAMS) if title in parts]
    return "\n".join([head(PROGRAMS), *kept])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m proof", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted({program.name for program in PROGRAMS})
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these: " + ", ".join(names))
    parser.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    parser.add_argument("--ci", action="store_true", help="the sizes for each change")
    parser.add_argument("--write", action="store_true", help="write docs/proof.md also when only some are run")
    given = parser.parse_args(arguments)
    if unknown := set(given.names) - set(names):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    if given.ci and given.write:
        parser.error("--write keeps what full sizes say: leave out --ci")
    programs = FOR_EACH_CHANGE if given.ci else PROGRAMS
    chosen = [program for program in programs if program.name in (given.names or names)]
    for program in chosen:
        print(f"{program.minutes:5g} minutes  {program.command:<42}  {program.about}", flush=True)
    print(f"{sum(program.minutes for program in chosen):5g} minutes on 2 cores in all", flush=True)
    return 0 if given.list else _run_all(chosen, is_written=given.write or not (given.names or given.ci))


def _run_all(programs: Sequence[Program], *, is_written: bool) -> int:
    runs = []
    for program in programs:
        print(f"\n== {program.command}", flush=True)
        runs.append(run(program))
        if is_written:
            PAGE.write_text(page(PAGE.read_text(), [runs[-1]]))
            print(f"written to {PAGE.relative_to(ROOT)}", flush=True)
    missed = [done.program.command for done in runs if not done.is_met]
    if missed:
        print(f"not met: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
