"""The queries of the dashboard, read by a parser of Prometheus' own language."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import promql_parser as promql

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana.json"
_ADDED = {"instance", "job"}
"""Labels that Prometheus gives to all that it scrapes."""


class Selected(NamedTuple):
    """What a query takes of one metric."""

    name: str
    labels: frozenset[str]  # that it groups or chooses by
    chosen: tuple[tuple[str, str], ...]  # labels that must have this value
    is_rated: bool  # it is taken as a rate, which means nothing for what goes up and down


def queries() -> list[str]:
    """Return each query, with the interval that Grafana puts in."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"].replace("$__rate_interval", "5m") for panel in panels for target in panel["targets"]]


def selected(query: str) -> list[Selected]:
    """Raises ValueError: Prometheus could not read it."""
    return list(_within(promql.parse(query), frozenset(), is_rated=False))


def _within(expr: object, grouped: frozenset[str], *, is_rated: bool) -> Iterator[Selected]:
    if isinstance(expr, promql.VectorSelector):
        matchers = expr.matchers.matchers
        chosen = tuple((one.name, one.value) for one in matchers if one.op == promql.MatchOp.Equal)
        labels = (grouped | {one.name for one in matchers}) - _ADDED
        yield Selected(expr.name or "", labels, chosen, is_rated)
    elif isinstance(expr, promql.MatrixSelector):
        yield from _within(expr.vector_selector, grouped, is_rated=is_rated)
    elif isinstance(expr, promql.AggregateExpr):
        yield from _within(expr.expr, frozenset(expr.modifier.labels if expr.modifier else ()), is_rated=is_rated)
    elif isinstance(expr, promql.BinaryExpr):
        for side in (expr.lhs, expr.rhs):
            yield from _within(side, grouped, is_rated=is_rated)
    elif isinstance(expr, promql.Call):
        for argument in expr.args:
            yield from _within(argument, grouped, is_rated=is_rated or expr.func.name == "rate")
    elif not isinstance(expr, promql.NumberLiteral):
        raise AssertionError(f"{type(expr).__name__} is new here: say what it takes of its metrics")
