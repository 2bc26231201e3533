"""The command line: one door to environment, arguments and terminal.

In come words, out go calls of the engine, and text or JSON on stdout. It decides nothing about tasks. Each command is a
function that returns its exit code; `app.py` lists them, and only the one that is asked for is imported.
"""

from __future__ import annotations


def main() -> int:
    """Run the command of this process's arguments and return its exit code; `docs/cli.md` lists the codes."""
    try:
        from mainspring.cli.app import run

        return run()
    except KeyboardInterrupt:  # while something is imported; a running command ends in order
        return 130


__all__ = ["main"]
