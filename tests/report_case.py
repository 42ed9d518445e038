"""A grid's folder as `compare` leaves it, written by hand: 4 tasks x 4 methods x 5 seeds, a search, failures and gaps.

One task and one method are named like scripts. Nothing is trained; the same call writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from report_analysis_case import write_analysis, write_fast
from subnetune.experiment.grid.cells import Cell, describe_cell, groups, run_cells, search_cells
from subnetune.experiment.grid.config import GridConfig
from subnetune.experiment.grid.folder import CellResult, GridFolder

EVIL_TASK = "<script>alert(1)</script>"
EVIL_METHOD = "</style><img src=x onerror=alert(2)>|`*"
EVIL_ERROR = "the loss is nan in step 7 <script>alert(3)</script>"
FILES = {"train_file": "train.csv", "dev_file": "dev.csv", "text": ["sentence"], "label": "label"}
VALUES: dict[str, Any] = {
    "model": "minilm",
    "tasks": {"rte": {}, "mrpc": {}, "stsb": {}, EVIL_TASK: FILES},
    "methods": {
        "full": {},
        "child-tuning-d": {"keep": 0.3},
        "bitfit": {"lr": 1e-3},
        EVIL_METHOD: {"method": "full", "lr": 3e-5},
    },
    "seeds": 5,
    "train_size": [300],
    "search": {"lr": [5e-5, 1e-4, 2e-4], "holdout": 0.3},
    "common": {"epochs": 4, "max_length": 64},
}
METRICS = {"rte": "accuracy", "mrpc": "f1", "stsb": "pearson", EVIL_TASK: "accuracy"}
LEVELS = {"rte": 0.5271, "mrpc": 0.8122, "stsb": 0.0, EVIL_TASK: 0.5}
MEANS = {"rte": 0.605, "mrpc": 0.842, "stsb": 0.783, EVIL_TASK: 0.722}
GAINS = {"full": 0.0, "child-tuning-d": 0.021, "bitfit": -0.017, EVIL_METHOD: 0.004}
TRAINED = {"full": 22_713_986, "child-tuning-d": 3_345_408, "bitfit": 30_978, EVIL_METHOD: 22_713_986}
FAILED = {("rte", "bitfit", 57), ("mrpc", EVIL_METHOD, 42)}
MISSING = {("stsb", "full", 78), ("stsb", "bitfit", 63), ("stsb", "bitfit", 78)}
# One seed alone of this group is finished: no spread, no interval.
SINGLE = (EVIL_TASK, EVIL_METHOD)


def write_grid(
    path: Path, *, finished: bool = False, plotted: Sequence[str] = (), values: Mapping[str, Any] = VALUES
) -> GridFolder:
    """Write the folder and return it. `finished` leaves no cell out and lets none fail; runs of `plotted`
    tasks have a log, masks and an analysis: plots take time."""
    grid = GridConfig.from_values(values)
    folder = GridFolder(path)
    folder.write_grid(grid)
    for group in groups(grid):
        for cell in search_cells(grid, group):
            _write(folder, cell, _search_result(cell))
        setting = folder.chosen(grid, group)
        assert setting is not None
        for number, cell in enumerate(run_cells(grid, group, setting)):
            key = (group.task, group.method, cell.seed)
            if not finished and (key in MISSING or ((group.task, group.method) == SINGLE and number)):
                continue
            if not finished and key in FAILED:
                _write(folder, cell, CellResult("failed", error={"type": "NumericError", "message": EVIL_ERROR}))
            else:
                _write(folder, cell, _result(cell))
                if group.task in plotted:
                    write_log(folder.run(cell).log, cell)
                    keep = 0.3 if "child" in group.method else None
                    write_analysis(folder.cell(cell), _draw(cell), keep=keep, deep=cell.analyse)
    return folder


def _write(folder: GridFolder, cell: Cell, result: CellResult) -> None:
    run = folder.run(cell)
    run.path.mkdir(parents=True)
    write_fast(run.path / "cell.json", describe_cell(cell))
    write_fast(run.path / "result.json", asdict(result))


def _draw(cell: Cell) -> random.Random:
    return random.Random(f"{cell.group.task}/{cell.group.method}/{cell.seed}/{cell.setting}")


def _search_result(cell: Cell) -> CellResult:
    metric, mean = METRICS[cell.group.task], MEANS[cell.group.task]
    value = round(mean - abs(math.log(float(cell.setting["lr"]) / 1e-4)) / 20 + _draw(cell).gauss(0, 0.004), 4)
    return CellResult("done", metric=metric, value=value, evaluation={"holdout": {metric: value}})


def _result(cell: Cell) -> CellResult:
    task, method, _ = cell.group
    draw, metric = _draw(cell), METRICS[task]
    # What a seed shares over methods is what pairing takes out.
    common = random.Random(f"{task}/{cell.seed}").gauss(0, 0.012)
    value = round(min(0.99, MEANS[task] + GAINS[method] + common + draw.gauss(0, 0.007)), 6)
    if (task, cell.seed) == ("rte", 63) and method == "full":
        value = LEVELS[task]
    evaluation = {"dev": {metric: value, **({"accuracy": round(value - 0.06, 6)} if metric == "f1" else {})}}
    lr = cell.values.get("lr", cell.setting.get("lr", 1e-4))
    trained, total = TRAINED[method], 22_713_986
    return CellResult(
        "done",
        metric=metric,
        value=value,
        evaluation=evaluation,
        majority={"dev": {metric: LEVELS[task]}},
        trained=trained,
        total=total,
        delta_bytes=int(trained * 4.02) + 512,
        seconds=round(38 + 20 * trained / total + draw.random() * 3, 3),
        peak_memory_bytes=int(3.1e8 + 2.5e8 * trained / total + draw.random() * 1e6),
        settings={
            "lr": lr,
            "epochs": 4,
            "batch_size": 16,
            "schedule": "linear",
            "warmup": 0.1,
            "weight_decay": 0.01,
            "clip": 1.0,
            "dropout": 0.1,
            "steps": 76,
            "train_examples": 300,
            "max_length": 64,
            "precision": "fp32",
            "keep": cell.values.get("keep"),
            "engine": "packed" if "child" in method else "reference",
            "threads": 1,
        },
        environment={
            "versions": {"python": "3.11.9", "subnetune": "0.1.0", "torch": "2.13.0", "numba": None},
            "machine": "x86_64",
            "system": "Linux",
            "device": "cpu",
            "threads": 1,
            "world": 1,
            "data": hashlib.sha256(task.encode()).hexdigest(),
            "base": hashlib.sha256(b"base").hexdigest(),
            "mask": hashlib.sha256(cell.name.encode()).hexdigest() if "child" in method else None,
            "engine": "packed: static mask" if "child" in method else "reference: everything trains",
        },
    )


def write_log(path: Path, cell: Cell) -> None:
    """Write the log of a run: a loss that falls, step by step."""
    draw, steps = _draw(cell), 76
    entries = []
    for step in range(1, steps + 1):
        rate = 1e-4 * min(step / 8, (steps - step) / (steps - 8))
        loss = 0.69 * math.exp(-step / 60) + draw.gauss(0, 0.03)
        entries.append({"step": step, "loss": loss, "lr": rate, "grad_norm": 1 + draw.random(), "seconds": step / 2})
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


def write_plain_run(path: Path, config: Mapping[str, Any], metrics: Mapping[str, Any] | None) -> None:
    """Write a run directory as `train` leaves it: finished or failed, or without metrics where it still lasts."""
    from subnetune.experiment.config import RunConfig

    path.mkdir(parents=True)
    (path / "config.yaml").write_text(RunConfig.from_values(config).to_yaml(), encoding="utf-8")
    (path / "log.jsonl").write_text('{"step": 1, "loss": 0.7, "lr": 0.001, "grad_norm": 1.0, "seconds": 0.5}\n')
    if metrics is not None:
        write_fast(path / "metrics.json", metrics)


def finished(value: float, metric: str = "accuracy", **more: Any) -> dict[str, Any]:
    """Return the metrics of a run that ended well."""
    values = {"status": "finished", "metric": metric, "value": value, "metrics": {metric: value}}
    cost = {"trained": 100, "total": 1000, "seconds": 1.5, "delta_bytes": 4096}
    return {**values, **cost, "evaluation": {"dev": {metric: value}}, "step": 5, "steps": 5, **more}
