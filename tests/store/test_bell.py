"""The bell between processes on one file, here two of them in one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.kit import SqliteFactory, opened

from mainspring.environment import SYSTEM
from mainspring.store.bell import HELLO, WELCOME
from mainspring.store.sqlite.bell import FileBell

pytestmark = pytest.mark.anyio


async def test_whoever_comes_is_welcomed(tmp_path: Path) -> None:
    """A newcomer learns from when on it is told: what ended before, it has to look up."""
    heard: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
    old = FileBell(tmp_path, "old", lambda kind, payload: heard.put_nowait(("old", kind)), SYSTEM)
    new = FileBell(tmp_path, "new", lambda kind, payload: heard.put_nowait(("new", kind)), SYSTEM)
    old.open(asyncio.get_running_loop())
    new.open(asyncio.get_running_loop())
    try:
        async with asyncio.timeout(60):
            assert [await heard.get(), await heard.get()] == [("old", HELLO), ("new", WELCOME)]
    finally:
        old.close()
        new.close()


async def test_whoever_comes_as_another_goes_is_welcomed(tmp_path: Path) -> None:
    """What ended in a process that did not notice it any more it would never be told."""
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    old = FileBell(tmp_path, "old", lambda kind, payload: None, SYSTEM)
    new = FileBell(tmp_path, "new", lambda kind, payload: heard.put_nowait(kind), SYSTEM)
    old.open(asyncio.get_running_loop())
    new.open(asyncio.get_running_loop())
    try:
        old.close()  # the loop has not turned
        async with asyncio.timeout(60):
            assert await heard.get() == WELCOME
    finally:
        new.close()


async def test_a_welcome_is_followed_by_a_look(tmp_path: Path, monkeypatch: Any) -> None:
    """An end between a process's coming and its being known is found without waiting for the safety look."""
    async with opened(SqliteFactory(tmp_path).make()) as store:
        looked: list[int] = []
        monkeypatch.setattr(store, "look", lambda: looked.append(1))
        store._heard(WELCOME, b"")
        assert looked == [1]
