"""Nobody pays for the plugin who does not ask for it."""

from __future__ import annotations

import pytest
from tests.testing.plugin.conftest import ALONE, Run

from mainspring import testing

LOADED = """
    import sys

    def ours():
        return sorted(name for name in sys.modules if name.partition(".")[0] == "mainspring")

    def test_nothing_is_loaded():
        assert ours() == ["mainspring", "mainspring.testing", "mainspring.testing.plugin"]
        assert not {"apsw", "msgspec", "numpy"} & sys.modules.keys()
"""


def test_it_loads_nothing_before_it_is_asked(installed: None, pytester: pytest.Pytester) -> None:
    """A project that does not use it loads three small modules, and none of what the engine stands on."""
    pytester.makepyfile(LOADED)
    pytester.runpytest_subprocess(*ALONE).assert_outcomes(passed=1)


def test_the_public_names_are_there() -> None:
    """What `mainspring.testing` promises loads when it is asked for."""
    assert all(hasattr(testing, name) for name in testing.__all__)
    assert {*testing._HOME} == {*testing.__all__}
    assert not hasattr(testing, "nothing")


def test_the_fixtures_are_described(run: Run) -> None:
    """`pytest --fixtures` and `pytest --help` tell of them."""
    fixtures = run("", options=["--fixtures"]).stdout.str()
    for name in ("mainspring_engine", "mainspring_engine_for", "mainspring_crashes", "mainspring_config"):
        assert f"\n{name} -- " in fixtures
    assert "_mainspring_stage" not in fixtures
    assert "--mainspring-seed" in run("", options=["--help"]).stdout.str()
