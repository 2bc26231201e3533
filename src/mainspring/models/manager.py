"""All models of a process: found by id, loaded once, evicted under a budget of memory."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec

from mainspring.config import ModelConfig
from mainspring.environment import SYSTEM, Environment, Lock
from mainspring.errors import InvalidInput, invalid
from mainspring.models.base import EmbeddingModel, Model, ModelInfo, Source
from mainspring.models.fetch import ALL_MINILM_L6_V2, Progress
from mainspring.models.http import HttpSource
from mainspring.models.manifest import MANIFEST, Limits, checked, read_limits
from mainspring.models.sources import FolderSource, PinnedSource, source_of
from mainspring.resources.memory import Held, Memory
from mainspring.tasks import ModelInput

_MODEL_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?")  # no way out of a folder
logger = logging.getLogger("mainspring.models")

_LONGEST_ID = 120  # so that it fits into the name of a group
_TOGETHER = frozenset(("classification", "token_classification", "python"))


class _Slot(Held):
    """One registered model and, while it is loaded, the model itself."""

    __slots__ = (
        "handed_out", "limits", "loading", "model", "model_id", "pinned", "source", "users"
    )  # fmt: skip

    def __init__(self, model_id: str, source: Source, limits: Limits | None = None) -> None:
        super().__init__()
        self.model_id = model_id
        self.source = source
        self.limits = (source.limits if isinstance(source, FolderSource) else Limits()) if limits is None else limits
        self.model: Model | None = None
        self.loading: Future[None] | None = None
        self.users = 0
        self.pinned = False
        self.handed_out = False

    def is_idle(self) -> bool:
        return self.model is not None and not (self.users or self.pinned)

    def let_go(self) -> Callable[[], None] | None:
        """Take the model out; what closes it is returned where nobody else can be using it."""
        model, self.model = self.model, None
        return None if self.handed_out or model is None else model.close


class ModelManager:
    """Registry and cache of models.

    Known from the start are the default sentence model and whatever lies in `config.folders` as
    FOLDER/MODEL_ID/model.onnx. Every method may be called from any thread. Loads are single flight: however many
    callers want a model, it is loaded once, and one model is loaded at a time.
    """

    def __init__(
        self,
        config: ModelConfig | None = None,
        *,
        environment: Environment = SYSTEM,
        progress: Progress | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.config = config or ModelConfig()
        self._environment = environment
        self.memory = memory or Memory(self.config.budget_bytes, env=environment)
        self._lock = self.memory.lock  # guards the slots; held only for moments
        self._load_lock = Lock()  # held while a model is brought into memory
        self._slots: dict[str, _Slot] = {}
        self._closed = False
        self.limited: Callable[[], object] | None = None
        """Called when a model with limits was registered, in whatever thread that is."""
        self.revision = 0  # counts those
        self._pinned_source = PinnedSource(ALL_MINILM_L6_V2, self.config, progress)

    def register(
        self,
        model_id: str,
        source: Any,
        *,
        memory_bytes: int | None = None,
        concurrency: int | None = None,
        rate: str | None = None,
        cost_rate: str | None = None,
    ) -> ModelInfo:
        """Make a model known; nothing is loaded.

        `source` is a folder or an .onnx file, "hf:org/name[@revision]", an `HttpEndpoint`, an object with
        `infer(inputs)` or `embed(texts)`, or a function without parameters that makes one. `memory_bytes` is what such
        an object takes, so that the budget knows.

        `concurrency`, `rate` and `cost_rate` limit the model's tasks in all processes on the store, as `Engine.limit`
        does for a group: how many may be claimed or run at once, how many attempts may begin in a time ("60/m"), and
        what these may cost ("90000/m"). Where one is given they stand for what the manifest in a folder declares.
        Workers store them; see `docs/models.md`.

        Raises: InvalidInput: the source can't be a model, its limits are none, or the id is taken by a model in use.
        """
        _check_id(model_id)
        limits = checked(Limits(concurrency=concurrency, rate=rate, cost_rate=cost_rate)) or None
        slot = _Slot(model_id, source_of(model_id, source, self.config, memory_bytes), limits)
        with self._lock:
            old = self._slots.get(model_id)
            if old is not None and (old.users or old.loading is not None):
                raise invalid("model_id", model_id, "is in use", "register the other model under another id")
            self._slots[model_id] = slot
            if slot.limits:
                self.revision += 1
        if old is not None:
            self._drop(old)
        if slot.limits and self.limited is not None:
            self.limited()
        return self._info_of(slot)

    def learn(self, other: ModelManager) -> None:
        """Know the models that another manager knows; what it has loaded stays its own."""
        with other._lock:
            theirs = list(other._slots.values())
        with self._lock:
            for slot in theirs:
                self._slots.setdefault(slot.model_id, _Slot(slot.model_id, slot.source, slot.limits))
            self.revision += 1

    def limits(self) -> dict[str, Limits]:
        """Return the limits of all known models that declare some. What is broken is left out: it can't be used."""
        with self._lock:
            found = {slot.model_id: slot.limits for slot in self._slots.values()}
        for folder in self.config.folders:
            for path in sorted(folder.glob(f"*/{MANIFEST}")):
                model_id = path.parent.name
                if model_id not in found and _is_id(model_id) and (path.parent / "model.onnx").is_file():
                    try:
                        found[model_id] = read_limits(path.parent)
                    except InvalidInput as exc:
                        logger.warning("model %s can't be used: %s", model_id, exc)
        return {model_id: limits for model_id, limits in found.items() if limits}

    def known(self, model_id: str) -> bool:
        """Whether the id is registered or found in a folder. Loads nothing."""
        return self._find(model_id) is not None

    def describe(self, model_id: str) -> ModelInfo:
        """Return kind, digest and memory of a model without loading it.

        The first call for a model in a folder reads its files once for the digest.

        Raises: InvalidInput: unknown model; the message names those there are.
        """
        return self._info_of(self._slot(model_id))

    def identity(self, model_id: str) -> str | None:
        """Return what tells this model from every other one, for results that are kept; None: not before it is loaded.

        Raises: InvalidInput: nothing does, as it is code that can change under the same id; or it is unknown.
        """
        slot = self._slot(model_id)
        source, loaded = slot.source, slot.model
        if source.kind == "python":
            raise invalid("cache", model_id, "is a Python object, whose results can't be told apart", "leave it out")
        if isinstance(source, HttpSource):
            exact: str | None = source.address
        else:  # its files may have been replaced since: what is loaded answers
            exact = source.digest() if loaded is None else loaded.info.digest
        return None if exact is None else f"{model_id}\0{exact}"

    def is_loaded(self, model_id: str) -> bool:
        """Whether it is in memory, so that using it costs no load."""
        slot = self._slots.get(model_id)
        return slot is not None and slot.model is not None

    def embeds(self, model_id: str) -> bool:
        """Whether the model gives embeddings; True where only loading it could tell. Raises: InvalidInput: unknown."""
        return self._slot(model_id).source.embeds is not False

    def answers_together(self, model_id: str) -> bool:
        """Whether many inputs in one call take less than one after the other. Raises: InvalidInput: unknown."""
        source = self._slot(model_id).source
        return source.embeds is True or source.kind in _TOGETHER

    def check(self, model_id: str, input: ModelInput, params: dict[str, Any]) -> None:
        """Refuse at submit what the model can't read. Loads nothing. Raises: InvalidInput."""
        self._slot(model_id).source.check(input, params)

    def expected_cost(self, model_id: str, content: Any, params: dict[str, Any]) -> float | None:
        """Return what its server will count for texts or messages, about; None where nothing is counted.

        Raises: InvalidInput: unknown.
        """
        source = self._slot(model_id).source
        return source.expected_cost(content, params) if isinstance(source, HttpSource) else None

    def info(self) -> list[ModelInfo]:
        """Return all known models, loaded or not, by id."""
        return [self._describe_any(model_id) for model_id in self.ids()]

    @property
    def loaded_count(self) -> int:
        """How many are in memory."""
        with self._lock:
            return sum(slot.model is not None for slot in self._slots.values())

    @property
    def loaded_bytes(self) -> int:
        """What the loaded models take, as far as it can be told."""
        with self._lock:
            return sum(slot.memory_bytes for slot in self._slots.values())

    @contextmanager
    def acquire(self, model_id: str) -> Iterator[Model]:
        """Lend the model to this thread, loaded; it is not evicted meanwhile.

        Raises: InvalidInput: unknown model. ResourceLimitExceeded: it does not fit the budget now, or ever.
            ProcessingFailed: its files can't be had now.
        """
        slot = self._enter(model_id)
        try:
            yield cast(Model, slot.model)
        finally:
            with self._lock:
                slot.users -= 1
                orphan = slot.model if self._closed and not slot.users else None
            if orphan is not None:
                orphan.close()
                self.memory.settle(slot, 0)
            self.memory.given_back()

    @contextmanager
    def acquire_embedding(self, model_id: str) -> Iterator[EmbeddingModel]:
        """As `acquire`, for a model that gives embeddings. Raises InvalidInput for another."""
        with self.acquire(model_id) as model:
            if not hasattr(model, "embed"):
                raise invalid("model_id", model_id, "gives no embeddings", f"use {self.config.default_embedding}")
            yield cast(EmbeddingModel, model)

    async def get_model(self, model_id: str) -> Model:
        """Return the model, loaded. It stays usable as long as you hold it, even when it was evicted meanwhile.

        Raises: as `acquire`.
        """
        slot = self._slot(model_id)
        with self._lock:
            ready = slot.model
            slot.handed_out = True
        if ready is None:
            arrived: Future[Model] = Future()
            # A thread of its own: a load must go on when its caller is cancelled, because others wait for it too.
            self._environment.start_thread(f"load-{model_id}", self._load_for, model_id, arrived)
            return await asyncio.wrap_future(arrived)
        return ready

    def _load_for(self, model_id: str, arrived: Future[Model]) -> None:
        if not arrived.set_running_or_notify_cancel():
            return
        try:
            with self.acquire(model_id) as model:
                result = model
        except Exception as exc:  # noqa: BLE001 - handed to whoever waits
            arrived.set_exception(exc)
        else:
            arrived.set_result(result)

    def warm(self, model_id: str) -> ModelInfo:
        """Load the model now, if it isn't. Raises: as `acquire`."""
        with self.acquire(model_id):
            return self.describe(model_id)

    def pin(self, model_id: str) -> None:
        """Keep the model once it is loaded, whatever the budget needs. Loads nothing."""
        slot = self._slot(model_id)
        with self._lock:
            slot.pinned = True

    def unpin(self, model_id: str) -> None:
        slot = self._slot(model_id)
        with self._lock:
            slot.pinned = False

    def evict(self, model_id: str) -> bool:
        """Free a model's memory. Returns False when it is in use or not loaded."""
        slot = self._slot(model_id)
        with self._lock:
            free = slot.model is not None and not slot.users and slot.loading is None
        return free and self._drop(slot)

    def _drop(self, slot: _Slot) -> bool:
        with self._lock:
            if slot.users:
                return False
            close = slot.let_go()
        if close is not None:
            close()
        self.memory.settle(slot, 0)
        return True

    def close(self) -> None:
        """Free all models; nothing is loaded afterwards. Those still in use are freed by whoever uses them."""
        with self._lock:
            self._closed = True
            idle = [slot for slot in self._slots.values() if slot.model is not None and not slot.users]
            self._slots = {}
        for slot in idle:
            if slot.model is not None:
                slot.model.close()
            self.memory.settle(slot, 0)

    def ids(self) -> list[str]:
        """Return the ids of all models that can be asked for, loaded or not."""
        with self._lock:
            ids = {*self._slots, ALL_MINILM_L6_V2.model_id}
        for folder in self.config.folders:
            ids.update(path.parent.name for path in folder.glob("*/model.onnx"))
        return sorted(ids)

    def _describe_any(self, model_id: str) -> ModelInfo:
        try:
            return self.describe(model_id)
        except InvalidInput:
            return ModelInfo(model_id, "broken")

    def _find(self, model_id: str) -> _Slot | None:
        with self._lock:
            slot = self._slots.get(model_id)
        if slot is not None or not _is_id(model_id):
            return slot
        source: Source | None = None
        for folder in self.config.folders:
            if (folder / model_id / "model.onnx").is_file():
                source = FolderSource(model_id, Path(folder, model_id), self.config)
                break
        if source is None and model_id == ALL_MINILM_L6_V2.model_id:
            source = self._pinned_source
        if source is None:
            return None
        with self._lock:
            return self._slots.setdefault(model_id, _Slot(model_id, source))

    def _slot(self, model_id: str) -> _Slot:
        slot = self._find(model_id)
        if slot is None:
            raise invalid(
                "model_id",
                model_id,
                f"is not registered (known are {', '.join(self.ids())})",
                "register it with models.register(model_id, source), or put it into a folder of ModelConfig.folders",
            )
        return slot

    def _info_of(self, slot: _Slot) -> ModelInfo:
        source = slot.source
        with self._lock:
            loaded, pinned, memory = slot.model is not None, slot.pinned, slot.memory_bytes
        return ModelInfo(
            slot.model_id, source.kind, source.digest(), memory or source.memory_bytes(), loaded, pinned,
            slot.limits.concurrency, slot.limits.rate, slot.limits.cost_rate,
        )  # fmt: skip

    def _enter(self, model_id: str) -> _Slot:
        """Return the slot with its model loaded and one more user."""
        slot = self._slot(model_id)
        while True:
            with self._lock:
                if self._closed:
                    raise InvalidInput("the model manager is closed", field="model_id")
                if slot.model is not None:
                    slot.users += 1
                    self.memory.use(slot)
                    return slot
                loading, mine = slot.loading, slot.loading is None
                if loading is None:
                    loading = slot.loading = Future()
            if mine:
                self._load(slot, loading)
            loading.result()

    def _load(self, slot: _Slot, loading: Future[None]) -> None:
        try:
            slot.source.prepare()
            with self._load_lock:
                model = self._load_within_budget(slot)
        except BaseException as exc:  # noqa: BLE001 - reaches every caller that waits, this one first
            self.memory.settle(slot, 0)
            with self._lock:
                slot.loading = None
            loading.set_exception(exc)
            return
        with self._lock:
            slot.loading = None
            closed = self._closed
            if not closed:
                slot.model = model
                self.memory.use(slot)
        if closed:
            model.close()
            self.memory.settle(slot, 0)
        loading.set_result(None)

    def _load_within_budget(self, slot: _Slot) -> Model:
        wanted = slot.source.memory_bytes()
        self.memory.reserve(slot, f"model {slot.model_id}", wanted)
        before = _resident_bytes()
        model = slot.source.load(slot.model_id)
        measured = max(wanted, _resident_bytes() - before) if wanted else 0
        self.memory.settle(slot, measured)
        model.info = msgspec.structs.replace(model.info, memory_bytes=measured)
        return model


def _check_id(model_id: str) -> None:
    if not isinstance(model_id, str) or not _is_id(model_id):
        remedy = f"use up to {_LONGEST_ID} letters, digits, . _ - and at most one /"
        raise invalid("model_id", model_id, "is no model id", remedy)


def _is_id(text: str) -> bool:
    return len(text) <= _LONGEST_ID and _MODEL_ID.fullmatch(text) is not None


def _resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)
