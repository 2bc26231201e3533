"""Handlers that write to the log, and an engine for a worker."""

from __future__ import annotations

import logging
import threading

from mainspring import Context, Engine

engine = Engine()


def tell(secret: str, ctx: Context) -> None:
    ctx.log.info("told %d characters", len(secret), extra={"length": len(secret), "of": ctx})


def named(ctx: Context) -> None:
    """Give fields that have the names of the engine's own."""
    ctx.log.info("named", extra={"task_id": "mine", "attempt": 9, "type": "mine", "group": "mine", "trace_id": "mine"})


def fail(ctx: Context) -> None:
    try:
        raise ValueError("what went wrong")
    except ValueError:
        ctx.log.exception("it failed")


def aside(ctx: Context) -> None:
    """Write from a thread that the handler has started."""
    helper = threading.Thread(target=ctx.log.info, args=("aside",))
    helper.start()
    helper.join()


def library() -> None:
    logging.getLogger("some.library").warning("from afar", extra={"type": "GET", "group": "pool"})


for function in (tell, fail, aside):
    engine.task(lane="process", retry=0)(function)
engine.task(lane="thread")(library)
