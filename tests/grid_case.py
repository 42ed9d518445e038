"""A grid small enough to be killed many times: the model and files of `tiny_run`, two methods, a run in a second."""

from __future__ import annotations

import csv
import importlib
import io
import json
import multiprocessing
from collections import Counter
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from subnetune.experiment.grid.process import PRELOAD

# Weight decay at this rate multiplies every weight by -9 a step: soon nothing is a number.
DIVERGING = {"lr": 10.0, "weight_decay": 1.0, "clip": 0.0, "schedule": "constant", "warmup": 0, "epochs": 20}
# Columns that say how long and where; all others are the same bytes for the same runs.
OF_THIS_RUN = ("seconds", "memory", "path", "host")


def own_files(root: Path, train: str = "train.csv", dev: str = "dev.csv") -> dict[str, Any]:
    """Return the entry of a task that is made of the files in `root`."""
    return {
        "train_file": str(root / train),
        "dev_file": str(root / dev),
        "text": ["sentence"],
        "label": "label",
    }


def grid_values(root: Path, **changed: Any) -> dict[str, Any]:
    """Return a grid file's values: one task, two methods, two seeds, a pass of 7 steps each."""
    values: dict[str, Any] = {
        "model": str(root / "model"),
        "tasks": {"mine": own_files(root)},
        "methods": ["full", "child-tuning-d"],
        "seeds": [1, 2],
        "common": {"lr": 5e-3, "epochs": 1, "batch_size": 4, "max_length": 16, "threads": 1},
        "analyse": "none",
    }
    return values | changed


def write_grid_file(file: Path, values: dict[str, Any]) -> Path:
    """Write values as a grid file."""
    file.write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in values.items()))
    return file


def forked() -> BaseContext:
    """Return the context that forks this process, and import here what each of its processes would."""
    for name in PRELOAD:
        importlib.import_module(name)
    return multiprocessing.get_context("fork")


def starts(folder: Path) -> Counter[str]:
    """Return how many times each cell was begun."""
    lines = (json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines())
    return Counter(line["cell"] for line in lines if line["event"] == "start")


def steady(text: str) -> str:
    """Return a CSV without the columns that differ from run to run."""
    rows = list(csv.reader(io.StringIO(text)))
    kept = [i for i, name in enumerate(rows[0]) if not any(part in name for part in OF_THIS_RUN)]
    return "\n".join(",".join(row[i] for i in kept) for row in rows)
