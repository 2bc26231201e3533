"""`python -m proof`: the list of programs, and the page made of what they print."""

from __future__ import annotations

import subprocess
import sys

import pytest
from proof.__main__ import PAGE, PROGRAMS, Program, Run, head, main, page, run, section

from proof import ROOT


@pytest.mark.parametrize("name", sorted({program.name for program in PROGRAMS}))
def test_every_program_is_there_and_says_what_it_takes(name: str) -> None:
    """Each can be run by its name, its help says how long that takes, and knows the options that it is run with."""
    command = [sys.executable, "-m", f"proof.{name}", "--help"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "minute" in said
    used = [program.arguments + program.ci for program in PROGRAMS if program.name == name]
    assert {option for options in used for option in options if option.startswith("--")} <= set(said.split())


def test_every_folder_is_a_program_or_told_of() -> None:
    """What stands in proof/ is in the list, or is the part that programs share."""
    there = {
        path.stem for path in (ROOT / "proof").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert there - {program.name for program in PROGRAMS} == {
        "__init__",
        "__main__",
        "faults",
        "figures",
        "copied",
        "server",
    }


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    """It names every program with its minutes and runs none; the sizes for each change end within a quarter hour."""
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(f"{program.minutes:g} minutes  {program.command}" in listed for program in PROGRAMS)
    assert main(["--list", "--ci"]) == 0
    assert float(capsys.readouterr().out.splitlines()[-1].split()[0]) <= 15


def test_the_page_begins_with_what_there_is() -> None:
    """And each line of it leads to a section."""
    top = head(PROGRAMS)
    for program in PROGRAMS:
        title = section(Run(program, True, 0.0, "")).splitlines()[0].removeprefix("## ")
        assert f"(#{title.replace('.', '').replace(' ', '-')})" in top
    assert PAGE.read_text().startswith(top.partition("{contents}")[0].splitlines()[0])


def test_a_section_of_the_page() -> None:
    """A program's table is taken over with its seed; one that was not met says so; without a table the last lines
    are."""
    program = Program("disk", "power cuts", 1, ("--draws", "2"))
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


def test_a_part_of_the_page_is_written_and_the_others_stay() -> None:
    """In the order in which programs run, whichever ran last; parts of programs that are no more go."""
    first, *_, last = PROGRAMS
    both = page(
        "# Proof\n\n## proof.gone\n\nOld.\n", [Run(last, True, 0.0, "| new |"), Run(first, True, 0.0, "| kept |")]
    )
    assert both.startswith(head(PROGRAMS))
    again = page(both, [Run(last, True, 0.0, "| newer |")])
    assert again.replace("| newer |", "| new |") == both
    assert again.index("| kept |") < again.index("| newer |")
    assert "proof.gone" not in both
    assert page(again, []) == again


def test_small_sizes_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    """What the sizes for each change say is not what the page tells."""
    with pytest.raises(SystemExit):
        main(["--ci", "--write"])
    assert "leave out --ci" in capsys.readouterr().err


def test_a_program_that_fails_is_not_met(capfd: pytest.CaptureFixture[str]) -> None:
    """What it says is passed on, and its exit code decides."""
    done = run(Program("disk", "power cuts", 1, ("--no-such-option",)))
    assert not done.is_met
    assert "no-such-option" in capfd.readouterr().err
