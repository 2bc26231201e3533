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
    """Text → what the steps make of it; a list of texts → a list, in order; Binary → only with `extract` first.

    A bad text fails its task alone, and a task with several texts fails as one, naming the first bad.
    """

    task_type = TaskType.TEXT_PROCESSING
    lane: Lane = "thread"

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """A step is its name, or a mapping of "step" to its name and of options to values."""

        steps: list[str | dict[str, Any]] = msgspec.field(default_factory=lambda: ["normalize"])

    def __init__(self, tokenizer: Tokenizer | None = None) -> None:
        self._tokenizer = tokenizer

    def check(self, input: TaskInput, model_id: str | None, params: dict[str, Any]) -> None:
        steps = self._steps(params)
        if isinstance(input, Binary):
            _check_bytes(steps)
        elif not isinstance(input, Text):
            raise invalid("input", type(input).__name__, "is neither Text nor Binary", "pass Text(...) or Binary(...)")
        elif not _unknown_yet(input.text):
            input.as_text()

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
        if isinstance(item.input, Binary):
            _check_bytes(steps)
            return _run(steps, item.input.as_binary(), job)
        texts = item.input.as_text()
        if isinstance(texts, str):
            return _run(steps, texts, job)
        return [_run_one_of_many(steps, text, job, n) for n, text in enumerate(texts)]

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


def _run_one_of_many(steps: Sequence[Step], text: str, job: Job, n: int) -> Any:
    try:
        return _run(steps, text, job)
    except InvalidInput as exc:
        raise InvalidInput(f"input.text[{n}]: {exc}", field=f"input.text[{n}]", value=exc.value) from exc


def _check_bytes(steps: Sequence[Step]) -> None:
    if not steps or not isinstance(steps[0], Extract):
        raise invalid("input", "Binary", "is not text yet", "make 'extract' the first step")


def _unknown_yet(text: Any) -> bool:
    return isinstance(text, Ref) or (isinstance(text, (list, tuple)) and any(isinstance(part, Ref) for part in text))
