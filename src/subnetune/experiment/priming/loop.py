"""The priming loop: one straight function from options to a checkpoint that transformers loads.

Episodes are a function of seed and step, draws of head and adapters too; what is left (weights, the outer optimizer,
learned rates) is in the checkpoint. So a priming that was stopped anywhere and resumed ends with the same bits.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from subnetune.core.errors import UsageError
from subnetune.core.files import atomic_write
from subnetune.core.fingerprint import Fingerprint
from subnetune.core.types import Batch, Forward, Output, Setting, default_forward
from subnetune.experiment.artifacts import check_environment, marked_if_failed
from subnetune.experiment.checkpoint import save_checkpoint
from subnetune.experiment.environment import autocast, describe_environment, set_threads
from subnetune.experiment.parts import load_seeded_model
from subnetune.experiment.priming.batches import load_material
from subnetune.experiment.priming.card import write_card
from subnetune.experiment.priming.config import PrimeConfig
from subnetune.experiment.priming.export import check_base, write_model
from subnetune.experiment.priming.folder import PrimedDir, check_unchanged
from subnetune.experiment.priming.plan import Plan, gradient_evaluations, make_plan
from subnetune.experiment.priming.result import PrimeResult
from subnetune.experiment.priming.saving import Progress, pack, unpack
from subnetune.experiment.progress import Reporter
from subnetune.experiment.rundir import open_run, read_json, write_json
from subnetune.experiment.saving import newest_checkpoint
from subnetune.experiment.signals import Stopped, StopSignals, stop_signal
from subnetune.experiment.tracking import check_installed
from subnetune.prepare.priming.primer import Primer

if TYPE_CHECKING:
    from accelerate import Accelerator


def prime(config: PrimeConfig) -> PrimeResult:
    """Prime a model as `config` says and leave a checkpoint that explains itself.

    With `resume` a finished priming is returned as it is, an unfinished one goes on from its newest complete
    checkpoint, and one without a checkpoint starts over.

    Raises UsageError before the model is loaded for what `make_plan` refuses, an output that exists, other options than
    the priming had, a tracker that is not installed, several processes, or hardware without bfloat16; DataError and
    CheckpointError for files that are missing, damaged or of something else; NumericError when a loss or gradient is
    not finite (the run is then marked as failed); Stopped, a SystemExit, after SIGINT or SIGTERM, when the checkpoint
    is saved.
    """
    from accelerate import Accelerator

    plan = make_plan(config)
    assert config.output is not None  # what make_plan says
    check_installed(config.track)
    set_threads(config.threads)
    accelerator = Accelerator(mixed_precision="no")
    if accelerator.num_processes > 1:
        raise UsageError(f"prime runs in one process, and here are {accelerator.num_processes}: start it by itself")
    autocast(accelerator.device, config.bf16)  # refuses --bf16 before a folder is made
    with (
        open_run(config.output, resume=config.resume, kind=PrimedDir) as opened,
        Reporter(enabled=True, track=config.track) as reporter,
    ):
        run = PrimedDir(opened.path)
        if config.resume and run.config.is_file():
            check_unchanged(run, config)
        if (metrics := run.finished()) is not None:
            reporter.say(f"{run.path} is finished; nothing to do")
            return PrimeResult.from_json(metrics, run.path)
        with marked_if_failed(run, write=True):
            try:
                return _prime(config, plan, run, accelerator, reporter)
            except KeyboardInterrupt:  # Ctrl-C while it is loading or finishing: there is no step to save
                raise Stopped(signal.SIGINT) from None


def _prime(
    config: PrimeConfig, plan: Plan, run: PrimedDir, accelerator: Accelerator, reporter: Reporter
) -> PrimeResult:
    started, device = time.monotonic(), accelerator.device

    # What the priming is made of.
    found = newest_checkpoint(run, reporter, sweep=True) if config.resume else None
    material = load_material(config, plan, device, reporter.say)
    model, new = load_seeded_model(config.as_run(), plan.task, device)
    check_base(model, config.head)
    total = sum(p.numel() for p in model.parameters())
    environment = describe_environment(device, 1)
    environment |= {"data": material.data, "base": Fingerprint.of(model, exclude=new).base}

    # The loop. Heads and adapters are drawn before the weights of a checkpoint come in, as they were at the start; and
    # what cannot be had is refused before the folder is made a run, so that the next try finds it empty.
    setting = Setting(model, {}, _forward(config, device), None, material.batches, 0, config.seed)
    with _recomputed(model, config.checkpointing), Primer(plan.prime, setting) as primer:
        run.unmake()  # also what a kill between the model and its metrics left
        if found is None:
            if config.resume:
                reporter.say(f"{run.path} has no complete checkpoint: starting over")
            run.forget()
            atomic_write(run.config, config.to_yaml().encode())  # first: what follows can be resumed
            write_json(run.environment, environment)
        else:
            check_environment(run, environment, reporter)
        progress = Progress()
        if found is not None:
            progress = unpack(primer, found[1], found[0])
            reporter.say(f"resuming after outer step {primer.index} of {config.steps}")
        reporter.tracking.start(config, run, primer.index)
        if found is not None:
            run.cut_log(primer.index)
        reporter.open(run.log, config.steps, primer.index, "priming")
        earlier = progress.seconds
        with StopSignals() as signals:
            while primer.index < config.steps:
                left = (config.steps - primer.index) / config.steps if config.schedule == "linear" else 1.0
                losses = primer.step()
                step = primer.index
                progress.loss, progress.support_loss = float(losses.query), float(losses.support)
                progress.seconds = earlier + time.monotonic() - started
                reporter.step(
                    step,
                    loss=progress.loss,
                    lr=config.lr * left,
                    grad_norm=primer.norm,
                    seconds=progress.seconds,
                    more={"support_loss": progress.support_loss},
                )
                stop = stop_signal(signals, accelerator)
                if stop or (config.save_steps and step % config.save_steps == 0):
                    save_checkpoint(run.checkpoints, pack(primer, progress))
                if stop:
                    reporter.say(f"stopped by {stop.name} after outer step {step} of {config.steps}; add --resume")
                    raise Stopped(stop)
        learner = primer.learner
        result = PrimeResult(
            run.path,
            steps=config.steps,
            loss=progress.loss,
            support_loss=progress.support_loss,
            gradient_evaluations=config.steps * gradient_evaluations(plan.prime),
            trained=sum(p.numel() for p in learner.tensors(learner.parent).values()),
            adapted=sum(p.numel() for p in learner.tensors(learner.moved).values()),
            total=total,
            seconds=round(progress.seconds, 3),
            rates=primer.rates.numbers() if primer.rates.learned else {},
        )

    # What it leaves: adapters are out of the model again, and a head that was drawn anew is no part of it.
    def write(folder: Path) -> None:
        write_model(model, config.model, folder, head=config.head != "fresh")
        card = write_card(config, plan, result, environment, material.examples)
        (folder / run.card.name).write_text(card, encoding="utf-8")

    run.publish(write)
    write_json(run.metrics, result.to_json())
    run.tidy()
    return PrimeResult.from_json(read_json(run.metrics), run.path)


def _forward(config: PrimeConfig, device: torch.device) -> Forward:
    if not config.bf16:
        return default_forward

    def forward(model: nn.Module, batch: Batch) -> Output:
        with autocast(device, True):
            return default_forward(model, batch)

    return forward


@contextmanager
def _recomputed(model: Any, wanted: bool) -> Iterator[None]:
    """Switch gradient checkpointing on inside. Raises UsageError for a model that has none."""
    if not wanted:
        yield
        return
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise UsageError(f"{type(model).__name__} has no gradient checkpointing; leave out --checkpointing")
    # The reentrant kind has no gradient where a layer's input needs none, as below frozen embeddings.
    name = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if hasattr(model, f"{n}_enable"))
    getattr(model, f"{name}_enable")({"use_reentrant": False})
    try:
        yield
    finally:
        getattr(model, f"{name}_disable")()
