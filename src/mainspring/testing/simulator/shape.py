"""What one simulated run is like, drawn from its seed: how many processes, how much work, which faults."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import structs

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
RATES: Final = ("2/0.1s", "3/0.5s", "8/s", "1/0.1s")
_SHARES: Final[tuple[dict[tuple[str, str], float], ...]] = (
    {("", "a"): 1.0, ("", "b"): 1.0},
    {("", "a"): 2.0, ("n", ""): 1.0},
    {("", "a"): 0.5, ("", "b"): 3.0, ("n", ""): 1.0},
)
_LOSES: Final = {"bells", "disk", "outage"}
_AGES: Final = 0.2
"""So many worlds last for hours or days, but for some:"""
_UNAGED: Final = {"clock"}
"""How old anything is would be a matter of opinion there. What strikes in the long ones shows only where nothing else
tells of it later, as a sleep does."""
_NEVER_S: Final = 3_600.0
"""Between safety looks: longer than any world without sleeps lasts."""
_SLEEPS: Final = (600.0, 3_000.0, 10_000.0, 100_000.0)
_KEEP: Final = (2.0, 1_000.0, 5_000.0, 50_000.0)


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
    rates: dict[str, str] = {}  # and begin in a time
    shares: dict[tuple[str, str], float] = {}  # weights, by namespace and group
    change_every_s: float = 0.0  # how often one of these changes; 0: never
    sleeps_s: tuple[float, ...] = ()  # how long the machine sleeps, one time after the other, while some tasks wait

    @property
    def has_groups(self) -> bool:
        return bool(self.limits or self.rates or self.shares or self.change_every_s)

    @property
    def waits_for_word(self) -> bool:
        """Whether no safety look comes while it lasts, and processes have one clock."""
        return self.config.manager.processing_interval == _NEVER_S and "clock" not in self.faults

    @property
    def strikes_rarely(self) -> bool:
        """Whether whoever misses a word must just then have waited for it."""
        return self.faults in _LONG

    @property
    def has_rations(self) -> bool:
        """Whether more than limits is set, or any of it changes."""
        return bool(self.shares or self.change_every_s)

    def __str__(self) -> str:
        manager = self.config.manager
        codes = "two versions of the code; " if self.rolls_out else ""
        limits = "".join(f"at most {n} of group {group}; " for group, n in self.limits.items())
        limits += "".join(f"{rate} of group {group}; " for group, rate in self.rates.items())
        limits += f"shares {self.shares}; " if self.shares else ""
        limits += f"changes every {self.change_every_s} s; " if self.change_every_s else ""
        limits += f"sleeps of {', '.join(f'{s / 3600:g} h' for s in self.sleeps_s)}; " if self.sleeps_s else ""
        return (
            f"{self.processes} processes with {self.clients} clients, {manager.async_slots} slots on the loop and "
            f"{manager.thread_slots} threads; {self.tasks} tasks; {codes}{limits}"
            f"faults: {', '.join(self.faults) or 'none'}"
        )


def draw(rng: Random, rationing: Random, ageing: Random) -> Shape:
    """`rationing`: from which comes what groups may have beside their limits; `ageing`: whether it lasts for hours or
    days. Most worlds have nothing of either."""
    shape = _draw(rng, rationing)
    if shape.faults in _LONG or _UNAGED & {*shape.faults} or ageing.random() >= _AGES:
        return shape
    config, choose = shape.config, ageing.choice
    store = structs.replace(config.store, keep_completed_s=choose(_KEEP), keep_failed_s=choose(_KEEP))
    manager = structs.replace(config.manager, processing_interval=1.0)  # nothing else tells of a sleep
    return structs.replace(
        shape,
        sleeps_s=tuple(choose(_SLEEPS) for _ in range(choose((1, 2)))),
        config=structs.replace(config, store=store, manager=manager),
    )


def _draw(rng: Random, rationing: Random) -> Shape:
    faults = rng.choice(_PROFILES)
    has_more = faults not in _LONG and rationing.random() < 0.5
    return Shape(
        # Processes that were opened before and after a jump of the wall clock have store clocks that differ by it.
        processes=1 if "clock" in faults else rng.choice((2, 2, 2, 3) if faults in _LONG else (1, 1, 2, 2, 2, 3)),
        clients=rng.choice((1, 2, 3)),
        tasks=rng.choice((10, 14) if faults in _LONG else (4, 8, 12)),
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
                processing_interval=rng.choice((1.0, 0.25) if _LOSES & {*faults} else (1.0, _NEVER_S, _NEVER_S)),
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
        rates={group: rationing.choice(RATES) for group in rationing.choice(("", "a", "ab"))} if has_more else {},
        shares=rationing.choice(({}, *_SHARES)) if has_more else {},
        change_every_s=rationing.choice((0.0, 0.05, 0.3)) if has_more else 0.0,
    )
