"""A made-up grid on disk: scores, logs and analyses of several methods, without any training."""

from __future__ import annotations

import json
import math
import random
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from subnetune.experiment.comparison import Comparison, compare_rows
from subnetune.experiment.grid.cells import Group
from subnetune.experiment.grid.folder import CellResult, GridFolder
from subnetune.experiment.grid.rows import Row
from subnetune.experiment.report.figures import Figure

SVG = "{http://www.w3.org/2000/svg}"
SEEDS = (42, 52, 57, 63, 78, 96, 127, 140, 298, 375)
METHODS = ("full", "child-tuning-f", "child-tuning-d", "dps-dense", "dps-mix", "bitfit", "mixout", "r-drop", "lora")
MASKED = {"child-tuning-f": 0.3, "child-tuning-d": 0.3, "bitfit": 0.002}
Score = float | Literal["failed"] | None  # None: missing


def scores(method: int, task: int, seeds: int) -> list[Score]:
    """Return a method's scores, some at the majority level of 0.53."""
    draw = random.Random(100 * task + method)
    found = [max(0.53, 0.62 + 0.015 * method - 0.03 * task + draw.gauss(0, 0.02)) for _ in range(seeds)]
    return [0.53 if method == 5 and number == 0 else round(value, 4) for number, value in enumerate(found)]


def grid(
    path: Path, given: Mapping[tuple[str, int | None], Mapping[str, Sequence[Score]]], *, steps: int = 0
) -> tuple[GridFolder, list[Row]]:
    """Return a folder and its rows, a score per seed; with `steps` there are logs and analyses of that many steps."""
    folder, rows = GridFolder(path), []
    for (task, size), methods in given.items():
        for number, (method, values) in enumerate(methods.items()):
            for seed, value in zip(SEEDS, values, strict=False):
                name = f"cell-{len(rows)}"
                group = Group(task, method, size)
                rows.append(Row(group, seed, name, result(value, number), {}))
                if steps and value is not None:
                    write_run(folder.cell(name), number, seed, steps, first=seed == SEEDS[0], label=method)
    return folder, rows


def result(value: Score, method: int = 0) -> CellResult | None:
    """Return what a cell came to."""
    if value is None:
        return None
    if value == "failed":
        return CellResult("failed", error={"type": "NumericError", "message": "the loss is not finite"})
    return CellResult(
        "done",
        metric="accuracy",
        value=value,
        evaluation={"dev": {"accuracy": value}},
        majority={"dev": {"accuracy": 0.53}},
        trained=1000,
        total=10_000,
        delta_bytes=int(88e6 / 1.9**method) + 300,
        seconds=60.0 + 17 * (method % 4) + method,
        peak_memory_bytes=int(9e8 - 6e7 * (method % 5)),
        environment={"device": "cpu", "machine": "x86_64", "threads": 2},
    )


def compared(rows: Sequence[Row]) -> Comparison:
    """Return what statistics say about the rows, the first method the baseline."""
    return compare_rows(rows, rows[0].group.method)


