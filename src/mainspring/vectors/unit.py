"""Vectors from outside: checked, and brought to unit length, so that a dot product is a cosine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from mainspring.errors import InvalidInput, invalid

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ROUNDED: Final = 2.0**-23
"""A vector whose length differs from 1 by less is one that was rounded: it stays as it is to the last bit."""


def unit_rows(named: Sequence[tuple[str, Any]]) -> NDArray[np.float32]:
    """Return one unit-length row for each (name, vector); all must have the length of the first.

    A vector is anything of shape (dim,) or (1, dim). The length is taken in double precision.

    Returns: float32, shape (len(named), dim).
    Raises: InvalidInput: names the vector that is not numbers, not finite, zero, or of another length.
    """
    import numpy as np

    rows = [_row(name, value) for name, value in named]
    dim = rows[0].size
    for (name, _), row in zip(named, rows, strict=True):
        if row.size != dim:
            raise wrong_dimension(name, row.size, f"{named[0][0]} has {dim}")
    matrix = np.stack(rows)
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.sqrt(np.einsum("ij,ij->i", matrix, matrix))
    for (name, value), length in zip(named, lengths.tolist(), strict=True):
        if not 0 < length < math.inf:
            why = "has no length" if length == 0 else "is not finite"
            raise invalid(name, value, f"{why} and points nowhere", "leave it out, or embed a text that says something")
    lengths[np.abs(lengths - 1) < _ROUNDED] = 1.0
    units: NDArray[np.float32] = (matrix / lengths[:, None]).astype("<f4")
    return units


def exact_scores(query: NDArray[np.float32], vectors: NDArray[np.float32]) -> list[float]:
    """Return the cosines of a unit-length query with unit-length rows, in double precision.

    Equal vectors get equal scores, wherever they lie and whatever lies beside them.
    """
    import numpy as np

    scores: list[float] = np.clip(
        np.einsum("ij,j->i", vectors.astype(np.float64), query.astype(np.float64)), -1.0, 1.0
    ).tolist()
    return scores


def margin(dim: int) -> float:
    """Return how far two dot products of unit vectors may be off in single precision, in any order of summing up.

    Source: N. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd edition 2002, section 3.1.
    """
    return 2 * dim * 2.0**-24


def wrong_dimension(name: str, dim: int, against: str) -> InvalidInput:
    return InvalidInput(
        f"{name} has {dim} dimensions but {against}; use vectors of the same model, or another collection",
        field=name,
        value=dim,
    )


def _row(name: str, value: Any) -> NDArray[np.float64]:
    import numpy as np

    try:
        given = np.asarray(value)
        if given.dtype.kind == "c":
            raise invalid(name, value, "is complex", "pass real numbers, shape (dim,)")
        row = given.astype(np.float64, copy=False)
    except (TypeError, ValueError) as exc:
        raise invalid(name, value, f"is no vector ({exc})", "pass numbers, shape (dim,)") from exc
    if row.ndim == 2 and len(row) == 1:
        row = row[0]  # what embedding a single text gives
    if row.ndim != 1 or row.size == 0:
        raise invalid(name, value, f"has the shape {row.shape}", "pass numbers, shape (dim,)")
    return row
