"""The kill loop at its smallest, its negative control, and that its checker sees each kind of violation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from proof.kills.__main__ import CONTROL_SLOWNESS
from proof.kills.check import Evidence, check
from proof.kills.killer import Crew
from proof.kills.ledger import Line, Word
from proof.kills.loop import Outcome, run
from proof.server import OwnServer

from mainspring.tasks import TaskId
from mainspring.tasks.lifecycle import COMPLETED, RUNNING

pytestmark = pytest.mark.anyio

CYCLES = 10


CYCLES_ON_A_SERVER = 8


def crew_in(folder: Path) -> Crew:
    return Crew(folder=folder, seed=1, workers=3, submitters=1)


@pytest.fixture(scope="module")
async def whole(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> tuple[Path, Outcome]:
    crew = crew_in(tmp_path_factory.mktemp("kills"))
    return crew.folder, await run(crew, CYCLES, at_once=2)


async def test_nothing_is_lost_or_done_twice(whole: tuple[Path, Outcome]) -> None:
    """Under SIGKILL, SIGSTOP and SIGTERM at random moments the store agrees with handlers and submitters."""
    _, outcome = whole
    print(dict(outcome.signals), outcome.seen.figures, f"{outcome.took_s:.0f} s")
    assert [str(finding) for finding in outcome.findings] == []
    assert outcome.signals.total() >= CYCLES
    assert outcome.seen.figures["completed"] > 0


async def test_nothing_is_lost_or_done_twice_on_a_server(tmp_path: Path) -> None:
    """The same while the server is killed, loses a process, and ends connections."""
    how = {"kill": 2, "cut": 2, "backend": 2, "server": 2}
    with OwnServer() as server:
        crew = Crew(folder=tmp_path, seed=1, workers=2, submitters=1, server=server)
        outcome = await run(crew, CYCLES_ON_A_SERVER, how=how)
    print(dict(outcome.signals), outcome.seen.figures, f"{outcome.took_s:.0f} s")
    assert [str(finding) for finding in outcome.findings] == []
    assert outcome.signals["kill of the server"] == outcome.signals["kill of a backend"] == 2
    assert outcome.seen.figures["completed"] > 0
    assert outcome.seen.vectors


async def test_without_the_attempt_guard_it_is_noticed(tmp_path: Path) -> None:
    """Stopped workers that wake up record what they should not, and the checker says so."""
    found: Counter[str] = Counter()
    for seed in range(4):  # which stop finds which handler at work is chance, and the machine's load
        crew = Crew(
            folder=tmp_path / str(seed), seed=seed, workers=3, submitters=2, without=["attempt guard"],
            slowness=CONTROL_SLOWNESS,
        )  # fmt: skip
        outcome = await run(crew, 6, how={"stop": 1}, among="worker")
        found.update(finding.kind for finding in outcome.findings)
        if found.total() - found["lost"]:
            break
    assert found.total() - found["lost"], found


def _a_task(seen: Evidence, kind: str) -> str:
    return next(id for id, row in seen.rows.items() if row.type == kind and row.status == COMPLETED)


def _accept_another(seen: Evidence) -> None:
    seen.words.append(Word("accepted", str(TaskId.new()), 1))


def _refuse(seen: Evidence) -> None:
    seen.words.append(Word("refused", next(iter(seen.rows)), 1))


def _never_end(seen: Evidence) -> None:
    id = _a_task(seen, "custom:waits")
    seen.rows[id] = seen.rows[id]._replace(status=RUNNING)


def _begin_again(seen: Evidence) -> None:
    lines = seen.lines[_a_task(seen, "custom:waits")]
    lines.append(lines[0])


def _begin_later(seen: Evidence) -> None:
    lines = seen.lines[_a_task(seen, "custom:waits")]
    lines.append(msgspec.structs.replace(lines[0], attempt=lines[-1].attempt + 1))


def _end_elsewhere(seen: Evidence) -> None:
    id = next(id for id, row in seen.rows.items() if row.type == "custom:waits" and (row.status, row.flags) == (2, 0))
    seen.lines[id] = [msgspec.structs.replace(line, pid=1) for line in seen.lines[id]]


def _begin_early(seen: Evidence) -> None:
    ids = {row.seq: id for id, row in seen.rows.items()}
    for child, parent in seen.connection.execute("SELECT child, parent FROM edge"):
        lines = seen.lines.get(ids[child], [])
        if lines and seen.lines.get(ids[parent]):
            lines[0] = msgspec.structs.replace(lines[0], at=1)


def _answer_twice(seen: Evidence) -> None:
    seen.words.extend(Word("accepted", str(TaskId.new()), at, key="key") for at in (1, 2))


def _store_nothing(seen: Evidence) -> None:
    del seen.rows[_a_task(seen, "data_storage")]


def _lose_a_vector(seen: Evidence) -> None:
    seen.vectors.popitem()


def _keep_a_vector(seen: Evidence) -> None:
    seen.vectors["of nobody#0"] = np.ones(8)


def _turn_a_vector(seen: Evidence) -> None:
    id, vector = seen.vectors.popitem()
    seen.vectors[id] = -vector


def _cancel_before(seen: Evidence) -> None:
    id = _a_task(seen, "custom:waits")
    seen.words.append(Word("cancel", id, 1, answer="cancelled"))


def _lose_children(seen: Evidence) -> None:
    parent = _a_task(seen, "custom:has_children")
    refs = seen.connection.execute("SELECT ref FROM stands_for WHERE task = ?", (seen.rows[parent].seq,)).fetchall()
    for id, row in list(seen.rows.items()):
        if (row.seq,) in refs:
            del seen.rows[id]


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("history", _accept_another),
        ("history", _refuse),
        ("lost", _never_end),
        ("history", _begin_again),
        ("other attempt", _begin_later),
        ("other attempt", _end_elsewhere),
        ("order", _begin_early),
        ("key", _answer_twice),
        ("effect", _store_nothing),
        ("effect", _lose_a_vector),
        ("effect", _keep_a_vector),
        ("effect", _turn_a_vector),
        ("history", _cancel_before),
        ("children", _lose_children),
    ],
)
async def test_the_checker_sees(whole: tuple[Path, Outcome], kind: str, spoil: Callable[[Evidence], None]) -> None:
    """What was noted is changed in one way, and the checker names it."""
    folder, outcome = whole
    seen = outcome.seen
    lines = {id: list(lines) for id, lines in seen.lines.items()}
    spoilt = seen._replace(rows=dict(seen.rows), lines=lines, words=[*seen.words], vectors=dict(seen.vectors))
    spoil(spoilt)
    assert kind in {finding.kind for finding in check(spoilt, folder / "work.db-blobs")}


def test_a_line_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a death cut off is no line; what was written before it is."""
    from proof.kills import ledger

    monkeypatch.setenv(ledger.FOLDER, str(tmp_path))
    book = ledger.Book("ledger")
    line = Line("a", 1, 2, "start", 3)
    book.write(line)
    (path,) = tmp_path.iterdir()
    with path.open("ab") as file:
        file.write(b'{"task":"b"')
    assert ledger.read(tmp_path, "ledger", Line) == [line]
