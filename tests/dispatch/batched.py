"""Handlers whose tasks run together in child processes."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pydantic

from mainspring import Context, RetryAfter


def lengths(texts: list[str]) -> list[int]:
    if "poison" in texts:
        raise ValueError("poison")
    if "death" in texts:
        os._exit(3)
    if "large" in texts and len(texts) > 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if "slow" in texts:
        time.sleep(60)
    return [len(text) for text in texts]


@dataclass
class Doc:
    text: str
    tags: list[str] = field(default_factory=list)


class Row(msgspec.Struct):
    text: str
    tags: list[str] = []


class Page(pydantic.BaseModel):
    text: str
    tags: list[str] = []


def sizes(docs: list[Doc], unit: int = 1) -> list[int]:
    return [len(doc.text) * unit for doc in docs]


def row_sizes(docs: list[Row], unit: int = 1) -> list[int]:
    return [len(doc.text) * unit for doc in docs]


def page_sizes(docs: list[Page], unit: int = 1) -> list[int]:
    return [len(doc.text) * unit for doc in docs]


def burn(seconds: list[float]) -> list[float]:
    """Use so much of the CPU for the whole call; each item hears how much that was."""
    began = time.thread_time()
    while (used := time.thread_time() - began) < seconds[0]:
        pass
    return [used] * len(seconds)


def note(folder: str, items: list[int], contexts: list[Context]) -> None:
    """Leave word of a call: its items, and which attempt of theirs it is."""
    Path(folder, f"{''.join(map(str, items))}.{contexts[0].attempt}").touch()


def noted(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def part_waits(items: list[int], how: str, folder: str, contexts: list[Context]) -> list[int]:
    """All four together raise. Those with the first wait until they are asked to stop, which they do as said by `how`;
    with "dies" all four die, and those with the last wait."""
    note(folder, items, contexts)
    if len(items) == 4:
        if how.startswith("dies"):
            os._exit(3)
        raise ValueError("not all at once")
    if (3 if how.startswith("dies") else 0) in items:
        while how == "dies, deaf" or not contexts[0].cancelled:
            time.sleep(0.001)
        if how == "raises":
            raise ValueError("asked to stop")
    return items


def part_pauses(items: list[int], how: str, folder: str, contexts: list[Context]) -> list[Any]:
    """In the first attempt all four together raise, or die and half of them too; then a part with the first asks for
    a pause, for all or in its place."""
    note(folder, items, contexts)
    if contexts[0].attempt > 1:
        return items
    if how.startswith("dies") and len(items) > (1 if "twice" in how else 2):
        os._exit(3)
    if len(items) == 4:
        raise ValueError("not all at once")
    if 0 in items and "place" not in how:
        raise RetryAfter(0.05)
    return [RetryAfter(0.05) if item == 0 else item for item in items]


def until_asked(items: list[int], contexts: list[Context]) -> list[int]:
    while not contexts[0].cancelled:
        time.sleep(0.001)
    return items


def last_waits(items: list[int], how: str, folder: str, contexts: list[Context]) -> list[Any]:
    """All four together raise. Then those with the last wait until the test lets them go on, or they are asked to stop,
    which the deaf don't hear of."""
    if how == "dies" and Path(folder, "01.1").exists() and 0 in items:
        raise ValueError("this was done before")
    note(folder, items, contexts)
    raise_for(items, how, contexts[0].attempt)
    while waits(items, how, folder):
        if contexts[0].cancelled and "deaf" not in how:
            break
        time.sleep(0.001)
    return results(items, how)


def waits(items: list[int], how: str, folder: str) -> bool:
    """With "both wait" the first half waits for the test alone, and the last one until it is asked to stop, or told to
    where it is deaf to that."""
    both_wait = how.startswith("both wait")
    if both_wait and 3 in items:
        return not Path(folder).with_name("stop").exists()
    return (0 if both_wait else 3) in items and not Path(folder).with_name("go").exists()


def raise_for(items: list[int], how: str, attempt: int) -> None:
    """All four together raise; "bad" has the first one fail alone, "dies" the last half die."""
    if how == "burns":
        burn([0.2])
    if len(items) == 4 or (0 in items and (how == "bad" or (how == "bad once" and attempt == 1))):
        raise ValueError("not all at once")
    if 3 in items and how == "dies":
        os._exit(3)


def results(items: list[int], how: str) -> list[Any]:
    is_large = how == "large" or (how == "large first" and 0 in items)
    return [bytes(300_000 + item) for item in items] if is_large else items
