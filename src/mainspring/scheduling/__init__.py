"""The way in: whether a task may enter now, and why one that did is not running yet."""

from mainspring.scheduling.scheduler import TaskScheduler

__all__ = ["TaskScheduler"]
