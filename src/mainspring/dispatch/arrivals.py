"""Whose tasks came to a batch handler lately, and whether more of them can come."""

from __future__ import annotations

from collections.abc import Iterable

from mainspring.store.base import Claimed

_MOST = 256


class Arrivals:
    """The classes that came within the time that a batch waits for others."""

    def __init__(self, within_s: float) -> None:
        self._within_s = within_s
        self._came: dict[tuple[str, str, str], tuple[float, bool]] = {}  # when, and if no more may; latest last

    def came(self, claim: Claimed, now: float) -> None:
        if not self._within_s:
            return
        self._came.pop(claim.class_key, None)
        self._came[claim.class_key] = now, claim.is_last
        if len(self._came) > _MOST:
            del self._came[next(iter(self._came))]

    def ended(self, claims: Iterable[Claimed]) -> None:
        """Each leaves a place of its group."""
        for claim in claims:
            if (came := self._came.get(claim.class_key)) is not None:
                self._came[claim.class_key] = came[0], False

    def are_all(self, now: float, running: Iterable[Claimed]) -> bool:
        """Whether waiting is in vain: the groups of all that came lately are at their limits, and none of it runs.

        What has not come for as long as a batch waits is not waited for.
        """
        classes = set()
        for class_key, (came, is_last) in reversed(self._came.items()):
            if came < now - self._within_s:
                break
            if not is_last:
                return False
            classes.add(class_key)
        return bool(classes) and not any(claim.class_key in classes for claim in running)
