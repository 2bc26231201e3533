"""`sim`: run simulated worlds of engines from seeds, and say what must not have been."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from mainspring.cli import exits
from mainspring.cli.options import AsJson
from mainspring.cli.screen import Screen, console, span
from mainspring.config import cores
from mainspring.environment import SYSTEM
from mainspring.errors import InvalidInput

if TYPE_CHECKING:
    from mainspring.testing.simulator import Outcome
    from mainspring.testing.simulator.campaign import Ran

_NAMED = 10
"""So many failing seeds are named one by one."""


def sim(
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="How many seeds to run.")] = 1_000,
    start: Annotated[int, typer.Option("--from", min=0, metavar="N", help="The first of them.")] = 0,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Run this one alone, and tell of it.")] = None,
    trace: Annotated[bool, typer.Option("--trace", help="With --seed: print all that happens.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, metavar="N", help="Processes; default: one for each core.")] = None,
    as_json: AsJson = False,
) -> int:
    """Play worlds of engine processes that crash, stall and fail, in virtual time, and check what is promised.

    Each seed is one world, always the same. Exit code 1 when something that is promised did not hold.
    """
    screen = Screen(as_json)
    if seed is not None:
        return _one(seed, trace, screen)
    if trace:
        raise InvalidInput("--trace tells of one run; name it by --seed N", field="trace")
    return _many(range(start, start + seeds), jobs or cores(), screen)


# One run


def _one(seed: int, trace: bool, screen: Screen) -> int:
    from mainspring.testing.simulator import simulate

    outcome = simulate(seed)
    if screen.as_json:
        screen.document(_document(outcome, trace))
    else:
        if trace:
            for at, who, what, details in outcome.trace:
                screen.text(f"{at:10.4f}  {who:<8}  {what}{_told(details)}")
        screen.text(f"seed {seed}: {outcome.shape}")
        screen.text(f"{outcome.steps:,} callbacks in {span(outcome.seconds)} of virtual time, {outcome.tasks} tasks")
        for violation in outcome.violations:
            screen.text(f"  {violation}")
        screen.text("broken" if outcome.violations else "all promises held")
    return exits.NOT_COMPLETED if outcome.violations else exits.OK


def _told(details: dict[str, Any]) -> str:
    return "".join(f"  {name}={_short(value)}" for name, value in details.items())


def _short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _document(outcome: Outcome, trace: bool) -> dict[str, Any]:
    document: dict[str, Any] = {
        "seed": outcome.seed,
        "shape": outcome.shape,
        "callbacks": outcome.steps,
        "virtual_s": outcome.seconds,
        "tasks": outcome.tasks,
        "violations": [msgspec.to_builtins(violation) for violation in outcome.violations],
    }
    if trace:
        document["trace"] = [
            {"at": at, "who": who, "what": what, "details": {name: _short(value) for name, value in details.items()}}
            for at, who, what, details in outcome.trace
        ]
    return document


# Many


class Figures(msgspec.Struct):
    """What all runs came to."""

    seeds: int = 0
    tasks: int = 0
    callbacks: int = 0
    virtual_s: float = 0.0
    cpu_s: float = 0.0
    broken: list[Ran] = []

    def add(self, ran: Ran) -> None:
        self.seeds += 1
        self.tasks += ran.tasks
        self.callbacks += ran.steps
        self.virtual_s += ran.virtual_s
        self.cpu_s += ran.cpu_s
        if ran.violations:
            self.broken.append(ran)


def _many(seeds: range, jobs: int, screen: Screen) -> int:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from mainspring.testing.simulator.campaign import run_many

    figures = Figures()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    began = SYSTEM.monotonic()
    with Progress(*columns, console=console(sys.stderr), disable=screen.as_json or not sys.stderr.isatty()) as bar:
        shown = bar.add_task("worlds", total=len(seeds))

        def ran(one: Ran) -> None:
            figures.add(one)
            bar.advance(shown)
            if one.violations and len(figures.broken) <= _NAMED and not screen.as_json:
                bar.console.print(f"seed {one.seed}: {one.violations[0]}", soft_wrap=True)

        asyncio.run(run_many(seeds, jobs, ran))
    _tell(figures, SYSTEM.monotonic() - began, jobs, screen)
    return exits.NOT_COMPLETED if figures.broken else exits.OK


def _tell(figures: Figures, wall_s: float, jobs: int, screen: Screen) -> None:
    broken = sorted(figures.broken, key=lambda ran: ran.seed)
    per_cpu_s = figures.seeds / figures.cpu_s if figures.cpu_s else 0.0
    if screen.as_json:
        screen.document(
            {
                "seeds": figures.seeds,
                "broken": [{"seed": ran.seed, "violations": ran.violations} for ran in broken],
                "tasks": figures.tasks,
                "callbacks": figures.callbacks,
                "virtual_s": figures.virtual_s,
                "cpu_s": figures.cpu_s,
                "wall_s": wall_s,
                "jobs": jobs,
            }
        )
        return
    screen.text(
        f"{figures.seeds:,} worlds, {figures.tasks:,} tasks, {figures.callbacks:,} callbacks, "
        f"{span(figures.virtual_s)} of virtual time"
    )
    screen.text(f"{span(wall_s)} with {jobs} processes; {per_cpu_s:.1f} worlds a second of CPU")
    for ran in broken[:_NAMED]:
        screen.text(f"seed {ran.seed} is broken; to see it: mainspring sim --seed {ran.seed} --trace")
    if len(broken) > _NAMED:
        screen.text(f"... and {len(broken) - _NAMED} more")
    screen.text(f"{len(broken)} broken" if broken else "all promises held")


__all__ = ["sim"]
