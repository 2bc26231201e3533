"""The pytest plugin: a project that has Mainspring installed gets its fixtures. See docs/testing.md.

This module is loaded by every run of pytest, so it loads nothing else before a test asks for a fixture.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mainspring.config import EngineConfig
    from mainspring.engine import Engine
    from mainspring.testing import Crashes, SimulatedEngine
    from mainspring.testing.stage.stage import Stage

_STAGE = pytest.StashKey["Stage"]()
_STANDING = pytest.StashKey[set[str]]()
"""The fixtures of a test that stand on an engine in virtual time, as far as they are set up."""
_PLAYED = "mainspring_crashes"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mainspring", "tests of Mainspring handlers")
    group.addoption(
        "--mainspring-seed", type=int, default=0, metavar="N", help="another order of events in virtual time"
    )
    group.addoption(
        "--mainspring-crash", metavar="N-before|N-after", help="of the crashes of a scenario, play this one alone"
    )


@pytest.fixture
def mainspring_config() -> EngineConfig:
    """The settings of `mainspring_engine`; override it to have others."""
    from mainspring.config import EngineConfig

    return EngineConfig()


@pytest.fixture
def _mainspring_stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    from mainspring.testing.stage.process import sleep
    from mainspring.testing.stage.stage import Stage

    stage = Stage(request.config.getoption("--mainspring-seed"))
    with pytest.MonkeyPatch.context() as patch, stage.open():
        patch.setattr("time.sleep", sleep)
        request.node.stash[_STAGE] = stage
        request.node.stash[_STANDING] = {"mainspring_engine", "mainspring_engine_for"}
        yield stage


@pytest.fixture
def mainspring_engine(
    _mainspring_stage: Stage, tmp_path_factory: pytest.TempPathFactory, mainspring_config: EngineConfig
) -> SimulatedEngine:
    """An engine over a file of its own, in virtual time, open. Register handlers on it."""
    from mainspring.testing import SimulatedEngine

    path = tmp_path_factory.mktemp("mainspring") / "work.db"
    engine = SimulatedEngine(_mainspring_stage, path, mainspring_config)
    _mainspring_stage.run(engine.start())
    return engine


@pytest.fixture
def mainspring_engine_for(
    _mainspring_stage: Stage, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Engine], SimulatedEngine]]:
    """Give it the application's engine: during the test that one works over a file of its own, in virtual time."""
    from mainspring.errors import InvalidInput
    from mainspring.testing import SimulatedEngine
    from mainspring.testing.stage.engine import lent

    with ExitStack() as stack:

        def engine_for(engine: Engine) -> SimulatedEngine:
            if _mainspring_stage.loop.is_running():
                raise InvalidInput(
                    "call mainspring_engine_for in a fixture, or in a plain test: it would block this loop"
                )
            path = tmp_path_factory.mktemp("mainspring") / "work.db"
            simulated = SimulatedEngine(_mainspring_stage, path, like=engine)
            stack.enter_context(lent(engine, simulated))
            _mainspring_stage.run(simulated.start())
            return simulated

        yield engine_for


@pytest.fixture
def mainspring_crashes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crashes]:
    """Plays a scenario with its process killed before and after each durable step. See `Crashes.__call__`."""
    from mainspring.testing import Crashes
    from mainspring.testing.stage.process import sleep

    seed, id = request.config.getoption("--mainspring-seed"), request.node.nodeid
    crashes = Crashes(
        tmp_path_factory.mktemp("mainspring"),
        lambda point: f"pytest '{id}' --mainspring-seed {seed} --mainspring-crash {point}",
        seed,
        request.config.getoption("--mainspring-crash"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.sleep", sleep)
        yield crashes
    request.node.user_properties += [(_PLAYED, str(report)) for report in crashes.reports]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    """Run a test that has an engine in virtual time, whatever would run its coroutine else."""
    stage = pyfuncitem.stash.get(_STAGE, None)
    own = pyfuncitem.obj
    function = own if pyfuncitem.get_closest_marker("asyncio") is None else inspect.unwrap(own)
    if _PLAYED in pyfuncitem.funcargs and inspect.iscoroutinefunction(function):
        _refuse_loop(function)
    if stage is None:
        return (yield)
    if inspect.iscoroutinefunction(function):
        _refuse_trio(pyfuncitem)
        pyfuncitem.obj = _played(function, stage)
    try:
        result = yield
    finally:
        pyfuncitem.obj = own
    if unused := [plan for engine in stage.engines for plan in engine.plans.unused()]:
        pytest.fail("the test ends, and what it asked to fail did not: " + "; ".join(unused), pytrace=False)
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_fixture_setup(fixturedef: Any, request: pytest.FixtureRequest) -> Generator[None, Any, Any]:
    """Run an async fixture in virtual time too that has an engine, or what stands on one."""
    standing = request.node.stash.get(_STANDING, None)
    if standing is None or standing.isdisjoint(fixturedef.argnames):
        return (yield)
    standing.add(fixturedef.argname)
    own = fixturedef.func
    function = inspect.unwrap(own)  # another plugin may have made a plain function of it
    if not (inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)):
        return (yield)
    if inspect.ismethod(function) and type(function.__self__) is type(request.instance):
        function = function.__func__.__get__(request.instance)
    fixturedef.func = _played(function, request.node.stash[_STAGE])
    try:
        return (yield)
    finally:
        fixturedef.func = own


def pytest_terminal_summary(terminalreporter: Any) -> None:
    played = [
        f"{report.nodeid}: {value}"
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == _PLAYED and report.when == "teardown"
    ]
    if played:
        terminalreporter.section("mainspring crashes")
        for line in played:
            terminalreporter.line(line)


def _refuse_loop(function: Callable[..., Any]) -> None:
    """An async test has no use for crashes: whatever plugin would run it, or none, is told the same."""
    from mainspring.testing.stage.crashes import NO_LOOP

    if _PLAYED in inspect.signature(function).parameters:
        pytest.fail(NO_LOOP, pytrace=False)


def _refuse_trio(item: pytest.Function) -> None:
    backend: Any = item.funcargs.get("anyio_backend", "asyncio")
    name = backend if isinstance(backend, str) else backend[0]
    if name != "asyncio":
        pytest.fail(
            f"mainspring_engine runs on asyncio, and this test asks for {name}; "
            "let the fixture anyio_backend return 'asyncio'",
            pytrace=False,
        )


def _played(function: Callable[..., Any], stage: Stage) -> Callable[..., Any]:
    """Return a plain function, or generator function, that runs an async one in virtual time."""
    names = inspect.signature(function).parameters.keys()

    def wanted(kwargs: dict[str, Any]) -> dict[str, Any]:
        """Other plugins pass more to what they have wrapped."""
        return {name: value for name, value in kwargs.items() if name in names}

    if not inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        def call(**kwargs: Any) -> Any:
            __tracebackhide__ = True
            return stage.run(function(**wanted(kwargs)))

        return call

    @functools.wraps(function)
    def generate(**kwargs: Any) -> Iterator[Any]:
        steps = function(**wanted(kwargs))
        yield stage.run(anext(steps))
        try:
            stage.run(anext(steps))
        except StopAsyncIteration:
            return
        raise ValueError(f"the fixture {function.__name__} yields more than once")

    return generate
