"""The labelled questions fit the corpus of the running Python."""

from __future__ import annotations

import pytest

from mainspring.cli.demo.corpus import documents
from mainspring.cli.demo.quality import Question, load_questions

NOT_IN_EVERY_PYTHON = {
    "asyncio.TaskGroup",  # has a docstring since 3.12
    "locale.format",  # until 3.11
    "pathlib.PurePath.joinpath",  # lost its docstring in 3.13 for a while
    "warnings.deprecated",  # since 3.13
}
"""Answers beside which each question has another one, so that a right answer exists from 3.11 on."""


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return load_questions()


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return {document.name: document.text for document in documents()}


def test_every_right_answer_is_a_document(questions: list[Question], texts: dict[str, str]) -> None:
    """No label points to nowhere, apart from the named few that come and go with Python's versions."""
    labels = {name for question in questions for name in question.answers}
    assert labels - set(texts) <= NOT_IN_EVERY_PYTHON
    assert not [question.text for question in questions if not question.answers - NOT_IN_EVERY_PYTHON]


def test_questions_are_many_and_spread(questions: list[Question]) -> None:
    """At least 150 different questions over at least 60 modules, few answers each."""
    assert len({question.text for question in questions}) == len(questions) >= 150
    first_parts = {name.split(".")[0].split(":")[0] for question in questions for name in question.answers}
    assert len(first_parts) >= 60
    assert all(1 <= len(question.answers) <= 10 for question in questions)


def test_questions_do_not_quote_their_answers(questions: list[Question], texts: dict[str, str]) -> None:
    """A question is put in words of its own: it stands in no text that answers it, nor a dotted name in it."""
    quoting = [
        question.text
        for question in questions
        for name in question.answers & texts.keys()
        if ("." in name and name in question.text) or question.text.casefold() in texts[name].casefold()
    ]
    assert not quoting
