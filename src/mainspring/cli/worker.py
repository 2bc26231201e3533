"""`worker`: a process that runs tasks until it is told to stop."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer

from mainspring.cli.opening import is_missing, run
from mainspring.cli.options import DEFAULT_STORE, AsJson
from mainspring.cli.screen import Screen
from mainspring.config import EngineConfig
from mainspring.environment import SYSTEM
from mainspring.errors import InvalidInput, TaskError, invalid

if TYPE_CHECKING:
    from mainspring.engine import Engine

logger = logging.getLogger("mainspring.worker")

_Target = Annotated[
    str | None,
    typer.Argument(metavar="MODULE:ENGINE", help="Where the engine is, as mymodule:engine or app.py:engine."),
]
_Store = Annotated[
    str | None,
    typer.Option(
        "--store", envvar="MAINSPRING_STORE", metavar="PATH", help="Work on this file instead of the engine's own."
    ),
]


def worker(
    target: _Target = None,
    builtin: Annotated[
        bool, typer.Option("--builtin", help="Serve the built-in types alone, without a module.")
    ] = False,
    store: _Store = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(metavar="PORT", help="Serve metrics for Prometheus at http://127.0.0.1:PORT/metrics; 0: any."),
    ] = None,
    tracing: Annotated[
        bool, typer.Option("--tracing", help="Make spans for OpenTelemetry; your module says where they go.")
    ] = False,
    log_format: Annotated[
        Literal["text", "json"], typer.Option(help="json: a JSON object for each line of the log, and no other.")
    ] = "text",
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option(help="Which lines of the log are written.")
    ] = "warning",
    as_json: AsJson = False,
) -> None:
    """Run tasks until Ctrl-C or SIGTERM, then let the running ones end; a second signal hands them back at once."""
    is_json_log = log_format == "json"
    screen = Screen(as_json, is_for_programs=is_json_log)
    _log(is_json_log, log_level)
    if builtin == (target is not None):
        raise invalid(
            "MODULE:ENGINE", target, "is one of two ways", "name the module that holds your engine, or give --builtin"
        )
    if as_json:
        screen.keep_stdout()  # before the module is imported: it may print, and so may its handlers
    engine = _built_in(store, tracing) if target is None else _placed(load(target), store, tracing)
    if is_missing(engine.address):
        screen.note(f"makes a new store at {engine.address}")
    run(_work(engine, screen, metrics_port))


def _log(is_json: bool, level: str) -> None:
    """Write the log to stderr as it was asked for."""
    logging.getLogger().setLevel(level.upper())
    if is_json:
        from mainspring.telemetry.logs import JsonFormatter, OfRunningTask

        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter())
        handler.addFilter(OfRunningTask())
        logging.basicConfig(handlers=[handler], force=True)


async def _work(engine: Engine, screen: Screen, metrics_port: int | None) -> None:
    await engine.start()
    async with _metrics(engine, screen, metrics_port):
        await _until_told(engine, screen)


@asynccontextmanager
async def _metrics(engine: Engine, screen: Screen, port: int | None) -> AsyncIterator[None]:
    """Answer scrapes meanwhile, where that was asked for."""
    if port is None:
        yield
        return
    from mainspring.telemetry.metrics import Metrics

    try:
        server = Metrics(engine.manager).serve(port)
    except InvalidInput:
        await engine.stop()
        raise
    if screen.as_json:
        screen.document({"event": "metrics", "port": server.port})
    screen.note(f"metrics at http://127.0.0.1:{server.port}/metrics")
    try:
        yield
    finally:
        await server.close()


async def _until_told(engine: Engine, screen: Screen) -> None:
    # The engine is open, so run() first gives way when its signal handlers stand: only then is it said to be ready.
    asyncio.get_running_loop().call_soon(_ready, engine, screen)
    await engine.run()
    if screen.as_json:
        screen.document({"event": "stopped"})
    logger.info("worker %s has stopped", engine.manager.store.worker_id)
    screen.note("stopped; what had not ended is back in the queue")


def _ready(engine: Engine, screen: Screen) -> None:
    types = sorted(map(str, engine.executor.types))
    worker_id, pid = engine.manager.store.worker_id, SYSTEM.pid()
    logger.info("worker %s (pid %d) serves %s", worker_id, pid, engine.address)
    if screen.as_json:
        screen.document({"event": "ready", "worker": worker_id, "pid": pid, "store": engine.address, "types": types})
    own = ", ".join(kind for kind in types if kind.startswith("custom:"))
    screen.note(f"worker {worker_id} (pid {pid}) serves {own or 'the built-in types'} on {engine.address}")
    screen.note("Ctrl-C lets running tasks end, a second one hands them back")


def _built_in(store: str | None, tracing: bool) -> Engine:
    from mainspring.engine import Engine

    return Engine(store or DEFAULT_STORE, EngineConfig(tracing=tracing))


def _placed(engine: Engine, store: str | None, tracing: bool = False) -> Engine:
    """Return the user's engine, made to work, and on another file if one is named.

    It stays the same object, because handlers may use it; its parts are made anew, because they know their file.
    """
    from mainspring.engine import Engine

    is_lasting = engine.manager.parts.is_lasting
    own = engine.manager.parts.name if is_lasting else DEFAULT_STORE  # nobody else could submit to ":memory:"
    config = msgspec.structs.replace(engine.config, tracing=tracing or engine.config.tracing)
    fresh = Engine(store or own, config)
    for handler in engine.executor.handlers.values():
        fresh.executor.register(handler)
    fresh.models._slots.update(engine.models._slots)
    vars(engine).update(vars(fresh))
    return engine


def load(target: str) -> Engine:
    """Import a module or a file and return the engine in it.

    Raises: InvalidInput: no such module, it can't be imported, or there is no engine of that name.
    """
    from mainspring.engine import Engine

    where, _, name = target.partition(":")
    module = _imported(where, target)
    found = getattr(module, name or "engine", None)
    if not isinstance(found, Engine):
        engines = ", ".join(key for key, value in vars(module).items() if isinstance(value, Engine))
        raise invalid(
            "MODULE:ENGINE",
            target,
            f"{name or 'engine'} is not an Engine there",
            f"use {where}:NAME with one of: {engines}" if engines else "make one: engine = Engine()",
        )
    return found


def _imported(where: str, target: str) -> ModuleType:
    """Import by name, from the working folder too, or by path. Child processes get the same search path."""
    path = Path(where).absolute()
    is_file = where.endswith(".py")
    if is_file and not path.is_file():
        raise invalid("MODULE:ENGINE", target, f"there is no file {path}", "check the path")
    name = path.stem if is_file else where
    folder = str(path.parent if is_file else Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(name)
    except TaskError:
        raise
    except Exception as exc:  # whatever a user's module raises is told to its author
        raise InvalidInput(f"{where} can't be imported: {_where(exc)}", field="MODULE:ENGINE", value=target) from exc
    if is_file and Path(module.__file__ or "").resolve() != path.resolve():
        raise invalid(
            "MODULE:ENGINE", target, f"another module is called {name!r} ({module.__file__})", "rename the file"
        )
    return module


def _where(exc: Exception) -> str:
    """Return what was raised and at which line of the user's, or some library's, code."""
    own = (__file__, importlib.__file__)
    frames = [f for f in traceback.extract_tb(exc.__traceback__) if f.filename not in own and f.filename[:1] != "<"]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(exc).__name__}: {exc}{place}"


__all__ = ["worker"]
