"""Ends of futures whose waiter may have gone."""

from __future__ import annotations

import asyncio
from typing import Any


def resolve(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_result(None)


def fail(future: asyncio.Future[Any], exc: BaseException) -> None:
    if not future.done():
        future.set_exception(exc)


async def outlasted(future: asyncio.Future[Any]) -> bool:
    """Wait for what another thread does, which no cancel ends; raises what it fails with.

    Returns: whether the wait was cancelled meanwhile. Whoever waited then undoes what was done, and is cancelled.
    """
    is_cancelled = False
    while not future.done():
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError:
            is_cancelled = True
    future.result()
    return is_cancelled
