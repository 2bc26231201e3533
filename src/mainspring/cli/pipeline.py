"""The four steps that bring a document into a collection, as tasks that hand their results on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from mainspring.cli.folder import Document
from mainspring.tasks import Binary, Custom, Ref, Task, TaskId, TaskType, Text

VERSION = "1"
"""Change it with the meaning of the steps: all documents are then indexed anew."""
STEPS = ("retrieve", "chunk", "embed", "upsert")
CHUNK_TOKENS, OVERLAP_TOKENS = 200, 20
"""Below the 256 tokens that the default model reads: a piece by itself may have a few more than it had in its text."""


class Pipeline(msgspec.Struct, frozen=True, kw_only=True):
    """Where documents go, and by which model."""

    collection: str
    model_id: str

    @property
    def version(self) -> str:
        """Stands in each record: what another version made is indexed anew."""
        return f"{VERSION}/{self.model_id}"

    def step_ids(self, document: Document, turn: int) -> list[TaskId]:
        """Return the ids of the document's steps: the same for the same file as it is, so that no work is stored twice.

        `turn` tells repetitions apart: a file that is edited back, or is tried again after a failure.
        """
        named = "\0".join(map(str, (self.collection, self.version, *msgspec.structs.astuple(document), turn)))
        return [_id_of(f"{named}\0{step}") for step in STEPS]

    def tasks(self, document: Document, turn: int) -> list[Task]:
        """Return the document's tasks, parents first. The last one's result counts the chunks."""
        retrieve, chunk, embed, upsert = self.step_ids(document, turn)
        labels = {"collection": self.collection, "source": document.source}
        cutting = {"step": "chunk", "size": CHUNK_TOKENS, "overlap": OVERLAP_TOKENS}
        steps = [{"step": "extract", "name": document.source}, "fix", "normalize", cutting]
        return [
            Task(
                id=retrieve,
                task_type=TaskType.DATA_RETRIEVAL,
                input=Custom({"url": Path(document.source).as_uri()}),
                metadata=labels,
            ),
            Task(
                id=chunk,
                task_type=TaskType.TEXT_PROCESSING,
                input=Binary(Ref(retrieve)),
                params={"steps": steps},
                model_id=self.model_id,
                metadata=labels,
            ),
            Task(
                id=embed,
                task_type=TaskType.EMBEDDING_GENERATION,
                input=Text(Ref(chunk)),
                model_id=self.model_id,
                metadata=labels,
            ),
            Task(
                id=upsert,
                task_type=TaskType.DATA_STORAGE,
                input=Custom(self._records(document, vectors=Ref(embed), texts=Ref(chunk))),
                params={"op": "upsert"},
                metadata=labels,
            ),
        ]

    def removal(self, sources: list[str]) -> Task:
        """Return the task that takes these sources out of the collection."""
        return Task(
            task_type=TaskType.DATA_STORAGE,
            input=Custom({"collection": self.collection, "filter": {"source": sources}}),
            params={"op": "delete_vectors"},
            metadata={"collection": self.collection, "source": ""},
        )

    def _records(self, document: Document, *, vectors: Ref, texts: Ref) -> dict[str, Any]:
        return {
            "collection": self.collection,
            "model_id": self.model_id,
            "vectors": vectors,
            "texts": texts,
            "id_prefix": document.source,
            "replace": {"source": document.source},
            "metadata": {**msgspec.structs.asdict(document), "pipeline": self.version},
        }


def _id_of(name: str) -> TaskId:
    raw = bytearray(hashlib.blake2b(name.encode(), digest_size=16).digest())
    raw[6] = raw[6] & 0x0F | 0x80  # version 8: made by hashing
    raw[8] = raw[8] & 0x3F | 0x80  # variant
    return TaskId(bytes(raw))
