"""Search your own files: read, clean and chunk, embed, store; then ask.

    python examples/search_files.py FOLDER "QUESTION" [STORE]

Needs `pip install 'mainspring[onnx,text]'` and the sentence model. One handler and three built-in operations, each of
which takes the handle of the one before. With STORE, files that have not changed cost nothing the next time.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from mainspring import Engine, TaskHandle

CHUNK = {"step": "chunk", "size": 128, "overlap": 16}
engine = Engine(sys.argv[3] if len(sys.argv) > 3 else ":memory:")


@engine.task
def read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8", errors="replace")


def texts_below(folder: Path) -> list[tuple[str, str]]:
    """Path and version of each file."""
    found = [(path, path.stat()) for path in sorted(folder.rglob("*.txt"))]
    return [(str(path), f"{path} {stat.st_mtime_ns}") for path, stat in found if stat.st_size]


async def index(path: str, version: str) -> TaskHandle:
    """Submit what a file needs; returns the handle of the last step. The keys tell what was done before."""
    text = await engine.submit(read, path, idempotency_key=f"read {version}")
    chunks = await engine.submit(engine.text, text, "fix", "normalize", CHUNK, idempotency_key=f"chunk {version}")
    vectors = await engine.submit(engine.embed, chunks, idempotency_key=f"embed {version}")
    record: dict[str, Any] = {"id_prefix": path, "texts": chunks, "metadata": {"path": path}, "replace": {"path": path}}
    return await engine.submit(engine.upsert, "files", vectors, **record, idempotency_key=f"store {version}")


async def main(files: list[tuple[str, str]], question: str) -> None:
    async with engine:
        stored = [await index(path, version) for path, version in files]
        async for done in engine.as_completed(stored):
            print(f"{(await done.result()).count} records stored")
        for hit in await engine.search(question, collection="files", top_k=3):
            print(f"{hit.score:.2f} {hit.metadata['path']}: {(hit.text or '')[:80]}")


if __name__ == "__main__":
    asyncio.run(main(texts_below(Path(sys.argv[1])), sys.argv[2]))
