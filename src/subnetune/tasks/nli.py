"""SNLI, HANS, SICK and SciTail in their official file formats; items without a gold label are dropped and counted.

SNLI: arXiv 1508.05326. HANS: arXiv 1902.01007. SICK: Marelli et al., LREC 2014. SciTail: Khot et al., AAAI 2018.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from subnetune.core.errors import DataError, MissingDataError
from subnetune.tasks.readers import Row, Table, find_file, find_optional, read_jsonl, read_tsv
from subnetune.tasks.types import Split, Task

NO_GOLD_LABEL = "-"
_LABEL_COLUMNS = ("gold_label", "label", "entailment_label", "entailment_judgment")
_FIRST_COLUMNS = ("sentence1", "sentence_A", "premise")
_SECOND_COLUMNS = ("sentence2", "sentence_B", "hypothesis")
# The annotators' single votes close a row of SNLI; a row with one vote may end there.
_VOTES = ("label1", "label2", "label3", "label4", "label5")


@dataclass(frozen=True)
class NliFiles:
    """Where a task lies: `folders` below the data folder, and per split the file names, first found first.

    `shared` is one file that holds all splits, told apart by the column `split_column` and the values `split_names`.
    `header` are the columns of files without a header line.
    """

    folders: tuple[str, ...]
    splits: Mapping[str, tuple[str, ...]]
    shared: str | None = None
    split_column: str = ""
    split_names: Mapping[str, str] | None = None
    header: tuple[str, ...] | None = None


def _names(*patterns: str) -> dict[str, tuple[str, ...]]:
    return {split: tuple(pattern.format(split) for pattern in patterns) for split in ("train", "dev", "test")}


_THREE_WAY = ("entailment", "neutral", "contradiction")

NLI: dict[str, tuple[Task, NliFiles]] = {
    "snli": (
        Task("snli", "classification", _THREE_WAY, ("accuracy",), pair=True),
        NliFiles(
            ("snli", "snli_1.0", "SNLI"),
            _names("snli_1.0_{}.txt", "snli_1.0_{}.jsonl", "{}.tsv", "{}.txt", "{}.jsonl"),
        ),
    ),
    "hans": (
        Task("hans", "classification", ("entailment", "non-entailment"), ("accuracy",), True, entailment_or_not=True),
        NliFiles(
            ("hans", "HANS"),
            {
                "train": ("heuristics_train_set.txt", "train.tsv"),
                "dev": ("heuristics_evaluation_set.txt", "hans.tsv", "dev.tsv"),
            },
        ),
    ),
    "sick": (
        Task("sick", "classification", _THREE_WAY, ("accuracy",), pair=True),
        NliFiles(
            ("sick", "SICK"),
            {
                "train": ("SICK_train.txt", "train.tsv"),
                "dev": ("SICK_trial.txt", "dev.tsv"),
                "test": ("SICK_test_annotated.txt", "test.tsv"),
            },
            shared="SICK.txt",
            split_column="SemEval_set",
            split_names={"train": "TRAIN", "dev": "TRIAL", "test": "TEST"},
        ),
    ),
    "scitail": (
        Task("scitail", "classification", ("entails", "neutral"), ("accuracy",), True, entailment_or_not=True),
        NliFiles(
            tuple(
                f"{folder}/{form}".removesuffix("/")
                for folder in ("scitail", "SciTail", "SciTailV1.1", "SciTailV1")
                for form in ("", "tsv_format", "snli_format")
            ),
            _names("scitail_1.0_{}.tsv", "scitail_1.0_{}.txt", "{}.tsv", "{}.jsonl"),
            header=("sentence1", "sentence2", "gold_label"),
        ),
    ),
}


def load_nli(name: str, split: str, data_dir: Path | None) -> dict[str, Split]:
    """Return one split ("train", "dev" or "test") by its name.

    HANS has no test split; its train split is empty where `heuristics_train_set.txt` is absent: it is made to test
    models that were trained on MNLI. MissingDataError names the paths that were tried.
    """
    task, files = NLI[name]
    if data_dir is None:
        raise MissingDataError(f"{name}: give --data-dir the folder that holds {files.folders[0]}/")
    if not data_dir.is_dir():
        raise DataError(f"{data_dir}: no such folder; --data-dir must hold {files.folders[0]}/")
    if split not in files.splits:
        raise DataError(f"{name} has no {split!r} split; there are {', '.join(files.splits)}")
    folders = [data_dir / folder for folder in files.folders]
    path = find_optional(folders, files.splits[split])
    if path is None and name == "hans" and split == "train":
        return {split: Split([], [], [], name=split)}
    if path is None and files.shared and (whole := find_optional(folders, (files.shared,))):
        return {split: _split(task, split, _rows_of(_read(whole, files), files, split))}
    if path is None:
        wanted = files.splits[split] + ((files.shared,) if files.shared else ())
        path = find_file(folders, wanted, f"{name}, split {split!r}")
    return {split: _split(task, split, _read(path, files))}


def _read(path: Path, files: NliFiles) -> Table:
    """Read a table; SNLI's and SciTail's `.txt` may be JSON lines, SciTail's `.tsv` has no header."""
    bare = path.name.removesuffix(".gz")
    if bare.endswith(".jsonl") or (bare.startswith("scitail") and bare.endswith(".txt")):
        return read_jsonl(path)
    if files.header is None:
        return read_tsv(path, optional_tail=_VOTES)
    table = read_tsv(path, header=files.header)
    first = tuple(table.rows[0][1])
    if first[-1] in _LABEL_COLUMNS:  # a copy that was given a header line
        return Table(path, first, table.rows[1:])
    return table


def _rows_of(table: Table, files: NliFiles, split: str) -> Table:
    assert files.split_names is not None
    place = table.column(files.split_column)
    rows: list[Row] = [row for row in table.rows if row[1][place] == files.split_names[split]]
    if not rows:
        raise DataError(f"{table.path}: no row has {files.split_names[split]!r} in column {files.split_column!r}")
    return Table(table.path, table.columns, rows)


def _split(task: Task, split: str, table: Table) -> Split:
    place = table.column(*_LABEL_COLUMNS)
    labelled = [(line, values) for line, values in table.rows if values[place] != NO_GOLD_LABEL]
    if not labelled:
        raise DataError(f"{table.path}: none of {len(table.rows)} items has a gold label")
    kept = Table(table.path, table.columns, labelled)
    ids = {spelling: i for i, label in enumerate(task.labels) for spelling in (label, label.upper())}
    return Split(
        kept.texts(table.column(*_FIRST_COLUMNS)),
        kept.texts(table.column(*_SECOND_COLUMNS)),
        kept.class_ids(place, ids),
        name=split,
        dropped=len(table.rows) - len(labelled),
        groups=kept.texts(table.column("heuristic")) if task.name == "hans" and table.has("heuristic") else None,
    )
