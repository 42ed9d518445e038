"""Spans of IOB2 tags and their scores: by hand, and equal to seqeval's on random tags, invalid ones among them."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subnetune.core.errors import DataError
from subnetune.tasks import Split, Task, TaskData, compute_metrics
from subnetune.tasks.conll import tag_set
from subnetune.tasks.majority import majority_scores
from subnetune.tasks.spans import invalid_tags, span_scores, spans

TASK = Task(
    "t", "tokens", tag_set(("LOC", "PER", "creative-work")), ("f1", "precision", "recall", "token_accuracy"), False
)


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O O", []),
        ("B-PER I-PER O B-PER", [("PER", 0, 1), ("PER", 3, 3)]),
        ("B-PER B-PER I-PER", [("PER", 0, 0), ("PER", 1, 2)]),
        ("I-PER I-PER", [("PER", 0, 1)]),
        ("O I-LOC", [("LOC", 1, 1)]),
        ("B-PER I-LOC I-LOC", [("PER", 0, 0), ("LOC", 1, 2)]),
        ("B-creative-work I-creative-work I-work", [("creative-work", 0, 1), ("work", 2, 2)]),
    ],
)
def test_spans(tags: str, found: list[tuple[str, int, int]]) -> None:
    assert spans(tags.split()) == found


def ids(*rows: str) -> list[list[int]]:
    return [[TASK.labels.index(tag) for tag in row.split()] for row in rows]


def test_scores_by_hand() -> None:
    truth = ids("B-PER I-PER O", "B-LOC O B-LOC")
    guess = ids("B-PER O O", "B-LOC O B-PER")  # a wrong end, a hit, a wrong type
    found = compute_metrics(TASK, guess, truth)
    assert found == pytest.approx({"f1": 1 / 3, "precision": 1 / 3, "recall": 1 / 3, "token_accuracy": 4 / 6})
    assert next(iter(found)) == "f1"


def test_no_spans_at_all_score_zero() -> None:
    assert span_scores(TASK, ids("O O"), ids("O O")) == {"f1": 0, "precision": 0, "recall": 0, "token_accuracy": 1.0}


@pytest.mark.parametrize(
    ("guess", "truth"), [([[0]], [[0], [0]]), ([[0]], [[0, 0]]), ([[7]], [[0]]), ([], []), ([0], [0])]
)
def test_what_does_not_fit_is_refused(guess: list[list[int]], truth: list[list[int]]) -> None:
    with pytest.raises(DataError):
        compute_metrics(TASK, guess, truth)


@st.composite
def tagged(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]]]:
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    tag = st.integers(0, len(TASK.labels) - 1)
    truth = [draw(st.lists(tag, min_size=n, max_size=n)) for n in lengths]
    # Some predictions near the truth: random ones alone would hardly ever hit a span.
    guess = [[t if draw(st.booleans()) else draw(tag) for t in row] for row in truth]
    return truth, guess


@given(tagged())
@settings(max_examples=150, deadline=None)
def test_scores_are_those_of_seqeval(case: tuple[list[list[int]], list[list[int]]]) -> None:
    metrics = pytest.importorskip("seqeval.metrics", reason="seqeval is not installed")
    truth, guess = case
    named = [[[TASK.labels[i] for i in row] for row in rows] for rows in (truth, guess)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # seqeval warns of scores that are 0 for want of spans
        theirs = {
            "f1": metrics.f1_score(*named),
            "precision": metrics.precision_score(*named),
            "recall": metrics.recall_score(*named),
            "token_accuracy": metrics.accuracy_score(*named),
        }
    assert span_scores(TASK, guess, truth) == pytest.approx(theirs, abs=1e-12)


def test_tags_that_continue_nothing_are_counted() -> None:
    rows = ids("I-PER I-PER O I-LOC", "B-PER I-LOC I-LOC", "B-PER I-PER")
    split = Split(["a"] * 3, None, rows, words=[["w"] * len(row) for row in rows])
    assert invalid_tags(split, TASK) == 3


def test_the_majority_level_tags_all_words_alike() -> None:
    rows = ids("B-PER O O", "O")
    split = Split(["a", "b"], None, rows, name="dev", words=[["w"] * 3, ["w"]])
    found = majority_scores(TaskData(TASK, split, {"dev": split}))
    assert found == {"dev": {"f1": 0.0, "precision": 0.0, "recall": 0.0, "token_accuracy": 0.75}}
