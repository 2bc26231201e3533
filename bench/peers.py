"""The best durable peers and us, beside each other in one run.

    python -m bench.peers --install      dramatiq, pgqueuer and procrastinate, each into its own environment, once
    python -m bench.peers                needs redis-server and postgresql, as Debian calls the packages

The servers are started for the run, on 127.0.0.1 and on a free port, with their data on the same disk as our file. What
is missing is named and left out; without any peer the ratio is against a figure recorded on another day.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import statistics
import subprocess
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bench.harness import OUT, PEER_RATE, Sample, Stopwatch, cpu_of, options, run, scratch
from bench.postgres import timed as timed_on_server
from bench.report import Report, Row, row_of
from bench.servers import postgres, postgres_folder, redis, redis_program
from bench.subject import SUBMITTERS, by_map, by_submitters
from bench.throughput import one_process, two_processes

_HERE = Path(__file__).resolve().parent
_PINS = _HERE / "peers.txt"
_ANSWERS_WITHIN_S = 60.0  # and for each task,
_LEAST_RATE = 50.0  # tasks a second
_LOOK_EVERY_S = 1.0
_LAST_CHARS = 4_000
_SERVER_FLOOR = 3.0
_WAYS = {"map": by_map, f"{SUBMITTERS} submitters": by_submitters}
_LIMITS = {"map": (8.0, 15.0), f"{SUBMITTERS} submitters": (5.0, 10.0)}
_TWO_PROCESSES = (3.0, 5.0)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """How a peer is installed, what it stands on, and how its workers are started."""

    name: str
    packages: list[str]
    server: Callable[[Path], contextlib.AbstractContextManager[tuple[str, int]]]
    has_server: Callable[[], object]
    program: Path
    workers: Callable[[Path], list[list[str]]]  # commands, from the environment's folder of programs
    prepare: Callable[[Path, str], list[str]] | None = None
    note: str
    tuned: str = ""  # what was set for this very work; ratios are to peers as they come, as in the recorded figures

    @property
    def label(self) -> str:
        return f"{self.name}, {self.tuned}" if self.tuned else self.name

    def missing(self, folder: Path) -> str | None:
        """Return what keeps this peer from running."""
        if not self.python(folder).exists():
            return "it is not installed (python -m bench.peers --install)"
        return None if self.has_server() else "its server is not installed"

    def python(self, folder: Path) -> Path:
        return folder / self.name / "bin" / "python"


_DRAMATIQ = Peer(
    name="dramatiq",
    packages=["dramatiq[redis]==2.2.1", "hiredis"],
    server=redis,
    has_server=redis_program,
    program=_HERE / "peer_dramatiq.py",
    workers=lambda bin: [[str(bin / "dramatiq"), "peer_dramatiq", "--processes", "2", "--threads", "8"]],
    note="2 x 8 threads; Redis syncs once a second",
)
_PGQUEUER = Peer(
    name="pgqueuer",
    packages=["pgqueuer[asyncpg,cli]==1.6.0"],
    server=postgres,
    has_server=postgres_folder,
    program=_HERE / "peer_pgqueuer.py",
    workers=lambda bin: [[str(bin / "python"), str(_HERE / "peer_pgqueuer.py"), "work", "10"]] * 2,
    prepare=lambda bin, address: [str(bin / "pgq"), "--pg-dsn", address, "install"],
    note="2 workers, 10 jobs at once, uvloop, bulk submit, no results; every commit synced",
)
_PGQUEUER_TUNED = replace(
    _PGQUEUER,
    workers=lambda bin: [[str(bin / "python"), str(_HERE / "peer_pgqueuer.py"), "work", "200"]] * 2,
    note="the same, 200 jobs at once: of 10, 50, 100, 200 and 500 the best for no-ops; not in the ratios",
    tuned="200 at once",
)
_PROCRASTINATE = Peer(
    name="procrastinate",
    packages=["procrastinate==3.10.0", "psycopg[binary]"],
    server=postgres,
    has_server=postgres_folder,
    program=_HERE / "peer_procrastinate.py",
    workers=lambda bin: [[str(bin / "python"), str(_HERE / "peer_procrastinate.py"), "work"]] * 2,
    prepare=lambda bin, address: [str(bin / "procrastinate"), "--app", "peer_procrastinate.app", "schema", "--apply"],
    note="2 workers, 10 jobs at once, bulk submit, no results; every commit synced",
)
PEERS = (_DRAMATIQ, _PGQUEUER, _PGQUEUER_TUNED, _PROCRASTINATE)
_ON_POSTGRES = (_PGQUEUER, _PROCRASTINATE)


def install(folder: Path) -> None:
    """Make each peer's environment anew, with what its own package requires."""
    for peer in PEERS:
        if peer.tuned:
            continue  # it is there already
        print(f"installing {', '.join(peer.packages)} into {folder / peer.name}", flush=True)
        venv.create(folder / peer.name, clear=True, with_pip=True)
        pip = [str(peer.python(folder)), "-m", "pip", "install", "-q", "-c", str(_PINS)]
        subprocess.run([*pip, *peer.packages], check=True)


