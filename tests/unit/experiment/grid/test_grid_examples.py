"""Examples that a grid needs and lacks are told before the first run."""

from __future__ import annotations

from pathlib import Path

import pytest

from subnetune.core.errors import DataError, MissingDataError, UsageError
from subnetune.experiment.grid.config import GridConfig
from subnetune.experiment.grid.examples import check_examples, left_out


def put(file: Path, count: int, label: str = "0\t1") -> None:
    """Write RTE-like or SST-2-like examples whose labels go round."""
    file.parent.mkdir(parents=True, exist_ok=True)
    labels = label.split("\t")
    rows = [f"{i}\ta text\tanother\t{labels[i % len(labels)]}" for i in range(count)]
    file.write_text("\n".join(["index\tsentence1\tsentence2\tlabel", *rows]) + "\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, count in (("train", 12), ("dev", 4)):
        put(tmp_path / "RTE" / f"{split}.tsv", count, "entailment\tnot_entailment")
        put(tmp_path / "WNLI" / f"{split}.tsv", count)
    return tmp_path


def grid(root: Path, **values: object) -> GridConfig:
    return GridConfig.from_values({"data_dir": str(root), "tasks": "rte", "methods": "full", **values})


def test_all_tasks_that_are_absent_are_named_at_once(root: Path) -> None:
    check_examples(grid(root, tasks="rte,wnli"))
    with pytest.raises(MissingDataError) as error:
        check_examples(grid(root, preset="glue", tasks="cola,rte,snli", train_size=100))
    assert "GLUE cola, split 'train': no such file" in str(error.value)
    assert "snli, split 'train': no such file" in str(error.value)
    assert "rte" not in str(error.value).replace(str(root), "")


def test_a_train_size_beyond_the_file_is_refused(root: Path) -> None:
    check_examples(grid(root, train_size=[12, "all"]))
    with pytest.raises(UsageError) as error:
        check_examples(grid(root, tasks="rte,wnli", train_size=[13, 4]))
    assert str(error.value).splitlines() == [
        f"{task} has 12 training examples, fewer than train_size 13; write `all` for the whole file"
        for task in ("rte", "wnli")
    ]


def test_sets_besides_that_are_absent_are_listed(root: Path) -> None:
    found = grid(root, transfer=["rte", "qqp", "sick"], probes=["wnli", "cola"])
    assert left_out(found) == {
        "qqp": "GLUE qqp, split 'dev': no such file",
        "sick": "sick, split 'dev': no such file",
        "cola": "as a probe: GLUE cola, split 'train': no such file",
    }
    assert left_out(grid(root)) == {}
    both = left_out(grid(root, transfer=["qqp"], probes=["qqp"]))
    assert both["qqp"].split("; ") == [
        "GLUE qqp, split 'dev': no such file",
        "as a probe: GLUE qqp, split 'train': no such file",
    ]


def test_a_set_besides_that_is_malformed_is_an_error(root: Path) -> None:
    put(root / "QQP" / "dev.tsv", 3)
    with pytest.raises(DataError, match="no column 'question1'|no column 'is_duplicate'"):
        left_out(grid(root, transfer=["qqp"]))


def test_a_train_size_beyond_what_a_search_leaves_is_refused(root: Path) -> None:
    search = {"lr": [1e-4, 1e-3], "holdout": 0.5}
    check_examples(grid(root, train_size=[6, "all"], search=search))
    check_examples(grid(root, train_size=[7], search={"holdout": 0.5}))  # nothing to choose between
    with pytest.raises(UsageError) as error:
        check_examples(grid(root, train_size=[6, 7, 13], search=search))
    assert str(error.value).splitlines() == [
        "rte has 12 training examples, fewer than train_size 13; write `all` for the whole file",
        "rte has 6 training examples beside the 0.5 that a search holds out, fewer than train_size 7; "
        "lower holdout, or give the search a smaller train_size",
    ]


def test_a_search_on_fewer_examples_leaves_enough(root: Path) -> None:
    search = {"lr": [1e-4, 1e-3], "holdout": 0.5, "train_size": 6}
    check_examples(grid(root, train_size=[4, 7, 12], search=search))
    for sizes in ([12], [12, "all"], ["all"]):
        with pytest.raises(UsageError, match="^rte has 4 training examples .* out, fewer than train_size 6; [^;]*$"):
            check_examples(grid(root, train_size=sizes, search=search | {"holdout": 0.7}))
