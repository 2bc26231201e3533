"""A picture of a run: what each process had over time, with the lines that were fitted."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from proof.soak.verdict import MIB, Course

_PANELS = (
    ("rss", "memory, MiB", MIB),
    ("descriptors", "descriptors", 1),
    ("threads", "threads", 1),
    ("tasks", "asyncio tasks", 1),
    ("file", "file in use, MiB", MIB),
    ("log", "log, MiB", MIB),
)


def draw(courses: Sequence[Course], picture: Path) -> bool:
    """Draw a panel for each quantity, with a curve for each process. False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        print("no picture: matplotlib is not installed", file=sys.stderr)
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(_PANELS) + 1, 1, figsize=(9, 15), sharex=False)
    for (what, label, unit), axis in zip(_PANELS, axes, strict=False):
        for course in courses:
            times = [sample.at for sample in course.samples]
            (curve,) = axis.plot(times, [getattr(s, what) / unit for s in course.samples], label=course.name, lw=1)
            line = course.line(what)
            ends = [course.judged[0].at, course.judged[-1].at]
            axis.plot(
                ends, [(line.start + line.slope * x) / unit for x in ends], color=curve.get_color(), ls="--", lw=1
            )
        axis.set_ylabel(label)
    for course in courses:
        points = [(sample.at, 1000 * t) for sample in course.samples for t in sample.latencies]
        if points:
            axes[-1].plot(*zip(*points, strict=True), ".", ms=2, label=course.name)
    axes[-1].set_ylabel("urgent task, ms")
    axes[-1].set_yscale("log")
    axes[-1].set_xlabel("seconds since the process began; dashed: fitted after the warm-up")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(picture, dpi=100)
    pyplot.close(figure)
    return True