@contextlib.contextmanager
def running(peer: Peer, venvs: Path, folder: Path) -> Iterator[Callable[[int], tuple[Sample, float, float]]]:
    """Start server, workers and submitter; give what times n tasks: a sample, CPU µs of the workers, of the server.

    Raises: RuntimeError: one of them ended, or nothing comes of what they were asked for.
    """
    bin = peer.python(venvs).parent
    with peer.server(folder) as (address, server), contextlib.ExitStack() as stack:
        environment = os.environ | {"BENCH_SERVER": address, "PYTHONPATH": str(_HERE)}
        if peer.prepare is not None:
            subprocess.run(peer.prepare(bin, address), check=True, stdout=subprocess.DEVNULL, env=environment)
        said = folder / "workers.log"
        log = stack.enter_context(said.open("wb"))
        workers = [
            stack.enter_context(_stopped(subprocess.Popen(command, env=environment, stdout=log, stderr=log)))
            for command in peer.workers(bin)
        ]
        submitter = stack.enter_context(
            _stopped(
                subprocess.Popen(
                    [peer.python(venvs), peer.program], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
            )
        )

        def timed(n: int) -> tuple[Sample, float, float]:
            pids = [worker.pid for worker in workers]
            before = cpu_of(pids), cpu_of([server])
            with Stopwatch() as watch:
                answer = _ask(peer, submitter, n, workers, said)
            spent = cpu_of(pids) - before[0], cpu_of([server]) - before[1]
            others = watch.sample(n, ours_elsewhere_s=answer["cpu_s"] + sum(spent)).others
            sample = Sample(n=n, wall_s=answer["wall_s"], cpu_s=answer["cpu_s"], others=others)
            return sample, spent[0] / n * 1e6, spent[1] / n * 1e6

        yield timed


def _ask(
    peer: Peer, submitter: subprocess.Popen[bytes], n: int, workers: list[subprocess.Popen[bytes]], said: Path
) -> dict[str, float]:
    assert submitter.stdin is not None
    assert submitter.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # then it has nothing to answer either
        submitter.stdin.write(b"%d\n" % n)
        submitter.stdin.flush()
    give_up = time.monotonic() + _ANSWERS_WITHIN_S + n / _LEAST_RATE
    while not select.select([submitter.stdout], [], [], _LOOK_EVERY_S)[0]:
        ended = [worker.returncode for worker in workers if worker.poll() is not None]
        if ended or time.monotonic() > give_up:
            what = f"a worker ended with {ended[0]}" if ended else f"{n} tasks are not done in time"
            last = said.read_text(encoding="utf-8", errors="replace")[-_LAST_CHARS:]
            raise RuntimeError(f"{peer.label}: {what}. Its workers said:\n{last}")
    answer = submitter.stdout.readline()
    if not answer:
        raise RuntimeError(f"{peer.label}: {peer.program.name} ended; its error stands above")
    return dict(json.loads(answer))


@contextlib.contextmanager
def _stopped(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # what it was to read
                    pipe.close()


def _measure(report: Report, folder: Path, venvs: Path, n: int, runs: int, loop: str) -> None:
    peers = []
    for peer in PEERS:
        if (lack := peer.missing(venvs)) is None:
            peers.append(peer)
        else:
            report.remarks.append(f"{peer.label} is left out: {lack}.")
    theirs: dict[str, list[tuple[Sample, float, float]]] = {peer.label: [] for peer in peers}
    ours: dict[str, list[Sample]] = {name: [] for name in _WAYS}
    apart: dict[str, list[tuple[Sample, float]]] = {name: [] for name in _WAYS}
    on_server: dict[str, list[Sample]] = {}
    for turn in range(runs):  # all take turns, so that a loaded minute hits everyone
        for peer in peers:
            place = folder / f"{PEERS.index(peer)}-{turn}"
            place.mkdir()
            place.chmod(0o755)
            with running(peer, venvs, place) as timed:
                timed(n)  # not counted: their workers come fresh from a start, and take long to reach their speed
                theirs[peer.label].append(timed(n))
        for name, way in _WAYS.items():
            ours[name].append(run(partial(one_process, folder / f"{name}-{turn}.db", way, n), loop))
            apart[name].append(run(partial(two_processes, folder / f"{name}-apart-{turn}.db", way, n, loop), loop))
        if any(peer in peers for peer in _ON_POSTGRES):
            with _served(folder / f"ours-{turn}") as address:
                for name, way in _WAYS.items():
                    blobs = folder / f"ours-{turn}" / "blobs"
                    work = partial(timed_on_server, address, way.__name__, blobs, way, n)
                    on_server.setdefault(name, []).append(run(work, loop))
    _report(report, peers, theirs, ours, apart)
    _report_servers(report, theirs, on_server)


@contextlib.contextmanager
def _served(place: Path) -> Iterator[str]:
    place.mkdir()
    place.chmod(0o755)
    with postgres(place) as (address, _):
        yield address


def _report_servers(
    report: Report, theirs: dict[str, list[tuple[Sample, float, float]]], ours: dict[str, list[Sample]]
) -> None:
    """Our store on Postgres against the best peer on Postgres."""
    found = [theirs[peer.label] for peer in _ON_POSTGRES if peer.label in theirs]
    best = [max(sample.rate for sample, *_ in turn) for turn in zip(*found, strict=True)]
    against = "the best peer on Postgres in the same turn"
    for name, samples in ours.items():
        ratio = statistics.median(sample.rate / rate for sample, rate in zip(samples, best, strict=True))
        report.add(row_of(f"ours on Postgres, {name}", samples, ratio=ratio, against=against, floor=_SERVER_FLOOR))


def _report(
    report: Report,
    peers: list[Peer],
    theirs: dict[str, list[tuple[Sample, float, float]]],
    ours: dict[str, list[Sample]],
    apart: dict[str, list[tuple[Sample, float]]],
) -> None:
    for peer in peers:
        found = theirs[peer.label]
        spent = {"workers": [one[1] for one in found], "server": [one[2] for one in found]}
        report.add(row_of(peer.label, [one[0] for one in found], spent, note=peer.note))
    best = [
        max((theirs[peer.label][turn][0].rate for peer in peers if not peer.tuned), default=PEER_RATE)
        for turn in range(len(ours["map"]))
    ]
    against = "the best peer of the same turn"
    if not peers:
        against = f"the recorded {PEER_RATE:,.0f} tasks/s of the best durable peers"
        report.remarks.append("No peer ran: the ratio is against a figure from another day, good for orientation only.")

    def beside(what: str, samples: list[Sample], spent: dict[str, list[float]], limits: tuple[float, float]) -> None:
        ratio = statistics.median(sample.rate / rate for sample, rate in zip(samples, best, strict=True))
        report.add(row_of(what, samples, spent, ratio=ratio, against=against, floor=limits[0], goal=limits[1]))

    for name, samples in ours.items():
        beside(f"ours, {name}", samples, {}, _LIMITS[name])
    for name, pairs in apart.items():
        worker = {"worker": [spent for _, spent in pairs]}
        beside(f"ours, {name}, two processes", [sample for sample, _ in pairs], worker, _TWO_PROCESSES)
    report.add(Row(what="fdatasync of 4 KiB, p50", n=len(report.syncs), values=[report.sync_ms], unit="ms"))


def _parsed() -> argparse.Namespace:
    parser = options("The best durable peers and us in one run.", n="10000")
    parser.add_argument("--venvs", default=OUT / "peers", type=Path, help="where the peers' environments are")
    parser.add_argument("--install", action="store_true", help="make these environments, and end")
    return parser.parse_args()


def main() -> None:
    given = _parsed()
    if given.install:
        install(given.venvs)
        return
    with scratch(given.folder) as folder:
        folder.chmod(0o711)  # Postgres runs as a user of its own below it
        report = Report("peers", "Durable no-op tasks: peers and us in one run", folder, given.loop, given.out)
        for n in given.n:
            _measure(report, folder, given.venvs.resolve(), n, given.runs, given.loop)
        report.finish()


if __name__ == "__main__":
    main()
