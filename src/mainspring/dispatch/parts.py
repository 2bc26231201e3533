"""The parts that every way of using Mainspring puts together: the store, what commits with it, what does the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mainspring.blobs import server_keys
from mainspring.blobs.keys import SCHEMA as BLOB_SCHEMA
from mainspring.blobs.keys import BlobKeys
from mainspring.blobs.keys import apply_delete as delete_key
from mainspring.blobs.keys import apply_ref as put_key
from mainspring.blobs.keys import named as named_blobs
from mainspring.blobs.local import LocalBlobStore
from mainspring.config import EngineConfig, check_store, is_server, seconds
from mainspring.environment import SYSTEM, Environment
from mainspring.errors import InvalidInput
from mainspring.execution.executor import TaskExecutor
from mainspring.models.base import EmbeddingModel
from mainspring.models.manager import ModelManager
from mainspring.processors.embedding import EmbeddingProcessor
from mainspring.processors.inference import InferenceProcessor
from mainspring.processors.retrieval import RetrievalProcessor
from mainspring.processors.search import SearchProcessor
from mainspring.processors.storage import StorageProcessor
from mainspring.processors.text import TextProcessor
from mainspring.resources.machine import Machine
from mainspring.resources.memory import Memory
from mainspring.store.sql.store import SqlStore
from mainspring.store.sql.transaction import Applier
from mainspring.store.sqlite.store import SqliteStore
from mainspring.tasks import BlobDelete, BlobRef, VectorDelete, VectorUpsert
from mainspring.tracing import Tracing
from mainspring.vectors.appliers import SCHEMA as VECTOR_SCHEMA
from mainspring.vectors.appliers import apply_delete as delete_vectors
from mainspring.vectors.appliers import apply_upsert as upsert_vectors
from mainspring.vectors.base import VectorStore
from mainspring.vectors.sqlite import SqliteVectorStore

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mainspring.store.postgres.address import Server

_APPLIERS: dict[type, Applier] = {
    VectorUpsert: lambda cursor, effect, namespace, now: upsert_vectors(cursor, effect, now),
    VectorDelete: lambda cursor, effect, namespace, now: delete_vectors(cursor, effect, now),
    BlobRef: put_key,
    BlobDelete: delete_key,
}


FILE_SCHEMA = VECTOR_SCHEMA + BLOB_SCHEMA
"""What stands in a file beside the tables of the tasks."""


def server_schema() -> str:
    """Return the same for a server."""
    from mainspring.vectors import postgres as server_vectors

    return server_keys.SCHEMA + server_vectors.SCHEMA


def blob_folder(server: Server) -> Path:
    """Return where the large payloads of a store on a server lie, on this machine, when no other folder is named."""
    name = f"{server.database}-{server.schema}-blobs"
    return Path.home().joinpath(".local", "share", "mainspring", name)


class Parts:
    """Everything over one store: a file, a server, or with ":memory:" nothing that is kept."""

    store: SqlStore
    keys: BlobKeys | server_keys.ServerBlobKeys
    vectors: VectorStore

    def __init__(self, path: str | Path, config: EngineConfig, *, env: Environment = SYSTEM) -> None:
        check_store(path)
        self.config = config
        self.is_lasting = str(path) != ":memory:"
        wait_s = seconds(config.models.budget_wait_s, "budget_wait_s")
        machine = Machine(config.models.shared_folder, env)
        self.memory = Memory(config.models.budget_bytes, machine, wait_s=wait_s, env=env)
        if is_server(path):
            self._on_server(str(path), env)
        else:
            self._on_file(path, env)
        self.blobs = self.store.blobs
        self.tracing = Tracing() if config.tracing else None
        self.models = ModelManager(config.models, environment=env, memory=self.memory)
        embedding = EmbeddingProcessor(self.models)
        self.executor = TaskExecutor(
            config.executor,
            (
                TextProcessor(self._tokenizer, embedding.model_identity),
                embedding,
                InferenceProcessor(self.models),
                SearchProcessor(self.vectors, self._embed),
                StorageProcessor(self.blobs),
                RetrievalProcessor(self.blobs, self.keys, self.vectors, config.retrieval),
            ),
            slots=config.manager,
            env=env,
            tracing=self.tracing,
        )

    def _on_file(self, path: str | Path, env: Environment) -> None:
        config = self.config
        self.store = store = SqliteStore(
            path,
            config.store,
            blobs=lambda file: LocalBlobStore(
                config.store.blobs or file.with_name(file.name + "-blobs"), env=env, make=False
            ),
            env=env,
            extra_schema=FILE_SCHEMA,
            appliers=_APPLIERS,
            named_blobs=named_blobs,
            **self._settings(),
        )
        self.keys = BlobKeys(store.path)
        self.vectors = SqliteVectorStore(store.path, self._write, memory=self.memory, env=env)
        self.folder = store.path.parent
        self.address = self.name = str(store.path)

    def _on_server(self, url: str, env: Environment) -> None:
        try:
            from mainspring.store.postgres.address import parse
            from mainspring.store.postgres.store import PostgresStore
            from mainspring.vectors import postgres as server_vectors
        except ImportError as exc:
            raise InvalidInput(
                f"a store on a server needs the library {exc.name}; pip install 'mainspring[postgres]'", field="store"
            ) from exc
        config = self.config.store
        server = parse(url, config.schema)
        self.folder = config.blobs or blob_folder(server)
        self.store = store = PostgresStore(
            url,
            config,
            blobs=LocalBlobStore(self.folder, env=env),  # the monitor watches its disk from the start
            env=env,
            schema=config.schema,
            extra_schema=server_schema(),
            appliers={
                VectorUpsert: lambda cursor, effect, namespace, now: server_vectors.apply_upsert(cursor, effect, now),
                VectorDelete: lambda cursor, effect, namespace, now: server_vectors.apply_delete(cursor, effect, now),
                BlobRef: server_keys.apply_ref,
                BlobDelete: server_keys.apply_delete,
            },
            named_blobs=server_keys.named,
            **self._settings(),
        )
        self.keys = server_keys.ServerBlobKeys(store.view_from_thread)
        self.vectors = server_vectors.PostgresVectorStore(store.look_aside, self._write, env=env)
        self.address = server.named
        self.name = url  # opens it again; never shown

    def _settings(self) -> dict[str, Any]:
        """What the worker's settings mean for its store."""
        manager = self.config.manager
        return {
            "queue_size": manager.queue_size,
            "batch_size": manager.batch_size,
            "look_s": seconds(manager.processing_interval, "processing_interval"),
            "grace_s": seconds(manager.grace_s, "grace_s"),
        }

    async def open(self) -> None:
        await self.store.open()
        try:
            if isinstance(self.blobs, LocalBlobStore):
                self.blobs.make()  # only now: beside a file that is refused nothing is left
        except BaseException:
            await self.store.close()
            raise

    async def close(self) -> None:
        """Lanes must be at rest: first what they used is closed, then the store."""
        await self.executor.close()
        self.models.close()
        self.vectors.close()
        self.memory.close()
        self.keys.close()
        await self.store.close()

    def _write(self, run: Callable[[Any], int]) -> int:
        return self.store.write_from_thread(run)

    def _tokenizer(self, model_id: str | None) -> EmbeddingModel:
        with self.models.acquire_embedding(model_id or self.config.models.default_embedding) as model:
            return model

    def _embed(self, texts: Sequence[str], model_id: str | None) -> NDArray[Any]:
        with self.models.acquire_embedding(model_id or self.config.models.default_embedding) as model:
            return model.embed(texts)[0]
