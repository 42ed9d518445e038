"""Run one cell in this process: train, measure what the grid asks for besides, and write down what it came to."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from subnetune.core.errors import SubnetuneError
from subnetune.core.files import atomic_write
from subnetune.experiment.config import RunConfig, build_recipe, load_config
from subnetune.experiment.grid.cells import FILES, NOT_IN_HASH, Cell, describe_cell
from subnetune.experiment.grid.config import GridConfig
from subnetune.experiment.grid.folder import CellResult, GridFolder
from subnetune.experiment.grid.memory import PeakMemory
from subnetune.experiment.result import Evaluation, RunResult
from subnetune.experiment.rundir import RunDir, read_json, write_json

# What the machine refuses, also where a library has wrapped it in an error of its own: no result of a cell.
_REFUSED = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EMFILE, errno.ENFILE))
_REFUSED_TEXTS = ("no space left", "file write failed", "disk quota", "read-only file system", "file too large")


def run_cell(
    folder: GridFolder, grid: GridConfig, cell: Cell, threads: int, trained: Callable[[], None] = lambda: None
) -> CellResult:
    """Train a cell (or go on with it), measure, write `result.json`, and return what it holds.

    The caller holds the cell's lock. A cell that was begun keeps the number of threads that it began with. What goes
    wrong inside the cell becomes a failed result; OSError (also one that a library has wrapped) and a stop signal
    (SystemExit) go through. `trained` is called when the training is in the folder: what follows is soon done again.
    """
    run = folder.run(cell)
    try:
        result = _measured(grid, cell, run, threads, trained)
    except Exception as error:
        if (refused := of_the_machine(error)) is not None:
            raise refused from error
        traceback.print_exc()
        lines = str(error).strip().splitlines()
        result = CellResult("failed", error={"type": type(error).__name__, "message": lines[0] if lines else ""})
    folder.write_result(cell, result)
    if result.state == "done" and not cell.keep:
        _lighten(run)
    return result


def forget(folder: GridFolder, cell: Cell) -> None:
    """Remove what a failed cell left, so that it is run again. The caller holds the cell's lock."""
    path = folder.cell(cell)
    away = path.with_name(f".{path.name[:60]}.{secrets.token_hex(8)}")
    os.replace(path, away)  # at once: half a folder would be taken for a run to go on with
    shutil.rmtree(away, ignore_errors=True)


