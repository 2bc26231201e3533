"""Run the whole proof programme at full size, one program after the other, and write its figures to docs/proof.md."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "proof.md"
_LAST = 20


class Program(NamedTuple):
    name: str  # a module of this package, run as `python -m proof.NAME`
    minutes: float  # at full size, on 2 cores
    about: str
    arguments: tuple[str, ...] = ()  # for its full size, where that is not what it does by itself

    @property
    def command(self) -> str:
        return " ".join(["python -m", f"proof.{self.name}", *self.arguments])


PROGRAMS = (
    Program("disk", 25, "power cuts and failing disks under the real store"),
    Program("points", 15, "a process killed at every statement and in the midst of every file operation"),
    Program("model", 25, "random programs against the specification of the store"),
    Program("model", 10, "the same with safeguards of the store taken out, which must be found", ("--ablations",)),
)
"""In the order in which they run."""

_HEAD = """# Proof

What the proof programs found the last time they ran at full size: `python -m proof` from the top of the repository,
with requirements/dev.txt installed. Each takes the real store and engine, breaks what it stands on, and looks whether
[what is promised](guarantees.md) still holds. The last lines of each table are controls: a safeguard is taken away, and
the program must notice, or it proves nothing. Small sizes of all of them are part of the tests (`tests/proof`).
"""


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
    return "\n".join([f"## {run.program.command.removeprefix('python -m ')}", "", about, *verdict, "", *table, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m proof", description=__doc__)
    parser.add_argument("programs", nargs="*", metavar="NAME", help="only these, without touching docs/proof.md")
    names = parser.parse_args(arguments).programs
    chosen = [program for program in PROGRAMS if not names or program.name in names]
    for program in chosen:
        print(f"{program.command}: {program.about}; about {program.minutes:g} minutes on 2 cores", flush=True)
    runs = []
    for program in chosen:
        print(f"\n== {program.command}", flush=True)
        runs.append(run(program))
    if not names:
        PAGE.write_text("\n".join([_HEAD, *map(section, runs)]))
        print(f"\nwritten to {PAGE.relative_to(ROOT)}")
    missed = [done.program.command for done in runs if not done.is_met]
    if missed:
        print(f"not met: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
