"""A task from your own files: CSV, TSV, JSON lines or parquet with named columns, or sentences of tagged words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from subnetune.core.errors import DataError, UsageError
from subnetune.tasks.readers import Table, read_table
from subnetune.tasks.token_files import is_token_file, load_token_files
from subnetune.tasks.types import Split, Task, TaskData


@dataclass(frozen=True)
class FileSpec:
    """Which files, and what their columns mean.

    `text` names one column, or two for a pair; `label` the column of the label, a number if `regression`. The format
    goes by the ending: .csv (quotes as in RFC 4180), .tsv (quoting off), .jsonl, each also with .gz, or .parquet.
    Class labels are any strings, whole numbers or booleans; their ids follow the sorted order of train's labels
    (numbers by value). `labels` gives the classes by id instead, for files without train.

    Files that end in .conll, .iob2 or .txt (each also with .gz) hold tagged words (`tasks.token_files`); they have no
    columns to name.
    """

    train: str | Path | None = None
    dev: str | Path | None = None
    text: tuple[str, ...] = ("text",)
    label: str = "label"
    regression: bool = False
    test: str | Path | None = None
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.text, tuple) or not 1 <= len(self.text) <= 2 or len(set(self.text)) != len(self.text):
            raise UsageError(f"FileSpec: text must name one column or two different ones, got {self.text!r}")
        if self.label in self.text:
            raise UsageError(f"FileSpec: column {self.label!r} cannot be both text and label")
        if self.regression and self.labels is not None:
            raise UsageError("FileSpec: a regression task has no class labels")
        _ = self.tokens  # refuses files of two kinds

    @property
    def tokens(self) -> bool:
        """Whether these are files of tagged words. UsageError where some are and some are not."""
        if self.regression or (self.text, self.label) != (("text",), "label"):
            return False  # their reader says that such a file has no columns
        given = [Path(path) for path in (self.train, self.dev, self.test) if path is not None]
        kinds = [is_token_file(path) for path in given]
        if any(kinds) and not all(kinds):
            words, table = given[kinds.index(True)], given[kinds.index(False)]
            raise UsageError(f"{words} holds tagged words, {table} a table; give files of one kind")
        return any(kinds)

    def path(self, split: str) -> Path:
        """Return the file of a split. UsageError if none was given."""
        value: str | Path | None = getattr(self, split)
        if value is None:
            instead = ", or --holdout to evaluate on a part of train" if split == "dev" else ""
            raise UsageError(f"no file for the {split!r} split: give --{split}-file{instead}")
        return Path(value)


def load_files(name: str, spec: FileSpec, splits: tuple[str, ...]) -> TaskData:
    """Return the task that the files hold. DataError names file, line and column of what is wrong."""
    if spec.tokens:
        return load_token_files(name, {split: spec.path(split) for split in splits}, spec.labels)
    tables = {split: read_table(spec.path(split)) for split in splits}
    task = _task(name, spec, tables)
    ids = {label: i for i, label in enumerate(task.labels)}
    read = {split: _split(split, table, spec, ids) for split, table in tables.items()}
    train = read.pop("train", Split([], [] if task.pair else None, [], name="train"))
    return TaskData(task, train, read)


def _task(name: str, spec: FileSpec, tables: Mapping[str, Table]) -> Task:
    pair = len(spec.text) == 2
    if spec.regression:
        return Task(name, "regression", (), ("pearson_spearman", "pearson", "spearman"), pair)
    labels = spec.labels
    if labels is None:
        if "train" not in tables:
            raise UsageError(f"{name}: without train the classes are unknown; give FileSpec(labels=...) in order of id")
        table = tables["train"]
        found = set(_label_names(table, table.column(spec.label)))
        labels = tuple(sorted(found, key=_by_value if all(_is_whole(label) for label in found) else str))
        if len(labels) == 1:
            raise DataError(
                f"{table.path}: column {spec.label!r} holds one class only, {labels[0]!r}; need two or more"
            )
    return Task(name, "classification", labels, ("accuracy", "f1_macro"), pair)


def _split(split: str, table: Table, spec: FileSpec, ids: Mapping[str, int]) -> Split:
    texts = [table.texts(table.column(column)) for column in spec.text]
    labels: list[int] | list[float] | None
    if split == "test" and not table.has(spec.label):
        labels = None
    elif spec.regression:
        labels = table.numbers(table.column(spec.label))
    else:
        place = table.column(spec.label)
        names = _label_names(table, place)
        for (line, _), label in zip(table.rows, names, strict=True):
            if label not in ids:
                raise DataError(
                    f"{table.path}, line {line}: label {label!r} is not one of the train file's: "
                    f"{', '.join(map(repr, list(ids)[:20]))}"
                )
        labels = [ids[label] for label in names]
    return Split(texts[0], texts[1] if len(texts) == 2 else None, labels, name=split)


def _label_names(table: Table, place: int) -> list[str]:
    """Return the class labels as strings. DataError, with the line, for an empty or fractional one."""
    names: list[str] = []
    for line, values in table.rows:
        value = values[place]
        if not isinstance(value, str | int) or value == "":
            raise DataError(
                f"{table.path}, line {line}: {value!r} in column {table.columns[place]!r} is no class label; "
                "use text or whole numbers (for numbers to be predicted: --regression)"
            )
        names.append(str(value))
    return names


def _is_whole(label: str) -> bool:
    return label.removeprefix("-").isdecimal()


def _by_value(label: str) -> tuple[int, str]:
    return int(label), label
