"""What a run did to its model, as plain JSON beside the run: how far what moved, what the layers say, the loss around.

`RUN/analysis/` holds three files. Norms are Euclidean; null is what could not be computed, and `why` says why.

geometry.json   `{"layers": [row], "roles": [row], "total": row, "why"}`, a row being `{"name", "entries", "selected",
                "moved", "distance", "norm", "largest"}` (see `geometry.geometry`)
cka.json        `{"examples", "measure", "representation", "layers": [{"name", "cka", "effective_rank_base",
                "effective_rank_tuned"}], "why"}` (see `representations.compare_states`)
surface.json    `{"examples", "directions": [{"name", "alphas", "loss", "metric", "metric_name"}], "plane", "why"}`
                (see `surface.surface`)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from subnetune.experiment.analysis.overlaps import overlaps
from subnetune.experiment.config import RunConfig, build_recipe
from subnetune.experiment.rundir import RunDir, read_json, write_json

__all__ = ["analyse_run", "overlaps", "read_analysis"]

_FOLDER = "analysis"
_PARTS = ("geometry", "cka", "surface")


def analyse_run(run: RunDir, config: RunConfig, *, deep: bool) -> None:
    """Write what a finished run did to its model: `geometry.json`, and with `deep` `cka.json` and `surface.json`.

    Needs the run's delta, and with `deep` its tokenizer and data. The global random state is left as it was. Raises
    CheckpointError for a delta that is damaged or of another base, DataError for data that are missing.
    """
    from subnetune.core.randomness import forked_randomness
    from subnetune.delta import Delta, load_base
    from subnetune.experiment.analysis.geometry import geometry
    from subnetune.select.maskfile import read_mask

    folder = run.path / _FOLDER
    with forked_randomness():
        delta = Delta.load(run.delta)
        model = load_base(config.model, delta).eval()
        mask = read_mask(run.mask) if run.mask.is_file() else None
        folder.mkdir(exist_ok=True)
        write_json(folder / "geometry.json", geometry(delta, model, mask, build_recipe(config)))
        if deep:
            from subnetune.experiment.analysis.deep import analyse_deeply

            analyse_deeply(run, config, delta, model, folder)


def read_analysis(run_path: Path) -> dict[str, Any]:
    """Return what `analyse_run` wrote into a run directory, by the files' names; only those that are there.

    Raises CheckpointError for a file that is no JSON.
    """
    files = {name: run_path / _FOLDER / f"{name}.json" for name in _PARTS}
    return {name: read_json(path) for name, path in files.items() if path.is_file()}
