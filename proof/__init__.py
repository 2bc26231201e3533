"""The proof programme: what docs/guarantees.md promises, tried against faults that tests of single rooms can't make.

    python -m proof --list          what there is, and how long it takes
    python -m proof                 all of it at full size, into docs/proof.md
    python -m proof --ci            all of it at the size for each change, about eight minutes
    python -m proof.disk --help     one program by itself

A program breaks what the store stands on, and looks whether what was told to callers still holds:

    disk         in one process: power cuts, full and failing disks, by a file system of our own under SQLite
    points       a process that dies by SIGKILL at each statement and in each file operation, and within recovery
    model        random calls against the specification of the store, which is tests/model/specification.py
    simulation   whole engines in virtual time; the simulator is mainspring.testing.simulator
    kills        real processes under SIGKILL, SIGSTOP and SIGTERM, with a ledger that handlers write; servers too
    soak         a mixed load for a long time, with lines fitted to what each process uses

`faults` holds what disk and points share: the breakable disk, the scenarios that are played on it, and the judge.
`server` is a Postgres of our own that may die, `copied` makes a file of what is in it, for what judges files. Every
program has ablations: with a safeguard of the engine taken away it must find something, or it proves nothing. `figures`
is how all of them print: the seed with the command that repeats it, what was found, a table of figures with what was
wanted of each, a verdict; the exit code is 1 where something wanted is not met. What runs leave lies in proof/out/,
which git ignores. The small sizes that run with the tests are in tests/proof.

None of it is part of the package.
"""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
"""The repository: programs that start others run them from here."""
OUT: Final = ROOT / "proof" / "out"
"""What runs leave behind."""
