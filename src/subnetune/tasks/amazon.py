"""Sentiment of reviews over domains: books, dvd, electronics and kitchen (Blitzer et al., ACL 2007), and airlines.

The four are Amazon's reviews, the multi-domain sentiment data; `airline` holds Skytrax's. Labels follow the rating.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from subnetune.core.errors import DataError, MissingDataError, UsageError, nearest
from subnetune.tasks.readers import find_file, read_jsonl
from subnetune.tasks.types import Split, Task

PREFIX = "amazon:"
DOMAINS = ("books", "dvd", "electronics", "kitchen", "airline")
LABELS = ("negative", "positive")


def amazon_names() -> tuple[str, ...]:
    """Return the names of the domains' tasks."""
    return tuple(f"{PREFIX}{domain}" for domain in DOMAINS)


def is_amazon(name: str) -> bool:
    """Say whether a task's name means one of these."""
    return name.lower().startswith(PREFIX)


@cache
def find_amazon(name: str) -> Task:
    """Return the task of that name, in any case. UsageError if there is none."""
    if name.lower() not in amazon_names():
        raise UsageError(
            f"unknown task {name!r}; there are {', '.join(amazon_names())}{nearest(name.lower(), amazon_names())}"
        )
    return Task(name.lower(), "classification", LABELS, ("accuracy",), pair=False)


def load_amazon(name: str, split: str, data_dir: Path | None) -> dict[str, Split]:
    """Return one split ("train" or "dev"; there is no other) by its name, from `<data_dir>/amazon`.

    MissingDataError says which files were looked for; DataError, with the line, for what is malformed.
    """
    if data_dir is None:
        raise MissingDataError(f"{name} needs a data folder: give --data-dir, the folder that holds amazon")
    domain = name.removeprefix(PREFIX)
    table = read_jsonl(find_file([data_dir / "amazon"], [f"{domain}.{split}.jsonl"], f"{name}, split {split!r}"))
    place = table.column("label")
    for line, values in table.rows:
        if type(values[place]) is not int or values[place] not in (0, 1):
            raise DataError(f"{table.path}, line {line}: label {values[place]!r} is not 0 (negative) or 1 (positive)")
    labels = [values[place] for _, values in table.rows]
    return {split: Split(table.texts(table.column("text")), None, labels, name=split)}
