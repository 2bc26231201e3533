"""What a model's folder says of it beside its files: `mainspring.json`."""

from __future__ import annotations

from pathlib import Path

import msgspec

from mainspring.errors import InvalidInput, invalid
from mainspring.tasks import CostRate, Rate
from mainspring.tasks.limits import concurrency_of

MANIFEST = "mainspring.json"
_EXAMPLE = 'write it as {"limits": {"concurrency": 2, "rate": "60/m"}}'


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the tasks of a model may do, in all processes on a store together."""

    concurrency: int | None = None  # claimed or running at once; None: any number
    rate: str | None = None  # attempts that may begin in a time, as "60/m"; None: any number
    cost_rate: str | None = None  # what those that begin may cost in a time, as "90000/m"; None: any amount

    @property
    def parsed_rate(self) -> Rate | None:
        return None if self.rate is None else Rate.parse(self.rate, "rate")

    @property
    def parsed_cost_rate(self) -> CostRate | None:
        return None if self.cost_rate is None else CostRate.parse(self.cost_rate, "cost_rate")

    def __bool__(self) -> bool:
        return self != Limits()


class _Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    limits: Limits = Limits()


def checked(limits: Limits, where: str = "") -> Limits:
    """Return limits that can be kept. Raises InvalidInput with the field that can't be."""
    at_once = concurrency_of(limits.concurrency, f"{where}concurrency")
    if limits.rate is not None:
        Rate.parse(limits.rate, f"{where}rate")
    if limits.cost_rate is not None:
        CostRate.parse(limits.cost_rate, f"{where}cost_rate")
    return msgspec.structs.replace(limits, concurrency=at_once)


def read_limits(folder: Path) -> Limits:
    """Return what the manifest in a model's folder declares; without one nothing. Raises: InvalidInput."""
    path = folder / MANIFEST
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return Limits()
    except OSError as exc:
        raise invalid("manifest", str(path), f"can't be read ({exc})", "make it readable, or take it away") from exc
    try:
        return checked(msgspec.json.decode(raw, type=_Manifest).limits, "limits.")
    except msgspec.DecodeError as exc:
        raise invalid("manifest", str(path), f"is broken ({exc})", _EXAMPLE) from exc
    except InvalidInput as exc:
        raise InvalidInput(f"{path}: {exc}", field=exc.field, value=exc.value) from exc
