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