def of_the_machine(error: BaseException) -> OSError | None:
    """Return the OSError that `error` is, or that it or one of its causes speaks of: a full disk, say. Else None."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and (seen is error or seen.errno in _REFUSED):
            return seen
        if not isinstance(seen, OSError) and any(text in str(seen).lower() for text in _REFUSED_TEXTS):
            return OSError(str(error))
        seen = seen.__cause__ or seen.__context__
    return None


def _measured(grid: GridConfig, cell: Cell, run: RunDir, threads: int, done_training: Callable[[], None]) -> CellResult:
    from subnetune.experiment.environment import seed_everything
    from subnetune.experiment.loop import train
    from subnetune.experiment.session import load_data
    from subnetune.tasks.majority import majority_scores

    config = _begin(cell, run, threads)
    with _peak_memory(run) as peak:
        trained = train(config)
    done_training()
    seed_everything(config.seed, "measure")  # whether this process trained or not
    data = load_data(config)
    extra = _extras(grid, cell, config, run, trained.majority or majority_scores(data)) if cell.stage == "run" else {}
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
        peak_memory_bytes=peak[0],
        settings=_settings(config, run, trained, environment, len(data.train)),
        environment=environment,
        **extra,
    )


@contextlib.contextmanager
def _peak_memory(run: RunDir) -> Iterator[list[int | None]]:
    """Measure the training's peak memory over all processes that take part, in `memory.json`: the list's one number.

    None, unknown, where an earlier one was killed before it could say what it had seen: the selection, or all of it.
    """
    file = run.path / "memory.json"
    found: list[int | None] = [None]
    if file.is_file():
        before = read_json(file)["peak_memory_bytes"]
        file.unlink()  # where this process is killed too, nothing says what it has seen
    else:
        left = (run.scoring, run.checkpoints)
        before = None if run.metrics.is_file() or any(any(folder.glob("*")) for folder in left) else 0
    memory = PeakMemory()
    try:
        yield found
    finally:
        now = memory.bytes()
        found[0] = None if now is None or before is None else max(now, before)
        write_json(file, {"peak_memory_bytes": found[0]})


def _begin(cell: Cell, run: RunDir, threads: int) -> RunConfig:
    """Return the run that is to be trained, and describe it in its folder.

    Its name is the hash of what decides the result, so a run that was begun elsewhere may go on here, with the paths
    that files have here; what only changes the last digits stays as it was begun.
    """
    from subnetune.experiment.session import check_same_options

    keeps: dict[str, Any] = {"threads": cell.values.get("threads", threads)}
    begun = load_config(run.config, {}) if run.config.is_file() else None
    if begun is not None:
        keeps = {"threads": begun.threads, "eval_batch_size": begun.eval_batch_size}
    config = cell.config(output=str(run.path), resume=True, **keeps)
    if begun is not None:  # what a card filled in when it was begun may be another value by now
        free = NOT_IN_HASH | {"model", *FILES}  # their contents are in the name
        check_same_options(run.path, begun.values(), config.values(), free)
    run.path.mkdir(parents=True, exist_ok=True)
    text = config.to_yaml().encode()
    if not run.config.is_file() or run.config.read_bytes() != text:
        atomic_write(run.config, text)  # first: a folder without it would be taken for something else
    write_json(run.path / "cell.json", describe_cell(cell))
    return config


def _extras(grid: GridConfig, cell: Cell, config: RunConfig, run: RunDir, majority: Evaluation) -> dict[str, Any]:
    """Return the majority level too, and what the tuned model does on other tasks; leave the analysis in the folder."""
    found: dict[str, Any] = {"majority": majority, "skipped": {}}
    if grid.transfer or grid.probes:
        found |= _elsewhere(grid, config, run)
    if grid.analyse != "none":
        from subnetune.experiment.analysis import analyse_run

        try:
            analyse_run(run, config, deep=cell.analyse)
        except Exception as error:  # not every model can be looked into, nor in what memory is left: its scores stand
            if of_the_machine(error) is not None:
                raise
            traceback.print_exc()
            known = isinstance(error, SubnetuneError)
            found["skipped"]["analysis"] = str(error) if known else f"{type(error).__name__}: {error}"
    return found


def _elsewhere(grid: GridConfig, config: RunConfig, run: RunDir) -> dict[str, Any]:
    from subnetune.delta import load
    from subnetune.experiment.probes import probe_scores
    from subnetune.experiment.session import load_tokenizer, pick_device
    from subnetune.experiment.transfer import said_together, transfer_scores

    model = load(config.model, run.path, device=pick_device())
    tokenizer = load_tokenizer(config, run.tokenizer)
    transfer = transfer_scores(model, tokenizer, config, grid.transfer, grid.max_transfer)
    probes = probe_scores(model, tokenizer, config, grid.probes, grid.max_transfer)
    return {
        "transfer": transfer.scores,
        "probes": probes.scores,
        "transfer_majority": transfer.majority,
        "probe_majority": probes.majority,
        "skipped": said_together(transfer.skipped, probes.skipped),
        "max_transfer": grid.max_transfer,
    }


def _settings(
    config: RunConfig, run: RunDir, trained: RunResult, environment: dict[str, Any], examples: int
) -> dict[str, Any]:
    """Return what `rows.SETTINGS` names: what was asked, and what it came to in this run."""
    names = (
        *("lr", "epochs", "batch_size", "schedule", "warmup", "weight_decay", "clip", "max_length", "threads"),
        *("accumulate", "policy", "gradients"),
    )
    recipe = build_recipe(config)
    return {
        **{name: getattr(config, name) for name in names},
        "keep": getattr(recipe.selector, "keep", None),
        "steps": read_json(run.metrics)["steps"],
        "train_examples": examples,
        "dropout": _dropout(config),
        "precision": "bf16" if config.bf16 else "fp32",
        "engine": str(environment["engine"]).partition(":")[0],
        "with": " ".join(map(str, config.with_)) or None,
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
