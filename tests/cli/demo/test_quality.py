"""The measures count what their docstrings say, and the baseline searches."""

from __future__ import annotations

import sys

import pytest

from mainspring.cli.demo.corpus import documents
from mainspring.cli.demo.docstrings import Document
from mainspring.cli.demo.quality import Quality, Question, baseline, evaluate, load_questions
from mainspring.errors import InvalidInput


def ask(*right: str, text: str = "?") -> Question:
    return Question(text=text, answers=frozenset(right))


def test_the_first_right_document_decides() -> None:
    """Found second: in the first five, and half a point."""
    quality = evaluate({"?": ["x", "b", "a"]}, [ask("a", "b")])
    assert quality == Quality(recall_at_5=1.0, mrr_at_10=0.5, n=1)


@pytest.mark.parametrize(("place", "recall", "mrr"), [(5, 1.0, 0.2), (6, 0.0, 1 / 6), (10, 0.0, 0.1), (11, 0.0, 0.0)])
def test_where_each_measure_ends(place: int, recall: float, mrr: float) -> None:
    """Recall looks at five documents, reciprocal rank at ten."""
    ranked = [*(f"wrong{number}" for number in range(1, place)), "right", "after"]
    quality = evaluate({"?": ranked}, [ask("right")])
    assert quality == Quality(recall_at_5=recall, mrr_at_10=mrr, n=1)


def test_chunks_of_one_document_take_one_place() -> None:
    """Six chunks of a wrong document don't push the right one out."""
    assert evaluate({"?": ["x"] * 6 + ["a"]}, [ask("a")]).mrr_at_10 == 0.5


def test_a_question_without_an_answer_was_not_found() -> None:
    """The mean is over all questions, answered or not."""
    quality = evaluate({"one": ["a"]}, [ask("a", text="one"), ask("a", text="two")])
    assert quality == Quality(recall_at_5=0.5, mrr_at_10=0.5, n=2)


def test_no_questions_is_no_error() -> None:
    """Nothing asked, nothing found."""
    assert evaluate({}, []) == Quality(recall_at_5=0.0, mrr_at_10=0.0, n=0)


def test_baseline_finds_words_in_other_forms_and_inside_names() -> None:
    """Stems match ("reading"), and the words of a name with underscores count."""
    texts = {"a.read_text": "a.read_text\n\nWhole content.", "b.close": "b.close\n\nEnd it.", "c": "c\n\nSorted lists."}
    corpus = [Document(name=name, module="m", kind="function", text=text) for name, text in texts.items()]
    questions = [
        ask("a.read_text", text="reading a text"),
        ask("b.close", text="closing"),
        ask("c", text="sort a list"),
    ]
    assert baseline(corpus, questions) == Quality(recall_at_5=1.0, mrr_at_10=1.0, n=3)


def test_baseline_on_the_real_questions_is_worth_beating() -> None:
    """Keywords alone answer a good third of the questions among the first five: a baseline that works."""
    questions = load_questions()
    quality = baseline(documents(), questions)
    assert quality.n == len(questions)
    assert 0.35 < quality.recall_at_5 < 0.9
    assert quality.mrr_at_10 > 0.25


def test_baseline_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing library is a typed error with the remedy."""
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(InvalidInput, match=r"pip install 'mainspring\[demo\]'"):
        baseline([], [])
