"""What a group of tasks may do."""

from __future__ import annotations

import msgspec


class GroupLimit(msgspec.Struct, frozen=True, kw_only=True):
    """A limit as it is set, and what it counts now."""

    group: str
    namespace: str | None = None  # None: tasks of the group in all namespaces count together
    concurrency: int | None = None  # claimed and running tasks at once; None: any number
    held: int = 0  # tasks that are claimed or run now
