"""How much memory is in use that no attempt of this process has reserved."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mainspring.environment import Environment
from mainspring.execution.executor import TaskExecutor
from mainspring.resources.monitor import ResourceUsage, resident_bytes
from mainspring.tasks.needs import Need


class Strangers:
    """Judges that once for each sample of the machine. Belongs to the event loop."""

    def __init__(self, executor: TaskExecutor, env: Environment) -> None:
        self.comes_back = 0.0
        """Of their bytes, what attempts use beyond what they have reserved of it: it goes with them."""
        self._executor = executor
        self._env = env
        self._at_rest: int | None = None  # resident bytes of this process when nothing was reserved within it
        self._sampled: ResourceUsage | None = None
        self._others = 0.0  # bytes, as of that sample

    def memory(self, usage: ResourceUsage, reserved: Mapping[bytes, Need], inside: Collection[bytes]) -> float:
        """Return the bytes in use that are not part of a reservation: those of strangers, and of this process itself.

        A child that rests is no user: the next attempt that needs memory uses it, or has it ended. Of one that runs,
        with the programs that it has started, no more than it has reserved is its own.

        Args:
            reserved: by the attempts that have reserved something.
            inside: those of them that run within this process.
        """
        if usage is self._sampled:
            return self._others
        children, own_pid = self._executor.children(), self._env.pid()
        held = resident_bytes({own_pid: True, **{pid: id is not None for pid, id in children.items()}})
        if held is None:  # before the first look none of it is known to be own
            return usage.memory_bytes if self._sampled is None else self._others
        self._sampled = usage
        own = beyond = 0.0
        for pid, id in children.items():
            much = held[pid] if id is None else reserved.get(id, {}).get("memory", 0.0)
            own += min(much, held[pid])
            if much:  # whoever comes after it waits for what is set aside
                beyond += max(0.0, held[pid] - much)
        if not inside or self._at_rest is None:
            self._at_rest = held[own_pid]
        of_inside = sum(reserved[id].get("memory", 0.0) for id in inside)
        own += min(of_inside, max(0, held[own_pid] - self._at_rest))
        self._others = max(0.0, usage.memory_bytes - own)
        self.comes_back = min(beyond, self._others)
        return self._others
