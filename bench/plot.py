"""Pictures of what the benchmarks left: `python -m bench.plot` draws all of bench/out/, or the files that are named."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

_COLOURS = {"goal": "#2a9d5c", "floor": "#e0a526", "below": "#c8443a", "": "#5b7aa5"}


def draw(path: Path) -> Path | None:
    """Draw a report's rows as bars, a panel for each unit, with the spread of the runs. None without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        print("no picture: matplotlib is not installed", file=sys.stderr)
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    report = msgspec.json.decode(path.read_bytes())
    panels: dict[str, list[dict[str, Any]]] = {}
    for row in report["rows"]:
        panels.setdefault(row["unit"], []).append(row)
    heights = [len(rows) for rows in panels.values()]
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(9, 1.4 + 0.42 * sum(heights) + 0.7 * len(panels)), squeeze=False, height_ratios=heights
    )
    for (unit, rows), axis in zip(panels.items(), axes[:, 0], strict=True):
        _panel(axis, unit, rows)
    figure.suptitle(report["title"], x=0.01, ha="left")
    sync, machine = report["fdatasync_ms"], report["machine"]
    figure.text(0.01, 0.01, f"{machine['cpu']}; {machine['disk']}; fdatasync p50 {sync['p50']:.2f} ms", size=7)
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    picture = path.with_suffix(".png")
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)
    return picture


def _panel(axis: Any, unit: str, rows: list[dict[str, Any]]) -> None:
    names = [f"{row['what']}, {row['n']:,}" for row in rows]
    medians = [row["median"] for row in rows]
    spread = [
        [row["median"] - min(row["values"]) for row in rows],
        [max(row["values"]) - row["median"] for row in rows],
    ]
    axis.barh(range(len(rows)), medians, xerr=spread, color=[_COLOURS[row["verdict"]] for row in rows], capsize=2)
    axis.set_yticks(range(len(rows)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(unit)
    for place, row in enumerate(rows):
        ratio = "" if row["ratio"] is None else f"  ({row['ratio']:.2f} x)"
        figure = f"{row['median']:,.0f}" if row["median"] >= 100 else f"{row['median']:.2f}"
        axis.annotate(f"  {figure}{ratio}", (max(row["values"]), place), va="center", fontsize=7)
    axis.margins(x=0.2)


if __name__ == "__main__":
    given = [Path(name) for name in sys.argv[1:]] or sorted((Path(__file__).parent / "out").glob("*.json"))
    for file in given:
        print(draw(file))
