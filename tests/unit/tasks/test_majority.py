"""The score of always saying the same, by hand and on real dev sets."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import pytest

from conftest import shared_folder
from subnetune.tasks import Split, Task, TaskData, find_task, load_task
from subnetune.tasks.majority import majority_scores


def data(task: Task, train: Sequence[float], dev: Sequence[float], groups: list[str] | None = None) -> TaskData:
    """A task with these labels and texts of no importance."""
    splits = [
        Split(["x"] * len(labels), ["y"] * len(labels), list(labels), name=name, groups=found)
        for name, labels, found in (("train", train, None), ("dev", dev, groups))
    ]
    return TaskData(task, splits[0], {"dev": splits[1]})


@pytest.mark.parametrize(
    ("task", "train", "dev", "wanted"),
    [
        ("mnli", [2, 0, 2, 1], [2, 2, 0], {"accuracy": 2 / 3}),
        ("mnli", [2, 1, 2, 1], [2, 2, 1], {"accuracy": 1 / 3}),  # of equals the smallest id
        ("mnli", [0], [1, 2], {"accuracy": 0.0}),  # what train says, not what would be best on dev
        ("mrpc", [1, 1, 0], [1, 0, 1, 1], {"f1": 2 * 3 / (4 + 3), "accuracy": 3 / 4}),
        ("mrpc", [0, 0, 1], [1, 0, 1, 1], {"f1": 0.0, "accuracy": 1 / 4}),
        ("cola", [1, 1, 0], [1, 0, 1, 1], {"matthews_correlation": 0.0}),
        ("stsb", [1.0, 4.0], [0.0, 2.0, 5.0], {"pearson_spearman": 0.0, "pearson": 0.0, "spearman": 0.0}),
    ],
)
def test_by_hand(task: str, train: list[float], dev: list[float], wanted: dict[str, float]) -> None:
    found = majority_scores(data(find_task(task), train, dev))
    assert found == {"dev": pytest.approx(wanted)}
    assert list(found["dev"]) == list(wanted)  # the headline first


def test_without_training_examples_a_split_lends_its_own_majority() -> None:
    hans = data(find_task("hans"), [], [0, 1, 1, 1], groups=["overlap", "overlap", "overlap", "subsequence"])
    assert majority_scores(hans) == {
        "dev": {
            "accuracy": 3 / 4,
            "accuracy_overlap": pytest.approx(2 / 3),
            "accuracy_subsequence": 1.0,
        }
    }


def test_a_split_without_labels_has_no_level() -> None:
    task = find_task("sst2")
    test = Split(["x"], None, None, name="test")
    assert majority_scores(TaskData(task, Split(["x"], None, [1], name="train"), {"test": test})) == {}


@pytest.mark.filterwarnings("ignore::subnetune.tasks.DataWarning")  # CoLA's own, tested elsewhere
@pytest.mark.parametrize(
    ("task", "metric", "wanted"),
    [
        ("rte", "accuracy", Fraction(146, 277)),
        ("mrpc", "f1", Fraction(2 * 279, 408 + 279)),  # all positive: 0.8122
        ("mrpc", "accuracy", Fraction(279, 408)),
        ("cola", "matthews_correlation", Fraction(0)),
    ],
)
def test_real_dev_sets(task: str, metric: str, wanted: Fraction) -> None:
    found = majority_scores(load_task(task, shared_folder("data")))
    assert found["dev"][metric] == pytest.approx(float(wanted), abs=1e-12)
