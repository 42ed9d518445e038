"""Plots of masks, weights and representations: what `subnetune.experiment.analysis` found in the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from subnetune.experiment.grid.folder import GridFolder
from subnetune.experiment.grid.rows import Row
from subnetune.experiment.report.figures.figure import Figure
from subnetune.experiment.report.figures.found import read_found
from subnetune.experiment.report.figures.landscape import surface_figures
from subnetune.experiment.report.figures.layers import layer_figures
from subnetune.experiment.report.figures.overlap import overlap_figures
from subnetune.experiment.report.figures.runs import by_task, methods_of, title_of


def analysis(folder: GridFolder, rows: Sequence[Row], overlaps: Mapping[str, Any]) -> list[Figure]:
    """Return the plots of the overlaps of masks (what `analysis.overlaps` returns), then for each task and train size
    those of layers, roles, representations and loss surface, as far as finished runs were analysed."""
    numbers = methods_of(rows)
    figures = overlap_figures(overlaps)
    for (task, size), group in by_task(rows).items():
        found: dict[str, list[dict[str, Any]]] = {}
        for row in group:
            parts = read_found(folder, row)
            if parts:
                found.setdefault(row.group.method, []).append(parts)
        where, name = title_of(task, size), (task, str(size or "all"))
        figures += layer_figures(found, numbers, where, name) + surface_figures(found, numbers, where, name)
    return figures
