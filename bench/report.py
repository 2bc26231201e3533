"""One way to report: rows with their limits, as a table, as JSON and as a picture."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from bench.harness import Sample, percentile, syncs_ms
from bench.machine import describe
from bench.plot import draw
from rich import box
from rich.console import Console
from rich.table import Table

_WIDTH = 140
"""Columns of a table that goes to a file or a pipe."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of a report. `ratio` is what a budget is set on; `floor` and `goal` are limits of the ratio."""

    what: str
    n: int
    values: list[float]  # one a run
    unit: str
    cpu_us: dict[str, float] = field(default_factory=dict)  # a unit of work, by process; medians
    ratio: float | None = None
    against: str = ""
    floor: float | None = None
    goal: float | None = None
    lower_is_better: bool = False
    others: float | None = None
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def verdict(self) -> str:
        if self.ratio is None or (self.goal is None and self.floor is None):
            return ""
        sign = -1 if self.lower_is_better else 1
        if self.goal is not None and sign * self.ratio >= sign * self.goal:
            return "goal"
        if self.floor is not None and sign * self.ratio >= sign * self.floor:
            return "floor"
        return "below"


def row_of(what: str, samples: Sequence[Sample], peer_cpu_us: dict[str, list[float]] | None = None, **more: Any) -> Row:
    """Return the row of repeated runs: rates, and medians of the CPU time in this process and in others."""
    cpu = {"here": statistics.median(sample.cpu_us for sample in samples)}
    cpu |= {name: statistics.median(values) for name, values in (peer_cpu_us or {}).items()}
    return Row(
        what=what,
        n=samples[0].n,
        values=[sample.rate for sample in samples],
        unit="tasks/s",
        cpu_us=cpu,
        others=statistics.median(sample.others for sample in samples),
        **more,
    )


class Report:
    """Collects rows; `finish` prints and writes them."""

    def __init__(self, name: str, title: str, folder: Path, loop: str, out: Path) -> None:
        self.name = name
        self.title = title
        self.rows: list[Row] = []
        self.remarks: list[str] = []
        self._folder = folder
        self._out = out
        self.machine = describe(folder, loop)
        self.syncs = syncs_ms(folder)
        self._started = time.time()

    @property
    def sync_ms(self) -> float:
        """Median of the run's own fdatasync, so far."""
        return statistics.median(self.syncs)

    def resync(self) -> float:
        """Measure fdatasync again, right beside what is compared with it, and return the median of just that."""
        fresh = syncs_ms(self._folder)
        self.syncs += fresh
        return statistics.median(fresh)

    def add(self, row: Row) -> Row:
        self.rows.append(row)
        print(f"  {row.what}, n = {row.n:,}: {row.median:,.3g} {row.unit}", file=sys.stderr, flush=True)
        return row

    def finish(self) -> None:
        self.syncs += syncs_ms(self._folder)
        terminal = Console()
        console = terminal if terminal.is_terminal else Console(width=_WIDTH)
        console.print(self._table())
        for remark in self.remarks:
            console.print(remark, highlight=False)
        console.print(
            " | ".join(f"{name} {value}" for name, value in self.machine.items()), style="dim", highlight=False
        )
        self._out.mkdir(parents=True, exist_ok=True)
        path = self._out / f"{self.name}.json"
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self.as_json())) + b"\n")
        picture = draw(path)
        console.print(f"{path}{'' if picture is None else f' and {picture}'}", style="dim", soft_wrap=True)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._started)),
            "machine": self.machine,
            "fdatasync_ms": {"p50": self.sync_ms, "p99": percentile(self.syncs, 0.99), "n": len(self.syncs)},
            "rows": [asdict(row) | {"median": row.median, "verdict": row.verdict} for row in self.rows],
            "remarks": self.remarks,
        }

    def _table(self) -> Table:
        table = Table(
            title=self.title, title_justify="left", caption=self._caption(), caption_justify="left", box=box.SIMPLE_HEAD
        )
        table.add_column("what", min_width=24)
        for name in ("n", "median", "spread", "CPU µs/task", "ratio", "wanted", "", "others"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(*_cells(row))
        return table

    def _caption(self) -> str:
        against = sorted({row.against for row in self.rows if row.against})
        ratios = f"ratio: against {'; '.join(against)}. " if against else ""
        return (
            f"{ratios}others: CPUs kept busy by other processes.\n"
            f"fdatasync of 4 KiB here: p50 {self.sync_ms:.2f}, p99 {percentile(self.syncs, 0.99):.2f} ms"
        )


def _cells(row: Row) -> list[str]:
    style = {"goal": "green", "floor": "yellow", "below": "red"}.get(row.verdict, "")
    return [
        row.what + (f"\n  [dim]{row.note}[/dim]" if row.note else ""),
        f"{row.n:,}",
        f"{_figure(row.median)} {row.unit}",
        f"{_figure(min(row.values))}-{_figure(max(row.values))}",
        "\n".join(
            f"{name} {value:.1f}" if len(row.cpu_us) > 1 else f"{value:.1f}" for name, value in row.cpu_us.items()
        ),
        "" if row.ratio is None else f"{row.ratio:.2f}",
        _wanted(row),
        f"[{style}]{row.verdict}[/{style}]" if style else "",
        "" if row.others is None else f"{row.others:.2f}",
    ]


def _wanted(row: Row) -> str:
    sign = "≤" if row.lower_is_better else "≥"
    limits = [
        f"{name} {sign} {limit:g}" for name, limit in (("floor", row.floor), ("goal", row.goal)) if limit is not None
    ]
    return ", ".join(limits)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
