"""Moves a store over and over, in processes that die at a commit: before it, or right after.

Each line on stdin is JSON: source, target, and `at`, the commit at which the process dies, with `when`; without them it
lives. Each line on stdout is how it ended: killed, done, or its error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from mainspring.cli import moving
from mainspring.cli.stages import Stages
from mainspring.store.moving import copying
from mainspring.store.moving.file import FileEnd
from mainspring.store.moving.server import ServerEnd

PAGE_ROWS = 7
"""So that most tables have several pages."""


def die_at(at: int, when: str) -> None:
    commits = 0

    def deadly(commit: Any) -> Any:
        def commit_and_die(end: Any) -> None:
            nonlocal commits
            commits += 1
            if commits == at and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            commit(end)
            if commits == at:
                os.kill(os.getpid(), signal.SIGKILL)

        return commit_and_die

    for end in (FileEnd, ServerEnd):
        end.commit = deadly(end.commit)  # type: ignore[method-assign]


def run(order: dict[str, Any]) -> int:
    copying.PAGE_ROWS = PAGE_ROWS  # type: ignore[misc]
    if "at" in order:
        die_at(order["at"], order["when"])
    source, target = (moving.Place(name, Path(blobs)) for name, blobs in (order["source"], order["target"]))
    moving.move(source, target, Stages(), lambda text: None, anew=False)
    return 0


def main() -> None:
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os._exit(run(json.loads(line)))
        _, status = os.waitpid(pid, 0)
        is_killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print("killed" if is_killed else "done" if status == 0 else f"failed with {status}", flush=True)


if __name__ == "__main__":
    main()
