"""`mainspring demo`: the main job, on documents that every Python has."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from mainspring.cli.exits import NOT_COMPLETED, OK
from mainspring.cli.opening import run
from mainspring.cli.options import AsJson
from mainspring.cli.screen import Screen
from mainspring.config import refuse_address


def demo(
    store: Annotated[
        Path, typer.Option("--store", metavar="FOLDER", help="Folder for the documents and the store.")
    ] = Path("mainspring-demo"),
    full: Annotated[bool, typer.Option("--full", help="Index the whole standard library, twice as much.")] = False,
    as_json: AsJson = False,
) -> int:
    """Index the documentation of this Python, ask questions meanwhile and after, and measure it all.

    Takes a little more than a minute on two cores. Stop it when you like: the next start goes on and computes nothing
    twice.
    """
    from mainspring.cli.demo.report import show
    from mainspring.cli.demo.run import Demo
    from mainspring.cli.session import INTERRUPTED

    screen = Screen(as_json)
    refuse_address("store", store, "name a folder: the demo keeps its store in there")
    report = run(Demo(store.absolute(), full=full, screen=screen).run())
    if as_json:
        screen.document(report)
    else:
        show(report, screen)
    again = f"mainspring demo --store {quote(str(store))}"
    if report.quality is None:
        screen.note(f"stopped; `{again}{' --full' if full else ''}` goes on from here")
        return INTERRUPTED
    screen.note(f'ask your own: mainspring search "how do I ..." --store {quote(report.store)}')
    return NOT_COMPLETED if report.index.failed else OK
