"""The examples of docs/testing.md are a project whose tests pass."""

from __future__ import annotations

import re

import pytest
from tests.testing.plugin.conftest import ALONE, ROOT, said

EXAMPLE = re.compile(r"^```python\n# (\w+)\.py\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_examples_pass(installed: None, pytester: pytest.Pytester) -> None:
    page = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    files = dict(EXAMPLE.findall(page))
    assert page.count("```python") == len(files)
    pytester.makepyfile(**files)
    result = pytester.runpytest_inprocess(*ALONE, "-Werror")
    result.assert_outcomes(passed=sum(text.count("def test_") for text in files.values()))
    assert "test_an_order_survives: 12 crashes at 6 durable steps\n" in said(result)


def test_the_message_is_the_one_that_is_shown(installed: None, pytester: pytest.Pytester) -> None:
    """With the check that the page says fails."""
    page = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    files = dict(EXAMPLE.findall(page))
    stricter = files["test_shop_crashes"].replace("len(set(shop.outbox)) == 1", "len(shop.outbox) == 1")
    pytester.makepyfile(**{**files, "test_shop_crashes": stricter})
    result = pytester.runpytest_inprocess(*ALONE, "test_shop_crashes.py")
    result.assert_outcomes(failed=1)
    shown = re.findall(r"^E +(.*)$", page, re.MULTILINE)
    assert shown
    for line in shown:
        assert line in said(result)
