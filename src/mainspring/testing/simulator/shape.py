"""What one simulated run is like, drawn from its seed: how many processes, how much work, which faults."""

from __future__ import annotations

from typing import Final

import msgspec

from mainspring.config import EngineConfig, ExecutorConfig, StoreConfig, TaskManagerConfig
from mainspring.environment import Random

FAULTS: Final = ("kill", "untold", "restart", "disk", "outage", "clock", "stall", "swizzle", "bells")
_PROFILES: Final[tuple[tuple[str, ...], ...]] = (
    (),  # without faults too: only then is what is late somebody's mistake
    (),
    ("kill",),
    ("kill", "restart"),
    ("restart",),
    ("untold",),
    ("untold", "restart"),
    ("restart",),
    ("untold",),
    ("disk",),
    ("disk", "outage"),
    ("clock", "kill", "restart"),
    ("stall", "swizzle"),
    ("bells", "kill"),
    tuple(fault for fault in FAULTS if fault != "clock"),
    FAULTS,
)
_LONG: Final = (("restart",), ("untold",), ("untold", "restart"))
"""What strikes in these is rare: who misses a word must just then have waited for it."""
_LOSES: Final = {"bells", "disk", "outage"}


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    processes: int
    clients: int  # of each process
    tasks: int  # that clients submit, at least
    span_s: float  # how long clients and faults go on, at most
    faults: tuple[str, ...]
    fault_every_s: float
    rolls_out: bool  # processes with the new code of a handler live beside those with the old
    config: EngineConfig
    limits: dict[str, int]  # how many tasks of a group may be held

    def __str__(self) -> str:
        manager = self.config.manager
        codes = "two versions of the code; " if self.rolls_out else ""
        limits = "".join(f"at most {n} of group {group}; " for group, n in self.limits.items())
        return (
            f"{self.processes} processes with {self.clients} clients, {manager.async_slots} slots on the loop and "
            f"{manager.thread_slots} threads; {self.tasks} tasks; {codes}{limits}"
            f"faults: {', '.join(self.faults) or 'none'}"
        )


def draw(rng: Random) -> Shape:
    faults = rng.choice(_PROFILES)
    return Shape(
        # Processes that were opened before and after a jump of the wall clock have store clocks that differ by it.
        processes=1 if "clock" in faults else rng.choice((2, 2, 3) if faults in _LONG else (1, 1, 2, 2, 3)),
        clients=rng.choice((1, 2, 3)),
        tasks=rng.choice((20, 30) if faults in _LONG else (5, 10, 15, 20, 30)),
        span_s=rng.choice((1.0, 3.0, 10.0)),
        faults=faults,
        fault_every_s=rng.choice((0.02, 0.06, 0.2)),
        rolls_out=rng.random() < 0.5,
        config=EngineConfig(
            executor=ExecutorConfig(
                child_prefetch=0
            ),  # no child is ever started: slots for what is sent ahead are in vain
            store=StoreConfig(
                durability="relaxed",  # what a power cut may take is tested where there is a disk to cut
                inline_bytes=rng.choice((64 * 1024, 64 * 1024, 64 * 1024, 150)),
                ageing_s=rng.choice((60.0, 60.0, 1.0)),
                keep_completed_s=rng.choice((3600.0, 3600.0, 3600.0, 2.0)),
            ),
            manager=TaskManagerConfig(
                queue_size=rng.choice((None, None, None, 8)),
                batch_size=rng.choice((1, 3, 512)),
                # Without the safety look every wake-up that is lost shows as a standstill. Some faults may lose them.
                processing_interval=rng.choice((1.0, 0.25) if _LOSES & {*faults} else (1.0, 3600.0, 3600.0)),
                async_slots=rng.choice((1, 2, 3, 6)),
                thread_slots=rng.choice((1, 2)),
                process_slots=1,
                prefetch_s=rng.choice((0.02, 10.0)),  # with much of it claims wait for slots, where cancel finds them
                prefetch_max=rng.choice((1, 4, 2048)),
                grace_s=rng.choice((0.2, 2.0)),
                drain_s=rng.choice((0.0, 0.3, 30.0)),
            ),
        ),
        limits=rng.choice(
            ({}, {"a": 1}, {"a": 1, "b": 1}) if faults in _LONG else ({}, {}, {"a": 1}, {"a": 2, "b": 1})
        ),
    )
