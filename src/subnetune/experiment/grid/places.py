"""Where a grid's files lie: absolute in its folder, so that it goes on from anywhere, and in no text for others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from subnetune.experiment.grid.config import GridConfig

# Options that name a file.
FILES = ("train_file", "dev_file", "peft_config")
_FOLDERS = re.compile(r"(?<![\w.:/~-])~?/(?:[^\s/'\"`:;,()\[\]<>|]+/)+")


def anchored(grid: GridConfig) -> GridConfig:
    """Return the grid with absolute paths: what is relative is meant from the folder in which the command was given.

    A model that is no folder here is a name.
    """

    def entry(options: Mapping[str, Any]) -> dict[str, Any]:
        return {name: _absolute(value) if name in FILES and value else value for name, value in options.items()}

    return grid.model_copy(
        update={
            "model": _absolute(grid.model) if grid.model != "minilm" and Path(grid.model).is_dir() else grid.model,
            "data_dir": None if grid.data_dir is None else grid.data_dir.absolute(),
            "tasks": {name: entry(options) for name, options in grid.tasks.items()},
            "methods": {name: entry(options) for name, options in grid.methods.items()},
            "common": entry(grid.common),
        }
    )


def _absolute(path: object) -> object:
    return str(Path(path).expanduser().absolute()) if isinstance(path, str) else path


def without_folders(text: str) -> str:
    """Return the text with files by their names alone: where they lie says nothing to another reader."""
    return _FOLDERS.sub("", text)
