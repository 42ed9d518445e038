"""A token classification task from your own files of tagged words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from subnetune.core.errors import DataError, UsageError
from subnetune.tasks.conll import OUTSIDE, LineReader, Sentences, conll_line, read_sentences, tag_set, uner_line
from subnetune.tasks.ner import METRICS, tagged_split
from subnetune.tasks.types import Split, Task, TaskData

READERS: dict[str, LineReader] = {".conll": conll_line, ".txt": conll_line, ".iob2": uner_line}


def is_token_file(path: Path) -> bool:
    """Say whether a file holds tagged words, by its ending: .conll, .iob2 or .txt, each also with .gz."""
    return _ending(path) in READERS


def _ending(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def load_token_files(name: str, files: Mapping[str, Path], labels: tuple[str, ...] | None) -> TaskData:
    """Return the task that the files (by split) hold.

    The tags are O, B-X and I-X for each type X of the train file, or `labels` in order of their ids where a model knows
    them. A test file may have no tags. DataError, with file and line, for any other tag and for what is malformed;
    UsageError where there are neither train nor labels, or labels without O.
    """
    read: dict[str, Sentences] = {}
    if labels is None:
        if "train" not in files:
            raise UsageError(f"{name}: without train the tags are unknown; give FileSpec(labels=...) in order of id")
        read["train"] = _read(files["train"])
        labels = _tags_of(read["train"])
    if OUTSIDE not in labels:
        raise UsageError(f"{name}: the tags of words have O among them, and these labels do not: {', '.join(labels)}")
    task = Task(name, "tokens", labels, METRICS, pair=False)
    for split, path in files.items():
        if split not in read:
            read[split] = _read(path, labels, may_lack_tags=split == "test")
    splits = {split: tagged_split(found.words, found.tags, task, split) for split, found in read.items()}
    train = splits.pop("train", Split([], None, [], name="train", words=[]))
    return TaskData(task, train, splits)


def _read(path: Path, known: tuple[str, ...] | None = None, *, may_lack_tags: bool = False) -> Sentences:
    return read_sentences(path, READERS[_ending(path)], known, may_lack_tags=may_lack_tags)


def _tags_of(train: Sentences) -> tuple[str, ...]:
    types = {tag[2:] for row in train.tags or () for tag in row if tag != "O"}
    if not types:
        raise DataError(f"{train.path}: no word has a tag of an entity; every one is 'O'")
    return tag_set(types)
