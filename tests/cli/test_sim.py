"""`mainspring sim`: many worlds, or one with all that happens in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from tests.cli.conftest import Answer

from mainspring.testing.simulator.verdict import Verdict
from mainspring.testing.violation import Violation

Run = Callable[..., Answer]
WRONG = Violation(invariant="order", task=None, what="was invented", figures={"n": 7})


def test_many_worlds(run: Run) -> None:
    """Figures for people and for programs; the same seeds give the same figures, however many processes run them."""
    answers = [run("sim", "--seeds", "6", "--from", "20", "--jobs", n, "--json").json for n in ("1", "2")]
    for answer in answers:
        assert (answer["seeds"], answer["broken"]) == (6, [])
    assert len({(answer["tasks"], answer["callbacks"], round(answer["virtual_s"], 6)) for answer in answers}) == 1
    told = run("sim", "--seeds", "2", "--jobs", "1")
    assert told.code == 0
    assert "2 worlds" in told.out
    assert told.out.endswith("all promises held\n")


def test_one_world(call: Run) -> None:
    """With --trace all that happens, a line each; without, what came of it."""
    short, long = call("sim", "--seed", "3"), call("sim", "--seed", "3", "--trace")
    assert (short.code, long.code) == (0, 0)
    assert long.out.endswith(short.out)
    assert "begins" in long.out
    assert "begins" not in short.out
    document = call("sim", "--seed", "3", "--trace", "--json").json
    assert document["violations"] == []
    assert len(document["trace"]) == len(long.out.splitlines()) - len(short.out.splitlines())


@pytest.fixture
def broken() -> Any:
    """An engine in which something seems to be wrong."""

    with mock.patch.object(Verdict, "violations", return_value=[WRONG]):
        yield


def test_a_world_that_breaks_a_promise(call: Run, broken: Any) -> None:
    """Exit code 1, and what was broken with its figures."""
    told = call("sim", "--seed", "3")
    assert told.code == 1
    assert "order: was invented (n 7)" in told.out
    found = json.loads(call("sim", "--seed", "3", "--json").out)["violations"]
    assert found == [{"invariant": "order", "task": None, "what": "was invented", "figures": {"n": 7}}]


def test_a_broken_seed_is_told_with_the_command_that_repeats_it(call: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One command for each of the first ones, in order; exit code 1."""
    from mainspring.testing.simulator import campaign

    async def run_many(seeds: range, jobs: int, ran: Callable[[campaign.Ran], None]) -> None:
        for seed in reversed(seeds):
            ran(campaign.Ran(seed, ["order: was invented (n 7)"] if seed % 2 else [], 3, 40, 1.5, 0.01))

    monkeypatch.setattr(campaign, "run_many", run_many)
    told = call("sim", "--seeds", "30")
    assert told.code == 1
    commands = [line for line in told.out.splitlines() if "to see it: mainspring sim --seed" in line]
    assert commands[0] == "seed 1 is broken; to see it: mainspring sim --seed 1 --trace"
    assert len(commands) == 10
    assert told.out.endswith("... and 5 more\n15 broken\n")
    answer = call("sim", "--seeds", "30", "--json")
    assert answer.code == 1
    assert [one["seed"] for one in answer.json["broken"]] == list(range(1, 30, 2))


def test_a_trace_is_of_one_run(call: Run) -> None:
    told = call("sim", "--trace")
    assert told.code == 2
    assert "name it by --seed" in told.err
