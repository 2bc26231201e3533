"""Whose it is what a call of a model has used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mainspring.models import spending
from mainspring.processors.base import Item


@contextmanager
def charged(items: Sequence[Item], sizes: Sequence[int]) -> Iterator[None]:
    """Charge the attempts for what models use in here, however it ends: each by the size of its item."""
    with spending.spending() as spent:
        try:
            yield
        finally:
            if not any(sizes):
                sizes = [1] * len(items)
            whole = sum(sizes)
            for item, size in zip(items, sizes, strict=True):
                cost = None if spent.cost is None else spent.cost * size / whole
                moved = None if spent.traffic is None else round(spent.traffic.bytes * size / whole)
                item.context.used(cost, moved)
