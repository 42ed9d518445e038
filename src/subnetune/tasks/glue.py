"""The nine GLUE tasks, from the official download's folders or from the parquet files of the Hub (`nyu-mll/glue`).

GLUE: arXiv 1804.07461. Class ids are those of the Hub's data set, so a model trained elsewhere means the same classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from subnetune.core.errors import DataError
from subnetune.tasks.hub import find_shards, read_hub, read_shards
from subnetune.tasks.readers import find_file, find_optional, read_tsv
from subnetune.tasks.types import Split, Task

_COLA_HEADER = ("source", "label", "star", "sentence")


@dataclass(frozen=True)
class GlueFiles:
    """Where a GLUE task lies and what its columns are called.

    `names` are the label strings of the official files by class id; None: a score. `hub_texts` are the columns of the
    Hub's parquet files where they differ.
    """

    folder: str
    texts: tuple[str, ...]
    label: str
    names: tuple[str, ...] | None
    hub_texts: tuple[str, ...] = ()
    dev: tuple[str, ...] = ("dev",)


_BINARY = ("0", "1")
_TWO_WAY = ("entailment", "not_entailment")
_THREE_WAY = ("entailment", "neutral", "contradiction")
_PAIR = ("sentence1", "sentence2")
_ACCURACY = ("accuracy",)
_F1 = ("f1", "accuracy")
_CORRELATION = ("pearson_spearman", "pearson", "spearman")


def _task(
    name: str, labels: tuple[str, ...], metrics: tuple[str, ...], pair: bool = True, entailment_or_not: bool = False
) -> Task:
    return Task(name, "classification" if labels else "regression", labels, metrics, pair, entailment_or_not)


GLUE: dict[str, tuple[Task, GlueFiles]] = {
    "cola": (
        _task("cola", ("unacceptable", "acceptable"), ("matthews_correlation",), pair=False),
        GlueFiles("CoLA", ("sentence",), "label", _BINARY),
    ),
    "sst2": (
        _task("sst2", ("negative", "positive"), _ACCURACY, pair=False),
        GlueFiles("SST-2", ("sentence",), "label", _BINARY),
    ),
    "mrpc": (
        _task("mrpc", ("not_equivalent", "equivalent"), _F1),
        GlueFiles("MRPC", ("#1 String", "#2 String"), "Quality", _BINARY, hub_texts=_PAIR),
    ),
    "stsb": (_task("stsb", (), _CORRELATION), GlueFiles("STS-B", _PAIR, "score", None)),
    "qqp": (
        _task("qqp", ("not_duplicate", "duplicate"), _F1),
        GlueFiles("QQP", ("question1", "question2"), "is_duplicate", _BINARY),
    ),
    "mnli": (
        _task("mnli", _THREE_WAY, _ACCURACY),
        GlueFiles(
            "MNLI", _PAIR, "gold_label", _THREE_WAY, ("premise", "hypothesis"), dev=("dev_matched", "dev_mismatched")
        ),
    ),
    "qnli": (_task("qnli", _TWO_WAY, _ACCURACY), GlueFiles("QNLI", ("question", "sentence"), "label", _TWO_WAY)),
    "rte": (
        _task("rte", _TWO_WAY, _ACCURACY, entailment_or_not=True),
        GlueFiles("RTE", _PAIR, "label", _TWO_WAY),
    ),
    "wnli": (
        _task("wnli", ("not_entailment", "entailment"), _ACCURACY),
        GlueFiles("WNLI", _PAIR, "label", _BINARY),
    ),
}


def load_glue(name: str, split: str, data_dir: Path | None) -> dict[str, Split]:
    """Return the task's split ("train", "dev" or "test") by name; MNLI has two of "dev" and of "test".

    With `data_dir`: the official files (`RTE/train.tsv`, there or under `glue/`, plain or .gz) or a copy of the Hub's
    parquet files (`rte/train-00000-of-00001.parquet`). Without: the Hub. A test set has no labels.
    MissingDataError names the paths that were tried.
    """
    task, files = GLUE[name]
    parts = (split,) if split == "train" else tuple(part.replace("dev", split) for part in files.dev)
    if data_dir is None:
        fix = f"give --data-dir a folder that holds {files.folder}/{parts[0]}.tsv (GLUE's official download)"
        return {part: read_hub(task, files.hub_texts or files.texts, part, fix) for part in parts}
    if not data_dir.is_dir():
        raise DataError(f"{data_dir}: no such folder; --data-dir must hold {files.folder}/ or glue/{files.folder}/")
    return {part: _from_folder(task, files, part, data_dir) for part in parts}


def _from_folder(task: Task, files: GlueFiles, part: str, data_dir: Path) -> Split:
    roots = (data_dir, data_dir / "glue")
    folders = [root / files.folder for root in roots]
    if find_optional(folders, [f"{part}.tsv"]) is None:
        for root in roots:
            if shards := find_shards(root / task.name, part):
                return read_shards(task, files.hub_texts or files.texts, part, shards)
        folders += [root / task.name for root in roots]
    path = find_file(folders, [f"{part}.tsv"], f"GLUE {task.name}, split {part!r}")
    # CoLA's test file has a header, its others have none. Some downloads of QQP hold rows cut short by a line end
    # inside a question; the Hub's copy leaves those out.
    header = _COLA_HEADER if task.name == "cola" and part != "test" else None
    table = read_tsv(path, header=header, drop_short_rows=task.name == "qqp")
    labels: list[int] | list[float] | None
    if part.startswith("test") and not table.has(files.label):
        labels = None
    elif files.names is None:
        labels = table.numbers(table.column(files.label))
    else:
        labels = table.class_ids(table.column(files.label), {label: i for i, label in enumerate(files.names)})
    texts = [table.texts(table.column(column)) for column in files.texts]
    return Split(texts[0], texts[1] if task.pair else None, labels, name=part, dropped=table.short_rows)
