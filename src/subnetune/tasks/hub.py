"""GLUE in the layout of the Hub's data set (`nyu-mll/glue`): its own parquet files, or a copy of them in a folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from subnetune.core.errors import DataError, MissingDataError
from subnetune.tasks.readers import read_parquet
from subnetune.tasks.types import Split, Task

HUB_NAME = "nyu-mll/glue"


def find_shards(folder: Path, part: str) -> list[Path]:
    """Return the split's files in `folder` (`train-00000-of-00001.parquet`), in order. DataError if one is missing."""
    shards = sorted(folder.glob(f"{hub_part(part)}-*.parquet"))
    for shard in shards:
        count = shard.stem.rsplit("-of-", 1)[-1]
        if count.isdigit() and int(count) != len(shards):
            raise DataError(f"{folder}: split {part!r} has {len(shards)} file(s), but {shard.name} says {int(count)}")
    return shards


def read_shards(task: Task, texts: tuple[str, ...], part: str, shards: list[Path]) -> Split:
    """Return the split that the files hold; `texts` are the names of the text columns."""
    tables = [read_parquet(shard) for shard in shards]
    wanted = [name for name in (*texts, "label") if all(table.has(name) for table in tables)]
    columns = {name: [values[t.column(name)] for t in tables for _, values in t.rows] for name in wanted}
    return _split(task, texts, part, columns, str(shards[0].parent))


def read_hub(task: Task, texts: tuple[str, ...], part: str, fix: str) -> Split:
    """Return the split from the Hub (or its cache). MissingDataError, with `fix`, where it cannot be had."""
    where = f"the Hub's {HUB_NAME} ({task.name}, {hub_part(part)})"
    try:
        from datasets import load_dataset
    except ImportError:
        raise MissingDataError(f"{task.name}: {where} needs subnetune[data]; install that, or {fix}") from None
    try:
        loaded: Any = load_dataset(HUB_NAME, task.name, split=hub_part(part))
    except Exception as error:  # offline, uncached, refused: the types come from several libraries below `datasets`
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MissingDataError(f"{task.name}: {where} cannot be had ({reason}); {fix}") from error
    return _split(task, texts, part, {name: list(loaded[name]) for name in loaded.column_names}, where)


def hub_part(part: str) -> str:
    """Return the Hub's name of a split: it calls `dev` `validation`."""
    return part.replace("dev", "validation")


def _split(task: Task, texts: tuple[str, ...], part: str, columns: dict[str, list[Any]], where: str) -> Split:
    if missing := [name for name in (*texts, "label") if name not in columns]:
        raise DataError(f"{where}: no column {missing[0]!r}; there are {', '.join(map(repr, columns))}")
    for name in texts:
        for row, value in enumerate(columns[name], start=1):
            if not isinstance(value, str):
                raise DataError(f"{where}, row {row}: column {name!r} must be text, got {value!r}")
    labels: list[int] | list[float] | None = columns["label"]
    if part.startswith("test") and all(value == -1 for value in columns["label"]):
        labels = None  # the Hub's mark for a hidden label
    else:
        for row, value in enumerate(columns["label"], start=1):
            if not _is_label(task, value):
                raise DataError(f"{where}, row {row}: {value!r} is no label of {task.name}")
    return Split(columns[texts[0]], columns[texts[1]] if task.pair else None, labels, name=part)


def _is_label(task: Task, value: object) -> bool:
    if task.kind == "regression":
        return isinstance(value, float) and math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(task.labels)
