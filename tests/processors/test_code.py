"""What tells a handler's code from a changed one."""

from __future__ import annotations

import inspect
import linecache
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from zipfile import ZipFile

import pytest

from mainspring.processors.code import code_hash


def loaded(path: Path, name: str, source: str) -> dict[str, Any]:
    """What a module at a path holds, as if it had been imported."""
    path.write_text(source)
    module = ModuleType(name)
    exec(compile(source, str(path), "exec"), vars(module))
    return vars(module)


def test_a_handler_is_declared_without_a_look_at_all_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Declaring one costs the same however many modules a program has loaded."""

    def never(*args: Any) -> Any:
        raise AssertionError("every module was asked for its file")

    monkeypatch.setattr(inspect, "getmodule", never)
    assert code_hash(test_a_handler_is_declared_without_a_look_at_all_modules)


def test_what_is_written_counts(tmp_path: Path) -> None:
    """An annotation that changes is another source, although the code is the same."""
    first = loaded(tmp_path / "a.py", "a", "from __future__ import annotations\ndef f(x: int): return x\n")["f"]
    same = loaded(tmp_path / "b.py", "b", "from __future__ import annotations\n\ndef f(x: int): return x\n")["f"]
    other = loaded(tmp_path / "c.py", "c", "from __future__ import annotations\ndef f(x: str): return x\n")["f"]
    assert code_hash(first) == code_hash(same) != code_hash(other)


def test_a_file_that_has_become_shorter(tmp_path: Path) -> None:
    """Where nothing stands any more at a function's place its signature counts."""
    function = loaded(tmp_path / "a.py", "a", "\n\n\n\ndef f(x): return x\n")["f"]
    (tmp_path / "a.py").write_text("\n")
    linecache.clearcache()
    assert code_hash(function)


def test_a_wrapper_out_of_an_archive_has_its_own_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrapper says that it is of the module of what it wraps; what is written of it stands in its own."""

    def hash_by(padding: str) -> str:
        archive = tmp_path / f"{padding}.zip"
        with ZipFile(archive, "w") as file:
            file.writestr(
                f"{padding}_wraps.py",
                "import functools\ndef wrap(f):\n    @functools.wraps(f)\n"
                f"    def inner(x: '{padding}'): return f(x)\n    return inner\n",
            )
        monkeypatch.syspath_prepend(archive)
        wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = __import__(f"{padding}_wraps").wrap
        del sys.modules[f"{padding}_wraps"]
        return code_hash(wrap(_plain))

    assert hash_by("one") != hash_by("two")


def _plain(x: int) -> int:
    return x
