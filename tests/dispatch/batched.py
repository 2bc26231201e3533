"""Handlers whose tasks run together in child processes."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field

import msgspec
import pydantic


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
