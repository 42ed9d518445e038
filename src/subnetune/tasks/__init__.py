"""Tasks by name: their definition, their examples and their official metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from subnetune.core.errors import UsageError, nearest
from subnetune.tasks.amazon import amazon_names, find_amazon, is_amazon, load_amazon
from subnetune.tasks.demo import DEMO, load_demo
from subnetune.tasks.files import FileSpec, load_files
from subnetune.tasks.glue import GLUE, load_glue
from subnetune.tasks.metrics import compute_metrics
from subnetune.tasks.ner import find_ner, is_ner, load_ner, ner_names
from subnetune.tasks.nli import NLI, load_nli
from subnetune.tasks.types import DataWarning, Split, Task, TaskData

__all__ = [
    "DataWarning",
    "FileSpec",
    "Split",
    "Task",
    "TaskData",
    "compute_metrics",
    "find_task",
    "load_task",
    "task_names",
]

ALIASES = {"sst-2": "sst2", "sts-b": "stsb"}
TASKS: dict[str, Task] = {
    "demo": DEMO,
    **{name: task for name, (task, _) in GLUE.items()},
    **{name: task for name, (task, _) in NLI.items()},
}
SPLITS = ("train", "dev", "test")


def task_names() -> tuple[str, ...]:
    """Return the names of the tasks that `load_task` knows."""
    return (*TASKS, *amazon_names(), *ner_names())


def find_task(name: str) -> Task:
    """Return the task of that name (in any case; `sst-2` is `sst2`) without its data. UsageError if unknown."""
    if is_ner(name):
        return find_ner(name)
    if is_amazon(name):
        return find_amazon(name)
    key = ALIASES.get(name.lower(), name.lower())
    if key not in TASKS:
        there = f"{', '.join(TASKS)}, amazon:DOMAIN, ner:LANGUAGE and ner:CORPUS/SET"
        raise UsageError(f"unknown task {name!r}; there are {there}{nearest(key, [*task_names(), *ALIASES])}")
    return TASKS[key]


def load_task(
    name: str,
    data_dir: str | Path | None = None,
    *,
    files: FileSpec | None = None,
    splits: Sequence[str] = ("train", "dev"),
) -> TaskData:
    """Return a task with the examples of `splits` (of "train", "dev" and "test").

    `files` defines a task of your own, and `name` is then free. Warns (DataWarning) of evaluation examples that are in
    train too. UsageError: an unknown task or split. DataError: a file is missing or malformed.
    """
    if unknown := [split for split in splits if split not in SPLITS]:
        raise UsageError(f"load_task: unknown split {unknown[0]!r}; there are {', '.join(SPLITS)}")
    if files is not None:
        if name.lower() in (*TASKS, *ALIASES) or is_ner(name) or is_amazon(name):
            raise UsageError(f"task {name!r} is built in; leave out the files, or give the task another name")
        return load_files(name, files, tuple(splits)).warn_about_overlap()
    task = find_task(name)
    folder = None if data_dir is None else Path(data_dir)
    train = Split([], [] if task.pair else None, [], name="train", words=[] if task.kind == "tokens" else None)
    evaluation: dict[str, Split] = {}
    for split in splits:
        if task.name in GLUE:
            parts = load_glue(task.name, split, folder)
        elif task.name in NLI:
            parts = load_nli(task.name, split, folder)
        elif is_ner(task.name):
            parts = load_ner(task.name, split, folder)
        elif is_amazon(task.name):
            parts = load_amazon(task.name, split, folder)
        else:
            parts = load_demo(split)
        train = parts.pop("train", train)
        evaluation |= parts
    return TaskData(task, train, evaluation).warn_about_overlap()
