"""What people read after the demo."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mainspring.cli.screen import Screen, size, table

if TYPE_CHECKING:
    from rich.table import Table

    from mainspring.cli.demo.quality import Quality
    from mainspring.cli.demo.run import Answer, DemoReport, Found, Meanwhile
    from mainspring.cli.ledger import TypeFigures

_SNIPPET = 80  # characters of an answer


def show(report: DemoReport, screen: Screen) -> None:
    """Print the report for people."""
    for line in _index_lines(report):
        screen.text(line)
    if report.meanwhile:
        screen.text("\nAsked at high priority while the index was being made:")
        screen.draw(_meanwhile_table(report.meanwhile))
    if report.answers:
        screen.text("\nSome answers from the whole collection (* marks what the label names):")
        for answer in report.answers:
            screen.text("\n".join(_answer_lines(answer)))
    if report.quality is not None:
        screen.text(f"\n{report.quality.n} labelled questions, answered together in {report.search_seconds:.1f} s:")
        screen.draw(_quality_table(report.quality, report.baseline))
    if report.tasks:
        screen.text("\nTasks of this run:")
        screen.draw(_task_table(report.tasks))
    screen.text(f"\nPeak memory {size(report.peak_memory_bytes)}; {report.seconds:.1f} s, of them {_parts(report)}.")


def _parts(report: DemoReport) -> str:
    return f"{report.setup_seconds:.1f} s to set up and {report.index.seconds:.1f} s to index"


def _index_lines(report: DemoReport) -> list[str]:
    index = report.index
    lines = [f"not indexed: {failed.source} ({failed.step}): {failed.reason}" for failed in index.failed]
    rate = f" ({index.chunks:,} chunks, {index.chunks / index.seconds:.0f} a second)" if index.chunks else ""
    lines.append(
        f"\n{index.documents:,} documents: {index.indexed:,} computed{rate}, {index.unchanged:,} reused, "
        f"{index.removed:,} removed, {len(index.failed):,} failed"
    )
    if index.resumed:
        lines.append(
            f"{index.resumed:,} of those computed were begun by an earlier run, whose finished steps were reused"
        )
    return lines


def _meanwhile_table(asked: list[Meanwhile]) -> Table:
    rows = [
        (one.answer.question, _named(best), f"{best.score:.2f}", f"{one.seconds * 1000:.0f} ms", f"{one.waiting:,}")
        for one in asked
        for best in one.answer.found[:1]
    ]
    right = ("score", "latency", "tasks waiting")
    return table(("question", "best answer", *right), rows, right=right)


def _answer_lines(answer: Answer) -> list[str]:
    found = [f"    {one.score:.2f}  {_named(one)}  {_snippet(one)}\n          {one.source}" for one in answer.found]
    return [f"  {answer.question}", *found]


def _named(found: Found) -> str:
    return f"{found.name}{'*' if found.is_right else ''}"


def _snippet(found: Found) -> str:
    """Return the beginning of the text, without the name that a document begins with."""
    text = " ".join(found.text.removeprefix(found.name).split())
    return text if len(text) <= _SNIPPET else f"{text[: _SNIPPET - 3]}..."


def _quality_table(quality: Quality, baseline: Quality | None) -> Table:
    rows = [("vector search", f"{quality.recall_at_5:.3f}", f"{quality.mrr_at_10:.3f}")]
    if baseline is not None:
        rows.append(("keyword search (BM25)", f"{baseline.recall_at_5:.3f}", f"{baseline.mrr_at_10:.3f}"))
    return table(("", "recall@5", "MRR@10"), rows, right=("recall@5", "MRR@10"))


def _task_table(tasks: list[TypeFigures]) -> Table:
    columns = ("type", "completed", "failed", "retries", "p50", "p95", "p95 in queue", "CPU")
    rows = [
        (
            found.type,
            f"{found.completed:,}",
            f"{found.failed:,}",
            f"{found.retries:,}",
            _time(found.duration_p50),
            _time(found.duration_p95),
            _time(found.queue_wait_p95),
            f"{found.cpu_time:.1f} s",
        )
        for found in tasks
    ]
    return table(columns, rows, right=columns[1:])


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
