"""Runs pipelines of text steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from mainspring.errors import InvalidInput, invalid
from mainspring.processors.base import Item, Lane, failure
from mainspring.processors.text.steps import Extract, Job, Step, parse
from mainspring.tasks import Binary, Done, Outcome, Ref, TaskInput, TaskType, Text, TextOutput
from mainspring.tasks.codec import convert

if TYPE_CHECKING:
    from mainspring.models.base import EmbeddingModel

Tokenizer: TypeAlias = "Callable[[str | None], EmbeddingModel]"
"""Gives the model of an id (None: the default one), whose tokenizer counts and cuts."""


class TextProcessor:
    """Text → what the steps make of it; a list of texts → a list, in order; bytes → only with `extract` first.

    Bytes come as Binary, or as Text where they are another task's result.

    A bad text fails its task alone, and a task with several texts fails as one, naming the first bad.
    """

    task_type = TaskType.TEXT_PROCESSING
    lane: Lane = "thread"

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """A step is its name, or a mapping of "step" to its name and of options to values."""

        steps: list[str | dict[str, Any]] = msgspec.field(default_factory=lambda: ["normalize"])

    def __init__(
        self, tokenizer: Tokenizer | None = None, identity: Callable[[str | None], str | None] | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._identity = identity

    def check(self, input: TaskInput, model_id: str | None, params: dict[str, Any]) -> None:
        steps = self._steps(params)
        if not isinstance(input, (Text, Binary)):
            raise invalid("input", type(input).__name__, "is neither Text nor Binary", "pass Text(...) or Binary(...)")
        if not _unknown_yet(input.data if isinstance(input, Binary) else input.text):
            _documents(input, steps)
        elif isinstance(input, Binary):
            _check_extract(steps)

    def model_identity(self, model_id: str | None) -> str | None:
        """Return what beside code and input a result depends on: the model whose tokenizer cuts."""
        return "" if self._identity is None else self._identity(model_id)

    def load(self) -> None:
        """Nothing: each step's library loads when the step first runs."""

    def close(self) -> None:
        """Nothing was taken."""

    def process(self, batch: Sequence[Item]) -> list[Outcome]:
        return [self._outcome(item) for item in batch]

    def _outcome(self, item: Item) -> Outcome:
        try:
            return Done(TextOutput(self._answer(item)))
        except Exception as exc:  # noqa: BLE001 - whatever a library raises for this text is this item's failure
            return failure(exc)

    def _answer(self, item: Item) -> Any:
        steps = self._steps(item.params)
        job = Job(item.context, lambda: self._model(item.model_id))
        documents = _documents(item.input, steps)
        if not isinstance(documents, list):
            return _run(steps, documents, job)
        return [_run_one_of_many(steps, document, job, n) for n, document in enumerate(documents)]

    def _steps(self, params: dict[str, Any]) -> tuple[Step, ...]:
        return parse(convert(params, self.Params, "params").steps)

    def _model(self, model_id: str | None) -> EmbeddingModel:
        if self._tokenizer is None:
            raise invalid(
                "params.steps",
                "tokens",
                "there is no tokenizer here",
                "pip install 'mainspring[onnx]', or chunk by unit='words'",
            )
        return self._tokenizer(model_id)


def _run(steps: Sequence[Step], value: Any, job: Job) -> Any:
    for step in steps:
        job.look()
        value = step.run(value, job)
    return value


def _run_one_of_many(steps: Sequence[Step], document: str | bytes, job: Job, n: int) -> Any:
    try:
        return _run(steps, document, job)
    except InvalidInput as exc:
        raise InvalidInput(f"input.text[{n}]: {exc}", field=f"input.text[{n}]", value=exc.value) from exc


def _documents(input: TaskInput, steps: Sequence[Step]) -> str | bytes | list[str | bytes]:
    """Return what the steps read. Raises InvalidInput: no texts, or bytes that these steps don't read."""
    given = input.text if isinstance(input, Text) else input.as_binary()
    if isinstance(given, bytes):
        _check_extract(steps)
        return given
    if isinstance(given, (list, tuple)) and any(isinstance(part, bytes) for part in given):
        _check_extract(steps)
        return [part if isinstance(part, bytes) else Text([part]).as_text()[0] for part in given]
    return input.as_text()  # type: ignore[return-value]  # a list of str alone


def _check_extract(steps: Sequence[Step]) -> None:
    if not steps or not isinstance(steps[0], Extract):
        raise invalid("input", "bytes", "are not text yet", "make 'extract' the first step")


def _unknown_yet(text: Any) -> bool:
    return isinstance(text, Ref) or (isinstance(text, (list, tuple)) and any(isinstance(part, Ref) for part in text))
