"""What a run of many cases came to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from proof.faults.judge import Promises
from proof.faults.replay import Image
from proof.figures import Finding


@dataclass(kw_only=True, slots=True)
class Tally:
    cases: int = 0
    promises: int = 0  # acknowledged tasks and told ends that were looked for, over all cases
    refusals: int = 0
    doubts: int = 0
    recovered: int = 0
    violations: Counter[str] = field(default_factory=Counter)
    first: str = ""  # what to look at
    image: Image = field(default_factory=dict)  # in these files

    def add(self, found: list[Finding], promises: Promises, where: str, image: Image) -> None:
        self.cases += 1
        self.promises += len(promises.stored) + len(promises.final)
        if found and not self.first:
            self.first, self.image = f"{where}: {found[0].kind}: {found[0].what}", image
        self.violations.update(violation.kind for violation in found)

    def __iadd__(self, other: Tally) -> Tally:
        self.cases += other.cases
        self.promises += other.promises
        self.refusals += other.refusals
        self.doubts += other.doubts
        self.recovered += other.recovered
        self.violations += other.violations
        if other.first and not self.first:
            self.first, self.image = other.first, other.image
        return self
