"""Run one cell in this process: train, measure what the grid asks for besides, and write down what it came to."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from subnetune.core.errors import SubnetuneError
from subnetune.experiment.config import RunConfig, build_recipe, load_config
from subnetune.experiment.grid.cells import Cell
from subnetune.experiment.grid.config import GridConfig
from subnetune.experiment.grid.folder import CellResult, GridFolder
from subnetune.experiment.grid.memory import PeakMemory
from subnetune.experiment.result import Evaluation, RunResult
from subnetune.experiment.rundir import RunDir, read_json

# Failures of this cell, not of the machine or the program: the grid goes on. A full disk is not among them.
FAILURES = (SubnetuneError, ArithmeticError, ValueError, TypeError, LookupError, AttributeError, RuntimeError)


def run_cell(folder: GridFolder, grid: GridConfig, cell: Cell, threads: int) -> CellResult:
    """Train a cell (or go on with it), measure, write `result.json`, and return what it holds.

    The caller holds the cell's lock. A cell that was begun keeps the number of threads that it began with. What goes
    wrong inside the cell becomes a failed result; OSError, MemoryError and a stop signal (SystemExit) go through.
    """
    run = folder.run(cell)
    begun = load_config(run.config, {}) if run.config.is_file() else None
    threads = begun.threads or threads if begun is not None else threads
    try:
        result = _measured(grid, cell, run, threads)
    except FAILURES as error:
        lines = str(error).strip().splitlines()
        result = CellResult("failed", error={"type": type(error).__name__, "message": lines[0] if lines else ""})
    run.path.mkdir(parents=True, exist_ok=True)
    folder.write_result(cell, result)
    if result.state == "done" and not cell.keep:
        _lighten(run)
    return result


def forget(folder: GridFolder, cell: Cell) -> None:
    """Remove what a failed cell left, so that it is run again. The caller holds the cell's lock."""
    shutil.rmtree(folder.cell(cell), ignore_errors=True)


def _measured(grid: GridConfig, cell: Cell, run: RunDir, threads: int) -> CellResult:
    from subnetune.experiment.loop import train

    memory = PeakMemory()
    config = cell.config(output=str(run.path), resume=True, threads=threads)
    trained = train(config)
    peak = memory.bytes()
    extra = _extras(grid, cell, config, run) if cell.stage == "run" else {}
    environment = read_json(run.environment)
    return CellResult(
        "done",
        metric=trained.metric,
        value=trained.value,
        evaluation=trained.evaluation,
        trained=trained.trained,
        total=trained.total,
        delta_bytes=trained.delta_bytes,
        seconds=trained.seconds,
        peak_memory_bytes=peak,
        settings=_settings(config, run, trained, environment),
        environment=environment,
        **extra,
    )


def _extras(grid: GridConfig, cell: Cell, config: RunConfig, run: RunDir) -> dict[str, Any]:
    """Return the majority level, and what the tuned model does on other tasks; leave the analysis in the folder."""
    from subnetune.experiment.analysis import analyse_run
    from subnetune.experiment.session import load_data
    from subnetune.tasks.majority import majority_scores

    found: dict[str, Any] = {"majority": majority_scores(load_data(config))}
    if grid.transfer or grid.probes:
        found |= _elsewhere(grid, config, run)
    if grid.analyse != "none":
        analyse_run(run, config, deep=cell.analyse)
    return found


def _elsewhere(grid: GridConfig, config: RunConfig, run: RunDir) -> dict[str, Any]:
    from subnetune.delta import load
    from subnetune.experiment.probes import probe_scores
    from subnetune.experiment.session import load_tokenizer, pick_device
    from subnetune.experiment.transfer import transfer_scores

    model = load(config.model, run.path, device=pick_device())
    tokenizer = load_tokenizer(config, run.tokenizer)
    transfer: Evaluation
    probes: Evaluation
    transfer, skipped = transfer_scores(model, tokenizer, config, grid.transfer, grid.max_transfer)
    probes, more = probe_scores(model, tokenizer, config, grid.probes, grid.max_transfer)
    return {"transfer": transfer, "probes": probes, "skipped": {**skipped, **more}}


def _settings(config: RunConfig, run: RunDir, trained: RunResult, environment: dict[str, Any]) -> dict[str, Any]:
    """Return what `rows.SETTINGS` names: what was asked, and what it came to in this run."""
    from subnetune.experiment.session import load_data

    names = ("lr", "epochs", "batch_size", "schedule", "warmup", "weight_decay", "clip", "max_length", "threads")
    recipe = build_recipe(config)
    metrics = read_json(run.metrics)
    return {
        **{name: getattr(config, name) for name in names},
        "keep": getattr(recipe.selector, "keep", None),
        "steps": metrics["steps"],
        "train_examples": len(load_data(config, ("train",) if config.holdout is None else ("train", "dev")).train),
        "dropout": _dropout(config),
        "precision": "bf16" if config.bf16 else "fp32",
        "engine": str(environment["engine"]).partition(":")[0],
    }


def _dropout(config: RunConfig) -> float | None:
    """Return the rate that training uses: the recipe's, else the one that the model's configuration names first."""
    from transformers import AutoConfig

    from subnetune.delta.models import resolve_model

    for preparation in build_recipe(config).prepare:
        rate = getattr(preparation, "dropout_rate", None)
        if rate is not None:
            return float(rate)
    model = AutoConfig.from_pretrained(resolve_model(config.model))
    names = ("hidden_dropout_prob", "dropout", "resid_pdrop", "dropout_rate", "attention_dropout")
    return next((float(getattr(model, name)) for name in names if getattr(model, name, None) is not None), None)


def _lighten(run: RunDir) -> None:
    """Remove what is large. The mask stays: which entries two runs chose can be compared afterwards."""
    for path in (run.delta, run.checkpoints, run.scoring, run.tokenizer):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            Path(path).unlink(missing_ok=True)
