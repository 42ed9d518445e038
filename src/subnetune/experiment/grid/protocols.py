"""Protocols: grids by name, each a published way to ask one question. A grid file's own values win over them.

All share the budget of `grid.config.BUDGET` and the weights after the last step. Where a number comes from stands
beside it: METHODS names sections of the project's notes on the papers, "ours" what no paper was found to say.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from subnetune.core.errors import UsageError, nearest

# The four small GLUE tasks of the Child-Tuning and DPS papers (METHODS A.4). Child-Tuning's author gives a keep for
# each of them (METHODS A.3); a preset takes the card's keep for all, and `sweep` searches.
SMALL = ["cola", "rte", "mrpc", "stsb"]
COMPARED = ["full", "child-tuning-f", "child-tuning-d", "bitfit"]
# Fractions that train, by method. Child-Tuning's are its grids (METHODS A.3). DPS's code trains 0.7 of a matrix, under
# two names that say 0.3, and which of them the paper means is not known (METHODS B.2). Mixout's are three of the eight
# that the appendix of DPS tries, as 1 - p (METHODS B.4). Methods that are not here keep their default.
KEEPS = {
    "child-tuning-f": [0.2, 0.3, 0.4],
    "child-tuning-d": [0.1, 0.2, 0.3],
    "dps-dense": [0.3, 0.7],
    "dps-mix": [0.3, 0.7],
    "mixout": [0.2, 0.5, 0.9],
}

PROTOCOLS: dict[str, dict[str, Any]] = {
    # Train on train, report dev with the last checkpoint, the mean of the ten published seeds (METHODS A.3, A.4).
    "glue-small": {"tasks": SMALL, "methods": COMPARED, "seeds": 10},
    # The same on all nine. Child-Tuning has eight of them, without WNLI (METHODS A.4).
    "glue": {
        "tasks": ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"],
        "methods": COMPARED,
        "seeds": 10,
    },
    # Sub-samples of train, the whole dev set. 500 and 1000 are DPS's sizes, 1000 HyPe's, 300 to 1000 those of AGWM
    # (METHODS A.4, B.4, B.5). Stratified, and drawn by `train_seed`: DPS draws by the training seed, so that its spread
    # mixes two causes (METHODS B.6, 12).
    "low-resource": {"tasks": SMALL, "methods": COMPARED, "seeds": 10, "train_size": [300, 500, 1000]},
    # Child-Tuning trains on 5000 examples of MNLI or SNLI and evaluates on MNLI, SNLI, SICK, SciTail and QQP (METHODS
    # A.4); RTE is DPS's, which trains on 8000 (METHODS B.4); HANS is ours. `--tasks snli` is the other half.
    "domain-transfer": {
        "tasks": ["mnli"],
        "methods": COMPARED,
        "seeds": 10,
        "train_size": [5000],
        "transfer": ["mnli", "snli", "sick", "scitail", "rte", "qqp", "hans"],
    },
    # Freeze what was tuned on SST-2, HyPe's source (Child-Tuning's was not found), and fit a linear head for each other
    # task (METHODS A.4). The 5000 examples and which tasks are probed: ours.
    "task-transfer": {
        "tasks": ["sst2"],
        "methods": COMPARED,
        "seeds": 10,
        "train_size": [5000],
        "probes": ["cola", "mrpc", "rte", "stsb"],
    },
    # Learning rate and keep per method on held-out training data; the chosen setting sees dev once (METHODS I.11; the
    # papers searched on dev, A.4). The rates span those of full fine-tuning, HyPe's 1e-5 to 4e-5 for large models
    # (METHODS A.3), to what adapters and biases want; their number and the share that is held out: ours.
    "sweep": {
        "tasks": SMALL,
        "methods": COMPARED,
        "seeds": 3,
        "search": {"holdout": 0.3, "lr": [2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3]},
        "of_methods": {name: {"search": {"keep": keeps}} for name, keeps in KEEPS.items()},
    },
}


def protocol(name: str) -> dict[str, Any]:
    """Return the values of a protocol, to change at will. UsageError, with the nearest names, for an unknown one.

    `of_methods`, where a protocol has it, is no field of a grid: options for methods by name, whichever are compared.
    """
    if name not in PROTOCOLS:
        raise UsageError(f"unknown preset {name!r}{nearest(name, PROTOCOLS)}; there are {', '.join(PROTOCOLS)}")
    return copy.deepcopy(PROTOCOLS[name])


def with_protocol(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a grid's values over those of its `preset`; without one, as they are. UsageError as in `protocol`.

    How they are merged: `grid.config.over`. What the protocol has for a method is put under the method's own options.
    """
    from subnetune.experiment.grid.config import over

    name = values.get("preset")
    if not isinstance(name, str):
        return dict(values)
    below = protocol(name)
    options: dict[str, dict[str, Any]] = below.pop("of_methods", {})
    said = values.get("search")
    if "search" in values and said is None:  # no search at all, of what a protocol adds for a method neither
        for entry in options.values():
            entry.pop("search", None)
    if isinstance(said, Mapping):  # for all methods: it wins
        for entry in options.values():
            entry["search"] = {name: tried for name, tried in entry.get("search", {}).items() if not said.get(name)}
    merged = over(below, values)
    return {**merged, "methods": _with_options(merged["methods"], options)} if options else merged


def _with_options(methods: object, options: Mapping[str, Mapping[str, Any]]) -> object:
    """Return a grid's `methods` in whatever form they were given, `options` by the method's name underneath."""
    if isinstance(methods, str):
        methods = [label.strip() for label in methods.split(",")] if methods.strip() else []
    if isinstance(methods, list | tuple):
        if not all(isinstance(label, str) for label in methods) or len(set(methods)) < len(methods):
            return methods  # refused by the grid, which says why
        methods = dict.fromkeys(methods)
    if not isinstance(methods, Mapping):
        return methods
    return {label: _under(entry, options.get(_method(label, entry), {})) for label, entry in methods.items()}


def _method(label: object, entry: object) -> str:
    return str(entry.get("method", label) if isinstance(entry, Mapping) else label)


def _under(entry: object, options: Mapping[str, Any]) -> object:
    if entry is None:
        return dict(options)
    if not isinstance(entry, Mapping):
        return entry
    merged = {**options, **entry}
    if isinstance(options.get("search"), Mapping) and isinstance(entry.get("search"), Mapping):
        merged["search"] = {**options["search"], **entry["search"]}
    return merged
