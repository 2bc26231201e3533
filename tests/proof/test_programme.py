"""`python -m proof`: the list of programs, and the page made of what they print."""

from __future__ import annotations

import subprocess
import sys

import pytest
from proof.__main__ import PROGRAMS, ROOT, Program, Run, run, section


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.command)
def test_every_program_is_there_and_says_what_it_takes(program: Program) -> None:
    """Each can be run by its name, and its help says how long that takes."""
    command = [sys.executable, "-m", f"proof.{program.name}", "--help"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "minute" in said


def test_a_section_of_the_page() -> None:
    """A program's table is taken over with its seed; one that was not met says so; without a table the last lines
    are."""
    program = Program("disk", 1, "power cuts", ("--draws", "2"))
    table = "| what | figure |\n| --- | --- |\n| cuts | 3 |"
    page = section(Run(program, True, 120.0, f"seed 7: python -m proof.disk --seed 7\n{table}\n"))
    assert (
        page
        == f"## proof.disk --draws 2\n\nPower cuts: `python -m proof.disk --draws 2`, seed 7, 2 minutes.\n\n{table}\n"
    )
    plain = section(Run(program, False, 60.0, "\n".join(map(str, range(50)))))
    assert "Not everything" in plain
    assert "```text\n30\n" in plain
    assert plain.endswith("49\n```\n")


def test_a_program_that_fails_is_not_met(capfd: pytest.CaptureFixture[str]) -> None:
    """What it says is passed on, and its exit code decides."""
    done = run(Program("disk", 1, "power cuts", ("--no-such-option",)))
    assert not done.is_met
    assert "no-such-option" in capfd.readouterr().err
