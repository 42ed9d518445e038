"""Which examples a run is evaluated on: of a dev file the first ones, of a holdout drawn ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from subnetune.experiment.config import RunConfig
from subnetune.experiment.session import load_data


@pytest.fixture
def sorted_file(tmp_path: Path) -> Path:
    """A file whose first half is of one class, and its second half of the other."""
    file = tmp_path / "train.csv"
    rows = [f"example {i},{'early' if i < 50 else 'late'}" for i in range(100)]
    file.write_text("\n".join(["text,label", *rows]) + "\n")
    return file


def config(file: Path, **values: object) -> RunConfig:
    return RunConfig.from_values({"train_file": str(file), "text": ["text"], "label": "label", **values})


def test_a_part_of_a_holdout_is_drawn_with_classes_at_their_shares(sorted_file: Path) -> None:
    asked = config(sorted_file, holdout=0.4, max_eval=10)
    data = load_data(asked)
    (held,) = data.evaluation.values()
    assert held.labels is not None
    assert (len(held), held.labels.count(0), held.labels.count(1)) == (10, 5, 5)
    assert len(data.train) == 60
    assert not set(held.texts) & set(data.train.texts)
    (again,) = load_data(asked).evaluation.values()
    (other,) = load_data(config(sorted_file, holdout=0.4, max_eval=10, train_seed=1)).evaluation.values()
    assert again.texts == held.texts
    assert other.texts != held.texts
    (whole,) = load_data(config(sorted_file, holdout=0.4, max_eval=1000)).evaluation.values()
    assert len(whole) == 40


def test_of_a_dev_file_the_first_examples_are_taken(sorted_file: Path) -> None:
    dev = sorted_file.with_name("dev.csv")
    dev.write_text(sorted_file.read_text().replace("example", "sentence"))
    data = load_data(config(sorted_file, dev_file=str(dev), max_eval=7))
    assert data.evaluation["dev"].texts == [f"sentence {i}" for i in range(7)]
