"""A process that holds models for others: says what it has done, and does what it is told, line by line."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from mainspring.config import MIB
from mainspring.errors import ResourceLimitExceeded
from mainspring.models import ModelManager
from mainspring.resources.machine import Machine
from mainspring.resources.memory import Memory


class Echo:
    """A model."""

    def infer(self, inputs: list[object]) -> list[object]:
        return list(inputs)


def manager_on(folder: Path, *, budget: int, wait_s: float = 30.0) -> ModelManager:
    """A manager that shares a budget of so many MiB with all others on the folder; its models take 40 MiB each."""
    manager = ModelManager(memory=Memory(budget * MIB, Machine(folder), wait_s=wait_s))
    for name in "abc":
        manager.register(name, Echo, memory_bytes=40 * MIB)
    return manager


def forked() -> int:
    """Return the number of a child that stays until it is killed, once it has let go of what was open."""
    ear, mouth = os.pipe()
    if not (child := os.fork()):
        os.write(mouth, b".")
        signal.pause()
    os.read(ear, 1)
    return child


def main(folder: str, budget: str) -> None:
    """Commands: `load NAME`, `use NAME` (until the next line comes), `pin NAME`, `bytes`, `fork`, `reset`."""
    manager = manager_on(Path(folder), budget=int(budget))
    print("ready", flush=True)
    for line in sys.stdin:
        command, _, name = line.strip().partition(" ")
        try:
            if command == "load":
                manager.warm(name)
            elif command == "use":
                with manager.acquire(name):
                    print("using", flush=True)
                    sys.stdin.readline()
            elif command == "pin":
                manager.pin(name)
            elif command == "reset":
                for one in "abc":
                    manager.unpin(one)
                    manager.evict(one)
            answer: object = "done"
            if command == "bytes":
                answer = manager.loaded_bytes // MIB
            elif command == "fork":
                answer = forked()
            print(answer, flush=True)
        except ResourceLimitExceeded as exc:
            print(f"refused: {exc}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
