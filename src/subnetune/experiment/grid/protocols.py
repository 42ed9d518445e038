"""Protocols: grids by name, each the published way to ask one question. A grid file's own values win over them."""

from __future__ import annotations

import copy
from typing import Any

from subnetune.core.errors import UsageError, nearest

# The four small GLUE tasks of the Child-Tuning and DPS papers.
SMALL = ["cola", "rte", "mrpc", "stsb"]
COMPARED = ["full", "child-tuning-f", "child-tuning-d", "bitfit"]

PROTOCOLS: dict[str, dict[str, Any]] = {
    # Child-Tuning (arXiv 2109.05687): ten seeds, the last checkpoint, the dev set.
    "glue-small": {"tasks": SMALL, "methods": COMPARED, "seeds": 10},
    "glue": {
        "tasks": ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"],
        "methods": COMPARED,
        "seeds": 10,
    },
    # Sub-samples of the training file that are the same for every method and seed; the whole dev set.
    "low-resource": {"tasks": SMALL, "methods": COMPARED, "seeds": 10, "train_size": [300, 500, 1000]},
    # Child-Tuning took 5000 examples of MNLI or SNLI, DPS 8000 (METHODS A.4, B.4).
    "domain-transfer": {
        "tasks": ["mnli"],
        "methods": COMPARED,
        "seeds": 10,
        "train_size": [5000],
        "transfer": ["mnli", "snli", "sick", "scitail", "rte", "qqp", "hans"],
    },
    # The tuned encoder is frozen; a linear head for each other task is fitted on its features.
    "task-transfer": {
        "tasks": ["sst2"],
        "methods": COMPARED,
        "seeds": 10,
        "train_size": [5000],
        "probes": ["cola", "mrpc", "rte", "stsb"],
    },
    # Learning rate (and keep) per method on held-out training data; dev is used once, by the chosen setting.
    "sweep": {
        "tasks": SMALL,
        "methods": COMPARED,
        "seeds": 3,
        "search": {"holdout": 0.3, "lr": [2e-5, 5e-5, 1e-4, 2e-4, 5e-4], "keep": [0.1, 0.3]},
    },
}


def protocol(name: str) -> dict[str, Any]:
    """Return the values of a protocol, to change at will. UsageError, with the nearest names, for an unknown one."""
    if name not in PROTOCOLS:
        raise UsageError(f"unknown preset {name!r}{nearest(name, PROTOCOLS)}; there are {', '.join(PROTOCOLS)}")
    return copy.deepcopy(PROTOCOLS[name])
