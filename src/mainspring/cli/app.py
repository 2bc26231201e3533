"""The app: which commands there are, where they live, and what becomes of an error."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Container
from importlib import import_module
from typing import Annotated, cast

import typer

from mainspring.cli import exits
from mainspring.errors import TaskError

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo.command", "Index this Python's documentation and search it"),
    "index": ("indexing_command", "Index a folder for search"),
    "search": ("indexing_command", "Answer a question from what is indexed"),
    "worker": ("worker", "Run tasks until told to stop"),
    "submit": ("submit", "Store a task and print its id"),
    "ps": ("listing", "List tasks, the newest first"),
    "top": ("top", "Watch what goes on"),
    "show": ("detail", "Print everything about a task"),
    "why": ("detail", "Say why a task is not running"),
    "wait": ("results", "Wait until tasks have ended"),
    "result": ("results", "Print the value that a task returned"),
    "cancel": ("act", "Cancel tasks"),
    "retry": ("act", "Make new tasks of failed ones"),
    "pause": ("act", "Start no more tasks of a kind"),
    "resume": ("act", "Take back a pause"),
    "limit": ("limiting", "List, set or remove limits of groups"),
    "failures": ("listing", "List failed tasks with their errors"),
    "stats": ("stats", "Count tasks; list workers and pauses"),
    "doctor": ("doctor.command", "Say what is wrong with a store, and what to do"),
    "backup": ("backup", "Copy a store while workers go on"),
    "restore": ("backup", "Make a store of a backup"),
    "migrate": ("migrate", "Move a store between a file and a server"),
    "models": ("catalog", "List models, or bring one here"),
    "cache": ("cache", "List or forget results that are kept"),
    "collections": ("collecting", "List, copy or index collections of vectors"),
    "bench": ("bench", "Measure durable tasks on this machine"),
    "sim": ("sim", "Check the promises in simulated worlds"),
}
"""Each command: the module here with the function (or `typer.Typer`) of its name, and its line in the overview."""

_MISTAKE = cast(type[typer.BadParameter], typer.BadParameter.__mro__[2])
"""What typer raises for words it can't read; not all versions have a public name for this base."""
_COMPLETES = "_MAINSPRING_COMPLETE"
"""Set by the shell when it asks for completions, which need the options of all commands."""


def run() -> int:
    """Run the command of this process's arguments and return its exit code."""
    arguments = sys.argv[1:]
    as_json = "--json" in arguments
    # A program that reads stderr finds its error there and nothing else; a worker has warnings to give all the same.
    level = logging.ERROR if as_json and arguments[0] != "worker" else logging.WARNING
    logging.basicConfig(level=level, format="mainspring: %(message)s")
    app = build(COMMANDS if _COMPLETES in os.environ else arguments[:1])
    try:
        code = app(args=arguments or ["--help"], prog_name="mainspring", standalone_mode=False)
    except TaskError as exc:
        return exits.tell(exc, as_json=as_json)
    except _MISTAKE as exc:
        command = f" {arguments[0]}" if arguments[0] in COMMANDS else ""
        return exits.tell_usage(exc.format_message(), command, as_json=as_json)
    return int(code or exits.OK)


def build(asked: Container[str]) -> typer.Typer:
    """Return the app. Only the modules of the commands that are asked for are imported; others have just a line."""
    app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
    app.callback()(_mainspring)
    for name, (module, line) in COMMANDS.items():
        found = getattr(import_module(f"mainspring.cli.{module}"), name) if name in asked else _not_asked
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name, short_help=line)
        else:
            app.command(name, short_help=line)(found)
    return app


def _not_asked() -> None:
    """Stands for a command in the overview."""


def version() -> str:
    from importlib import metadata

    try:
        return metadata.version("mainspring")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _show_version(asked: bool) -> None:
    if asked:
        print(f"mainspring {version()}")
        raise typer.Exit


def _mainspring(
    asked: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version and leave.")
    ] = False,
) -> None:
    """Durable tasks for AI work: one file, no server.

    Commands take --store PATH (or MAINSPRING_STORE; default ./mainspring.db) and --json. Exit codes: 0 ok, 1 a task did
    not complete, 2 invalid input, 3 not found, 4 the store can't be used, 5 waited too long, 130 interrupted.
    """
