"""What a grid must say of a task whose examples are words instead of texts, and what it cannot ask of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from subnetune.core.errors import UsageError
from subnetune.tasks import find_task
from subnetune.tasks.token_files import is_token_file

_FILES = ("train_file", "dev_file")


def needed_of_own(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what a task of own files must say: its files, and of tables their columns."""
    return _FILES if _has_words(entry) else (*_FILES, "text", "label")


def check_other_tasks(transfer: Sequence[str], probes: Sequence[str], tasks: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UsageError for unknown names, for a probe of words, and for any probe of a model that labels words."""
    from subnetune.experiment.probes import check_probe

    for name in transfer:
        find_task(name)
    for name in probes:
        check_probe(find_task(name))
    for name, entry in tasks.items():
        own = any(part in entry for part in _FILES)
        if probes and (_has_words(entry) if own else find_task(name).kind == "tokens"):
            raise UsageError(
                f"probes read one feature vector of a whole text, and models of {name!r} label words: leave out the "
                "probes, or compare such tasks in a grid of their own"
            )


def _has_words(entry: Mapping[str, Any]) -> bool:
    given = [Path(str(entry[name])) for name in _FILES if entry.get(name)]
    return "text" not in entry and any(map(is_token_file, given))