def write_run(path: Path, method: int, seed: int, steps: int, *, first: bool, label: str) -> None:
    """Write a log, and the three files of an analysis (the deep ones of the first seed)."""
    draw = random.Random(1000 * method + seed)
    (path / "analysis").mkdir(parents=True)
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        loss = 0.2 + 0.5 * math.exp(-(2 + 0.3 * method) * step / steps) + draw.gauss(0, 0.08)
        lines.append({"step": step, "loss": max(0.01, loss), "lr": 1e-4, "grad_norm": 1.0, "seconds": step * 0.7})
        if step % max(1, steps // 4) == 0:
            lines.append({"step": step, "evaluation": {"dev": {"accuracy": 0.55 + 0.1 * step / steps}}})
    (path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _write(path, "geometry", geometry(method, label))
    if first:
        _write(path, "cka", cka(method))
        _write(path, "surface", surface(method))


def _write(path: Path, name: str, values: dict[str, Any]) -> None:
    (path / "analysis" / f"{name}.json").write_text(json.dumps(values))


def geometry(method: int, label: str) -> dict[str, Any]:
    layers = ["embeddings", *(f"layer {n}" for n in range(6)), "head", "other"]
    keep = MASKED.get(label)

    def row(name: str, at: int) -> dict[str, Any]:
        selected = None if keep is None else int(10_000 * keep * (1 + 0.1 * at * (method == 2)))
        far = None if name == "head" else 0.002 * (method + 1) * (1 + at) * (0 if method == 5 and not at else 1)
        norm = None if name == "head" else 2.0
        return {"name": name, "entries": 10_000, "selected": selected, "moved": selected or 10_000, "distance": far,
                "norm": norm, "largest": far}  # fmt: skip

    roles = ["linear", "bias", "norm", "embeddings", "head", "other"]
    return {
        "layers": [row(name, at) for at, name in enumerate(layers)],
        "roles": [row(name, at) for at, name in enumerate(roles)],
        "total": row("total", 1),
        "why": {},
    }


def cka(method: int) -> dict[str, Any]:
    names = ["embeddings", *(f"layer {n}" for n in range(6))]
    layers = [
        {"name": name, "cka": 1 - 0.008 * at * (method + 1) ** 1.2, "effective_rank_base": 60.0 - 3 * at,
         "effective_rank_tuned": 60.0 - (3 + 0.6 * method) * at}
        for at, name in enumerate(names)
    ]  # fmt: skip
    return {"examples": 256, "measure": "debiased linear CKA", "representation": "mean", "layers": layers, "why": None}


def surface(method: int) -> dict[str, Any]:
    along = [-0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5]
    across = [-1.0, -0.8, -0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    x, y = [-0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25], [-0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6]

    def loss(a: float, b: float) -> float:
        return 0.45 + (0.2 + 0.05 * method) * (1 - a) ** 2 + (2 + 0.4 * method) * b * b

    def line(name: str, alphas: list[float], losses: list[float | None]) -> dict[str, Any]:
        return {
            "name": name,
            "alphas": alphas,
            "loss": losses,
            "metric": [0.6] * len(alphas),
            "metric_name": "accuracy",
        }

    lines = [
        line("base to tuned", along, [loss(a, 0) for a in along]),
        line("random, filter-normalised", across, [None, *(loss(1, b) for b in across[1:])]),
    ]
    plane = {"x": x, "y": y, "loss": [[loss(a, b) for a in x] for b in y], "examples": 64}
    return {"examples": 256, "directions": lines, "plane": plane, "why": {}}


def overlaps(methods: Sequence[str], labels: Sequence[str], task: str = "rte") -> dict[str, Any]:
    """Return overlaps between seeds per method, and between the methods."""

    def square(names: Sequence[str], off: float, step: float = 0.0) -> list[list[float | None]]:
        return [[1.0 if i == j else off + step * (i + j) for j in range(len(names))] for i in range(len(names))]

    seeds = [
        {"between": "seeds", "task": task, "method": method, "train_size": 300, "seed": None, "labels": list(labels),
         "density": [0.3] * len(labels), "jaccard": square(labels, 0.2 + 0.2 * at), "chance": square(labels, 0.1765)}
        for at, method in enumerate(methods)
    ]  # fmt: skip
    between = {
        "between": "methods", "task": task, "method": None, "train_size": 300, "seed": 42, "labels": list(methods),
        "density": [0.3] * len(methods), "jaccard": square(methods, 0.1, 0.03), "chance": square(methods, 0.05, 0.03),
    }  # fmt: skip
    return {"groups": [*seeds, between], "without": ["full"], "why": None}


def texts(figure: Figure) -> list[str]:
    """Return all text in the SVG but title and description."""
    root = ET.fromstring(figure.svg)
    return ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]


def ids(figure: Figure) -> list[str]:
    """Return all ids in the SVG."""
    return [element.attrib["id"] for element in ET.fromstring(figure.svg).iter() if "id" in element.attrib]
