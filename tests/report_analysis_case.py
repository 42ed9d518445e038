"""What `analyse_run` leaves beside a run, written by hand: a mask, geometry, representations, the loss around."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import torch

from subnetune.select.maskfile import write_mask

LAYERS = ("embeddings", *(f"layer {number}" for number in range(6)), "head")
ROLES = {"linear": 10_646_784, "bias": 13_824, "norm": 9_984, "embeddings": 11_917_056, "head": 770}
ALONG = (-0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5)
ACROSS = (-1.0, -0.8, -0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def write_fast(path: Path, value: dict[str, Any]) -> None:
    """Write JSON without waiting for the disk, as the library does."""
    path.write_text(json.dumps(value), encoding="utf-8")


def write_analysis(path: Path, draw: random.Random, *, keep: float | None, deep: bool) -> None:
    """Write `mask.safetensors` where `keep` is given, and `analysis/` of a run, with `deep` all three files."""
    if keep is not None:
        generator = torch.Generator().manual_seed(draw.randrange(2**31))
        params = {f"layer.{number}.weight": torch.zeros(32, 32) for number in range(2)}
        common = torch.rand(32, 32, generator=torch.Generator().manual_seed(0))
        mask = {name: (common + torch.rand(32, 32, generator=generator)) / 2 > 0.6 for name in params}
        write_mask(path / "mask.safetensors", mask, params)
    folder = path / "analysis"
    folder.mkdir()
    layers = [_row(name, 1_800_000, keep, draw) for name in LAYERS]
    roles = [_row(name, entries, keep, draw) for name, entries in ROLES.items()]
    total = _row("total", sum(ROLES.values()), keep, draw)
    write_fast(folder / "geometry.json", {"layers": layers, "roles": roles, "total": total, "why": {}})
    if deep:
        write_fast(folder / "cka.json", _representations(draw))
        write_fast(folder / "surface.json", _surface(draw))


def _row(name: str, entries: int, keep: float | None, draw: random.Random) -> dict[str, Any]:
    selected = None if keep is None else int(entries * keep * (0.6 + 0.8 * draw.random()))
    moved = int((entries if selected is None else selected) * 0.98)
    distance = None if name == "head" else round(0.2 + draw.random() * math.sqrt(keep or 1.0), 6)
    found = {"name": name, "entries": entries, "selected": selected, "moved": moved, "distance": distance}
    return {**found, "norm": None if name == "head" else 40.0, "largest": None if name == "head" else 0.01}


def _representations(draw: random.Random) -> dict[str, Any]:
    names = ("embeddings", *(f"layer {number}" for number in range(6)))
    layers = [
        {
            "name": name,
            "cka": round(1 - 0.04 * number * (0.5 + draw.random()), 4),
            "effective_rank_base": 90.0 - 5 * number,
            "effective_rank_tuned": 88.0 - 7 * number - draw.random(),
        }
        for number, name in enumerate(names)
    ]
    return {"examples": 200, "measure": "debiased linear CKA", "representation": "mean", "layers": layers, "why": None}


def _surface(draw: random.Random) -> dict[str, Any]:
    sharp = 0.3 + 0.3 * draw.random()

    def line(name: str, alphas: tuple[float, ...], best: float) -> dict[str, Any]:
        loss = [0.45 + sharp * (alpha - best) ** 2 for alpha in alphas]
        return {
            "name": name,
            "alphas": alphas,
            "loss": loss,
            "metric": [1 - x for x in loss],
            "metric_name": "accuracy",
        }

    xs, ys = (-0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25), (-0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6)
    plane = [[0.45 + sharp * ((x - 1) ** 2 + 1.5 * y * y) for x in xs] for y in ys]
    lines = [line("base to tuned", ALONG, 1.0), line("random, filter-normalised", ACROSS, 0.0)]
    return {
        "examples": 200,
        "directions": lines,
        "plane": {"x": xs, "y": ys, "loss": plane, "examples": 100},
        "why": {},
    }
