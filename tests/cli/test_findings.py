"""The rules of `doctor`: each fact that needs attention has its finding, and a healthy store has none."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mainspring.cli.doctor.file import findings
from mainspring.cli.doctor.finding import Finding
from mainspring.config import GIB, MIB
from mainspring.store.sql.inspection import ClassFacts, EndFacts, HandlerFacts, Overrun
from mainspring.store.sqlite.connection import SCHEMA_VERSION
from mainspring.store.sqlite.inspection import File, FileFacts, FileWorkerFacts

NOW = 1_800_000_000_000
GOOD = {"sqlite": "3.51.3"}
FILE = File(
    path="/work.db", bytes=400 * MIB, log_bytes=4 * MIB, page_size=4096, pages=102_400, free_pages=10,
    schema=SCHEMA_VERSION, filesystem="ext4", names=1, disk_bytes=100 * GIB, disk_free_bytes=50 * GIB,
)  # fmt: skip
WORKER = FileWorkerFacts(
    name="a1", pid=7, host="here", is_here=True, started_ms=NOW - 60_000, held=3, types=("custom:work",),
    is_alive=True, turns=True, has_file=True,
)  # fmt: skip
WORK = ClassFacts(
    namespace="default", type="custom:work", group="", unfinished=9, ready=5, ready_since_ms=NOW - 2_000, pause=None
)
HANDLER = HandlerFacts(type="custom:work", version="1", lane="async", timeout_s=10.0, seen_ms=NOW - 60_000)
ENDS = EndFacts(type="custom:work", completed=100, failed=9)
HEALTHY = FileFacts(
    file=FILE, now_ms=NOW, newest_ms=NOW - 100, unfinished=9, workers=(WORKER,), strangers=(), is_led=True,
    classes=(WORK,), ends=(ENDS,), handlers=(HANDLER,), overruns=(), travelling=0, late_ms=NOW + 500,
)  # fmt: skip


def changed(old: Any, **fields: Any) -> Any:
    return msgspec.structs.replace(old, **fields)


def found(versions: dict[str, str] = GOOD, **fields: Any) -> list[Finding]:
    return list(findings(changed(HEALTHY, **fields), versions))


def test_a_healthy_store() -> None:
    assert found() == []
    assert found(unfinished=0, classes=(), workers=(), handlers=(), late_ms=None) == []


ELSEWHERE = changed(WORKER, is_here=False, is_alive=False, turns=None, has_file=None)
BUSY = changed(WORK, ready_since_ms=NOW - 90_000)
OLD = changed(HANDLER, version="0", lane="thread")
CASES = {
    "hard links": ("warning", "2 names", {"file": changed(FILE, names=2)}),
    "older": ("note", "of an older version", {"file": changed(FILE, schema=SCHEMA_VERSION - 1)}),
    "little disk": ("warning", "(8%) of the disk", {"file": changed(FILE, disk_free_bytes=8 * GIB)}),
    "full disk": ("warning", "submits are refused", {"file": changed(FILE, disk_free_bytes=4 * GIB)}),
    "long log": ("warning", "write-ahead log", {"file": changed(FILE, log_bytes=65 * MIB)}),
    "hollow file": ("note", "free inside", {"file": changed(FILE, free_pages=60_000)}),
    "other machine": ("warning", "not this machine", {"workers": (WORKER, ELSEWHERE)}),
    "dead": ("warning", "died and holds 3", {"workers": (WORKER, changed(WORKER, is_alive=False))}),
    "dead and idle": ("note", "died and holds 0", {"workers": (WORKER, changed(WORKER, is_alive=False, held=0))}),
    "silent": ("warning", "is silent", {"workers": (changed(WORKER, turns=False),)}),
    "moved away": ("problem", "another file open", {"workers": (changed(WORKER, has_file=False),)}),
    "stranger": ("problem", "process b2 lives", {"strangers": ("b2",)}),
    "no leader": ("warning", "none leads", {"is_led": False}),
    "late": ("warning", "fell due", {"late_ms": NOW - 6_000}),
    "travelling": ("note", "4 ends", {"travelling": 4, "workers": (), "unfinished": 0, "classes": ()}),
    "nobody works": ("warning", "no worker is alive", {"workers": (changed(WORKER, types=()),)}),
    "not served": ("warning", "no living worker serves", {"workers": (changed(WORKER, types=("custom:other",)),)}),
    "paused": ("note", "paused (custom:work)", {"classes": (changed(BUSY, pause="custom:work"),)}),
    "idle": ("warning", "do nothing", {"classes": (BUSY,), "workers": (changed(WORKER, held=0),)}),
    "busy": ("note", "slots that serve it are busy", {"classes": (BUSY,)}),
    "failures": ("note", "20 of the 30 that ended failed", {"ends": (changed(ENDS, completed=10, failed=20),)}),
    "two versions": ("warning", "version 1 in lane async, version 0 in lane thread", {"handlers": (HANDLER, OLD)}),
    "long timeout": ("note", "may run for 1h", {"handlers": (changed(HANDLER, timeout_s=3600.0),)}),
    "clock": ("warning", "1m30s ahead", {"newest_ms": NOW + 90_000}),
}


@pytest.mark.parametrize(("level", "says", "fields"), CASES.values(), ids=CASES)
def test_what_needs_attention(level: str, says: str, fields: dict[str, Any]) -> None:
    """One fact, one finding, with a remedy."""
    (finding,) = found(**fields)
    assert finding.level == level
    assert says in finding.what
    assert finding.remedy


def test_a_silent_worker_names_what_it_holds_too_long() -> None:
    over = Overrun(task="01", type="custom:work", worker="a1", timeout_ms=10_000, at_most_ms=60_000)
    other = changed(over, worker="b2")
    (finding,) = found(workers=(changed(WORKER, turns=False),), overruns=(over, other))
    assert "1 perhaps past their timeout: 01 (custom:work, timeout 10s)" in finding.what
    assert found(overruns=(over,)) == []  # a loop that turns keeps its timeouts: the task only waited long before


def test_a_container_of_this_machine_is_no_other_machine() -> None:
    """It has a name of its own, but its lock is seen from here."""
    assert found(workers=(changed(WORKER, is_here=False, has_file=None),)) == []


def test_old_versions_of_a_handler_are_history() -> None:
    """Only what living workers have declared can contradict."""
    assert found(handlers=(HANDLER, changed(OLD, seen_ms=NOW - 61_000))) == []
    assert found(handlers=(HANDLER, OLD), workers=(WORKER, changed(WORKER, types=("custom:b",)))) != []


@pytest.mark.parametrize(
    ("version", "is_sound"),
    [
        *[("3.51.3", True), ("3.51.2", False), ("3.50.7", True), ("3.50.6", False), ("3.44.6", True)],
        *[("3.44.5", False), ("3.54.1", True), ("3.45.9", False), ("3.40.1", False)],
    ],
)
def test_versions_that_can_corrupt_a_log(version: str, is_sound: bool) -> None:
    assert (found({"sqlite": version}) == []) is is_sound
