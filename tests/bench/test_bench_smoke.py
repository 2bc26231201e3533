"""The benchmarks run at a tiny size and leave what they promise, so that they never rot. No figure is judged here."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench.by_torch import weights_of
from bench.embeddings import model_folder
from tests import postgres

ROOT = Path(__file__).resolve().parents[2]
_WAYS = ("by_map", "by_submitters")


def start(name: str, folder: Path, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a benchmark as its users do."""
    command = [sys.executable, "-m", f"bench.{name}", "--folder", str(folder), "--out", str(out), *arguments]
    paths = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), str(ROOT / "src")]))
    environment = os.environ | {"PYTHONPATH": paths}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


def ran(name: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """Run a benchmark that must succeed, and return the report that it left."""
    done = start(name, folder, folder / "out", *arguments)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "CPU" in done.stdout
    return dict(json.loads((folder / "out" / f"{name}.json").read_bytes()))


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A folder that benchmarks accept: not in memory."""
    from bench.machine import filesystem_of

    if filesystem_of(tmp_path)[0] == "tmpfs":
        pytest.skip("the temporary folder of the tests is in memory, which benchmarks refuse")
    return tmp_path


def rows_of(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"{row['what']} / {row['n']}": row for row in report["rows"]}


def test_throughput(disk: Path) -> None:
    """All ways in are measured in one and in two processes, with CPU time for each process."""
    rows = rows_of(ran("throughput", disk, "--n", "64", "--runs", "1"))
    assert {
        "map, one process / 64", "raw SQLite by hand, 256 a commit / 64", "map, beside raw SQLite by hand / 64",
        "the leanest raw SQLite, 256 a commit / 64", "map, beside the leanest raw SQLite / 64",
        "64 submitters, one process / 64", "map, two processes / 64",
        "64 submitters, two processes / 64", "latency p50, one process / 64", "latency p50, two processes / 64",
    } == rows.keys()  # fmt: skip

    assert rows["map, two processes / 64"]["cpu_us"].keys() == {"here", "worker"}


def test_limits(disk: Path) -> None:
    """Groups cost what is measured beside none, and full ones ahead beside few; all were full all the time."""
    rows = rows_of(ran("limits", disk, "--n", "100", "--runs", "1", "--groups", "20"))
    assert {
        "no groups, by map / 100", "half in limited groups / 100", "half in limited groups, with costs / 100",
        "past 10 full groups / 100", "past 20 full groups / 100",
        "latency p50 past 10 full groups / 200", "latency p50 past 20 full groups / 200",
    } == rows.keys()  # fmt: skip


def test_embeddings(disk: Path) -> None:
    """Embeddings through tasks are set against the best loop by hand, and are the same vectors."""
    rows = rows_of(ran("embeddings", disk, "--n", "24", "--runs", "1"))
    assert rows["one task a text / 24"]["ratio"] > 0


def test_embeddings_beside_torch(disk: Path) -> None:
    """torch gives the same vectors one by one, with one thread and with one for each core."""
    python = os.environ.get("BENCH_TORCH_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import torch"], capture_output=True, check=False).returncode:
        pytest.skip("no torch here: name an interpreter that has it in BENCH_TORCH_PYTHON")
    rows = rows_of(ran("embeddings", disk, "--n", "5", "--runs", "1", "--torch-python", python))
    assert rows["torch, one text at a time, threads: 1 / 5"]["values"]
    assert rows["one task a text, beside torch / 5"]["ratio"] > 0


def test_embeddings_without_torch(disk: Path) -> None:
    """An interpreter that can't be used is named before anything is measured."""
    done = start("embeddings", disk, disk / "out", "--torch-python", str(disk / "none"))
    assert done.returncode != 0
    assert f"--torch-python {disk / 'none'} can't be run" in done.stderr


def test_weights_for_torch() -> None:
    """Each layer's weights come out of the graph, in torch's shapes: what it computes with, not how it is stored."""
    weights = weights_of(model_folder() / "model.onnx")
    assert weights["embeddings.word_embeddings.weight"].shape == (30522, 384)
    for layer in range(6):
        wide = weights[f"encoder.layer.{layer}.intermediate.dense.weight"]
        assert wide.shape == (1536, 384)
        assert wide.dtype == np.float32
    assert sum(name.startswith("encoder.layer.") for name in weights) == 6 * 16


def test_batching(disk: Path) -> None:
    """Sizes that are learned are set against fixed ones, for a handler and for a service."""
    rows = rows_of(ran("batching", disk, "--n", "16", "--runs", "1"))
    assert rows["texts padded to the longest, calls of 4 / 16"]["values"]
    assert rows["a service of 20 ms, learned / 16"]["ratio"] > 0


def test_stealing(disk: Path) -> None:
    """An order is run with and without what moves claims."""
    rows = rows_of(ran("stealing", disk, "--n", "10", "--runs", "1", "--processes", "2", "--order", "mixed"))
    assert {row.split(" / ")[0].rsplit(", ", 1)[1] for row in rows} == {"asked", "unasked", "kept"}
    assert all(row["ratio"] > 0 for row in rows.values())


def test_overload(disk: Path) -> None:
    """What a flood stored is what ended, memory is read for it and for map through the same queue, and strangers that
    take the machine hold it back."""
    rows = rows_of(ran("overload", disk, "--n", "2000", "--runs", "1"))
    assert "refused with QueueFull" in rows["flood of submits / 2000"]["note"]
    assert "strangers on all cores: held back after / 1" in rows
    assert len(rows) == 6


def test_upkeep(disk: Path) -> None:
    """An idle engine is watched, and a busy one is set against itself beside retention and looks."""
    rows = rows_of(ran("upkeep", disk, "--n", "64", "--runs", "1", "--seconds", "0.5"))
    assert "ms of CPU" in rows["start of an engine / 1"]["note"]
    assert rows["memory of an idle engine / 1"]["values"][0] > 1
    assert rows["beside retention and looks / 64"]["ratio"] > 0


def test_processes(disk: Path) -> None:
    """The process lane is set against the async lane, and kills against their limit."""
    rows = rows_of(ran("processes", disk, "--n", "64", "--runs", "1", "--kills", "2"))
    assert rows["process lane, map / 64"]["ratio"] > 0
    assert len(rows["kill of a child to the next task's start, p50 / 2"]["values"]) == 2


def test_latency(disk: Path) -> None:
    """Latency is set against syncs of the same run, on the plain event loop too."""
    report = ran("latency", disk, "--n", "5", "--runs", "2", "--loop", "asyncio")
    assert report["fdatasync_ms"]["p50"] > 0
    assert report["machine"]["loop"] == "asyncio"
    row = rows_of(report)["submit to result, p50 / 5"]
    assert row["ratio"] > 0
    assert len(row["values"]) == 2


def test_dependencies(disk: Path) -> None:
    """Every shape gives right results, and its ratio to plain tasks."""
    rows = rows_of(ran("dependencies", disk, "--n", "20", "--runs", "1"))
    assert rows["2 chains of 10, one call / 20"]["ratio"] > 0
    assert rows["200 into 1 / 200"]["ratio"] > 0


def test_caching(disk: Path) -> None:
    """Hits, misses and equal tasks, each against as many plain tasks."""
    rows = rows_of(ran("caching", disk, "--n", "40", "--runs", "1"))
    assert len(rows) == 5
    assert all(row["ratio"] > 0 for name, row in rows.items() if not name.startswith("no-ops"))


def test_telemetry(disk: Path) -> None:
    """Scrapes and spans, each against as many plain tasks."""
    rows = rows_of(ran("telemetry", disk, "--n", "40", "--runs", "1"))
    assert len(rows) == 4
    assert all(row["ratio"] > 0 for name, row in rows.items() if not name.startswith("no-ops"))


def test_backlog(disk: Path) -> None:
    """Two lengths are measured in processes of their own, the second against the first."""
    rows = rows_of(ran("backlog", disk, "--n", "300,600", "--share", "20"))
    for what in ("submit", "flow", "flow past paused ones", "memory of the worker"):
        assert rows[f"{what} / 300"]["ratio"] is None
        assert rows[f"{what} / 600"]["ratio"] is not None


def test_backlog_on_a_server() -> None:
    """The same steps on a queue in a schema of a server."""
    from bench.postgres import store_in

    from bench import backlog

    place = backlog.Place(store_in(postgres.url(), "bench_backlog_smoke"), None)
    try:
        filled, submitted, passed = (
            asyncio.run(step(place, n)) for step, n in ((backlog.fill, 80), (backlog.submit, 64), (backlog.paused, 20))
        )
        assert filled["bytes"] > 0
        assert submitted["rate"] > 0
        assert passed["p50_ms"] > 0
        assert postgres.ask("SELECT count(*) FROM bench_backlog_smoke.task WHERE status = 0") == [(80 + 10 + 64,)]
    finally:
        postgres.drop("bench_backlog_smoke")


def test_postgres(disk: Path) -> None:
    """On a server that is there already all schemas are the benchmark's own."""
    schemas = {"bench_latency", *(f"bench_40_{way}_0{beside}" for way in _WAYS for beside in ("", "_beside"))}
    try:
        rows = rows_of(ran("postgres", disk, "--n", "40", "--runs", "1", "--beside", "--server", postgres.url()))
        assert rows["map, beside an open transaction / 40"]["ratio"] > 0
        assert rows["latency p50 / 40"]["values"]
        assert schemas <= {name for (name,) in postgres.ask("SELECT nspname FROM pg_namespace")}
    finally:
        for schema in schemas:
            postgres.drop(schema)


def test_engines_on_a_server() -> None:
    """Two engines do what one submits, for each load, and two plain clients share their rows."""
    from bench import postgres as bench

    store = bench.store_in(postgres.url(), "bench_engines_smoke")
    try:
        timed = asyncio.run(bench.with_engines(store, 2, 40, "auto", None))
        assert [sample.n for sample, _ in timed] == [40, 10]
        sample, spent = asyncio.run(bench.plain_clients(postgres.url(), "bench_plain_smoke", 2, 40, None))
        assert (sample.n, list(spent)) == (40, ["clients"])
        done = postgres.ask(
            "SELECT owner, count(*) FROM bench_plain_smoke.job WHERE status = 2 GROUP BY owner ORDER BY 1"
        )
        assert sum(n for _, n in done) == 40
    finally:
        postgres.drop("bench_engines_smoke")
        postgres.drop("bench_plain_smoke")


def test_vacuum(tmp_path: Path) -> None:
    """What flowed through is looked at, table by table."""
    from bench import vacuum

    try:
        looks, rate = asyncio.run(vacuum.flow(postgres.url(), "bench_vacuum_smoke", tmp_path, 40, 400))
        assert looks[-1].done == 40
        assert looks[-1].tables.keys() >= {"task", "attempt", "tally", "worker"}
        assert rate > 0
    finally:
        postgres.drop("bench_vacuum_smoke")


def test_memory() -> None:
    """A task whose memory is declared ends well in a container that has room for it."""
    from bench import memory

    try:
        found = memory.measure(1, ["declared"])
    except OSError as exc:
        pytest.skip(f"no control group with a limit can be made here: {exc}")
    assert [(one["completed"], one["oom_kills"]) for one in found] == [(1, 0)]


def test_reference(disk: Path) -> None:
    """Ceilings stand beside the engine's own rate."""
    rows = rows_of(ran("reference", disk, "--n", "50", "--runs", "1"))
    assert rows["engine, map / 50"]["median"] > 0
    assert rows["sqlite full, 64 a commit / 50"]["ratio"] > 0
    assert rows["sqlite full by hand, 256 a commit / 50"]["ratio"] > 0


def test_peers_without_peers(disk: Path) -> None:
    """Without installed peers the program says so, and that its ratio is against a figure of another day."""
    report = ran("peers", disk, "--n", "50", "--runs", "1", "--venvs", str(disk / "none"))
    said = " ".join(report["remarks"])
    assert "dramatiq is left out" in said
    assert "pgqueuer is left out" in said
    assert "another day" in said
    assert rows_of(report)["ours, map / 50"]["ratio"] > 0


def test_memory_is_no_disk(tmp_path: Path) -> None:
    """A folder in memory is refused: there would be no sync to pay for."""
    from bench.machine import filesystem_of

    memory = Path("/dev/shm")
    if not memory.is_dir() or filesystem_of(memory)[0] != "tmpfs":
        pytest.skip("there is no file system in memory here")
    done = start("latency", memory, tmp_path, "--n", "1")
    assert done.returncode != 0
    assert "real disk" in done.stderr


def test_search(disk: Path) -> None:
    """Tasks find what the raw computation finds, and queries wait beside documents that are indexed."""
    few = ("--n", "300", "--runs", "1", "--queries", "70", "--asked", "5", "--documents", "4")
    rows = rows_of(ran("search", disk, *few))
    assert rows["tasks, 300 records / 70"]["ratio"] > 0
    beside = rows["query beside indexing, p99 / 5"]
    assert beside["ratio"] > 0
    assert "texts/s indexed meanwhile" in beside["note"]


def test_vectors(disk: Path) -> None:
    """Each share that a filter leaves is searched exactly and by the index, whose recall is told."""
    rows = rows_of(ran("vectors", disk, "--n", "100", "--server", postgres.url()))
    for share in (100, 10, 1):
        assert f"exact, {share} % / 100" in rows
        assert "recall@10 " in rows[f"by the index, {share} % / 100"]["note"]
    postgres.drop("bench_vectors_100")
