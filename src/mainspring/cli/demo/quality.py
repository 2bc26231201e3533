"""How well questions are answered: labelled questions, two measures, and a keyword search to compare with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mainspring.cli.demo.docstrings import Document
from mainspring.errors import InvalidInput

_WORD = r"[^\W_]{2,}"
"""A word for the baseline; "read_text" is two, or a question in plain words would never meet it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What somebody might ask, and the names of the documents any one of which answers it.

    A name may be missing in one version of Python or another; at least one exists in each from 3.11 on.
    """

    text: str
    answers: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Both figures are from 0 (never) to 1 (always); see `evaluate`."""

    recall_at_5: float
    mrr_at_10: float
    n: int  # questions


def load_questions() -> list[Question]:
    """Return the questions that come with the demo, in the order of the file."""
    text = Path(__file__).with_name("questions.json").read_text(encoding="utf-8")
    return [Question(text=entry["question"], answers=frozenset(entry["answers"])) for entry in json.loads(text)]


def evaluate(answers: Mapping[str, Sequence[str]], questions: Sequence[Question]) -> Quality:
    """Return how well the ranked names of documents in `answers`, best first, answer the questions (its keys).

    recall@5 is the share of questions with a right document among the first five. Right documents are alternatives, so
    one is enough (also called success@5 or hit rate; with a single right document it is recall in the usual sense).
    MRR@10 is the mean of 1/rank of the first right document, 0 where none is among the first ten.
    A document that comes more than once, because several of its chunks were found, counts where it comes first.
    A question without an answer counts as not found. No questions: both figures are 0.

    Source: Manning, Raghavan & Schütze 2008, Introduction to Information Retrieval, chapter 8 (recall); Voorhees 1999,
    The TREC-8 Question Answering Track Report (mean reciprocal rank).
    """
    ranks = [_first_right(answers.get(question.text, ()), question.answers) for question in questions]
    return Quality(
        recall_at_5=_mean([float(rank is not None and rank <= 5) for rank in ranks]),
        mrr_at_10=_mean([1 / rank if rank is not None and rank <= 10 else 0.0 for rank in ranks]),
        n=len(ranks),
    )


def baseline(documents: Sequence[Document], questions: Sequence[Question]) -> Quality:
    """Return how well BM25, a keyword search with English stemming, answers the questions on the same documents.

    Raises: InvalidInput: the extra `demo` is not installed.
    Source: Robertson & Zaragoza 2009, The Probabilistic Relevance Framework: BM25 and Beyond.
    """
    return evaluate(_keyword_search(documents, [question.text for question in questions]), questions)


def _keyword_search(documents: Sequence[Document], queries: Sequence[str]) -> dict[str, list[str]]:
    try:
        import bm25s
        import Stemmer
    except ImportError as error:
        raise InvalidInput("the keyword baseline needs bm25s: pip install 'mainspring[demo]'") from error

    def tokens(texts: Iterable[str]) -> Any:
        return bm25s.tokenize(
            list(texts), token_pattern=_WORD, stopwords="en", stemmer=Stemmer.Stemmer("english"), show_progress=False
        )

    index = bm25s.BM25()
    index.index(tokens(document.text for document in documents), show_progress=False)
    found, _ = index.retrieve(tokens(queries), k=min(10, len(documents)), show_progress=False)
    return {query: [documents[row].name for row in rows] for query, rows in zip(queries, found, strict=True)}


def _first_right(ranked: Iterable[str], right: frozenset[str]) -> int | None:
    names = enumerate(dict.fromkeys(ranked), start=1)
    return next((rank for rank, name in names if name in right), None)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
