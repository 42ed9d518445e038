"""The training loop: one straight function from a configuration to a delta, a mask, a log and a metric.

The order of the examples is a pure function of seed and epoch, the learning rate one of the step, the mask one of its
own state; what is left (weights, optimizer, random states) is in the checkpoint. So a run that was stopped anywhere and
resumed ends with the bits of the run that was not.
"""

from __future__ import annotations

import math
import signal
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from subnetune.core.errors import NumericError, UsageError
from subnetune.experiment.artifacts import (
    check_environment,
    finish,
    marked_if_failed,
    write_mask_and_environment,
    write_start,
)
from subnetune.experiment.checkpoint import save_checkpoint
from subnetune.experiment.config import RunConfig, build_recipe, resolve
from subnetune.experiment.data import check_spread, epoch_order, plan_epoch, steps_per_epoch
from subnetune.experiment.environment import autocast, describe_environment, seed_everything, set_threads
from subnetune.experiment.evaluate import encode_evaluation, measure
from subnetune.experiment.journal import RunJournal
from subnetune.experiment.parts import load_examples, load_seeded_model
from subnetune.experiment.progress import Reporter
from subnetune.experiment.result import RunResult
from subnetune.experiment.rundir import RunDir, open_run
from subnetune.experiment.saving import (
    Progress,
    check_engine,
    newest_checkpoint,
    pack,
    put_weights,
    unpack_model,
    unpack_optimizer,
)
from subnetune.experiment.schedules import schedule_factor
from subnetune.experiment.session import check_config_unchanged, dropped_items, say_dropped
from subnetune.experiment.signals import Stopped, StopSignals, stop_signal
from subnetune.experiment.tracking import check_installed
from subnetune.tasks.majority import majority_scores
from subnetune.tuning import Tuning

if TYPE_CHECKING:
    from accelerate import Accelerator


def train(config: RunConfig) -> RunResult:
    """Fine-tune as `config` says and leave a run directory that explains itself.

    With `resume` a finished run is returned as it is, an unfinished one goes on from its newest complete checkpoint,
    and one without a checkpoint starts over.

    Raises UsageError before the model is loaded for an output that exists, other options than the run had, a tracker
    that is not installed, or hardware without bfloat16; DataError and CheckpointError for files that are missing,
    damaged or of something else; NumericError when a loss or gradient is not finite (the run is then marked as failed);
    Stopped, a SystemExit, after SIGINT or SIGTERM, when the checkpoint is saved.
    """
    from accelerate import Accelerator

    config = resolve(config)
    if config.delta is not None:
        raise UsageError("train starts from the base model; --delta is for evaluate and predict")
    assert config.output is not None
    check_installed(config.track)
    set_threads(config.threads)
    accelerator = Accelerator(mixed_precision="no")  # the precision is ours: autocast around the training forward only
    autocast(accelerator.device, config.bf16)  # refuses --bf16 before a folder is made
    main = accelerator.is_main_process
    with (
        open_run(config.output, resume=config.resume, main=main) as run,
        Reporter(enabled=main, track=config.track) as reporter,
    ):
        accelerator.wait_for_everyone()
        if config.resume and run.config.is_file():
            check_config_unchanged(run, config)
        if (metrics := run.finished()) is not None:
            reporter.say(f"{run.path} is finished; nothing to do")
            return RunResult.from_json(metrics, run.path)
        with marked_if_failed(run, write=main):
            try:
                return _train(config, run, accelerator, reporter)
            except KeyboardInterrupt:  # Ctrl-C while it is loading or finishing: there is no step to save
                raise Stopped(signal.SIGINT) from None


def _train(config: RunConfig, run: RunDir, accelerator: Accelerator, reporter: Reporter) -> RunResult:
    # resolve has filled these: the asserts tell the type checker.
    assert config.lr is not None
    assert config.epochs is not None
    assert config.batch_size is not None
    assert config.schedule is not None
    assert config.warmup is not None
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    main = accelerator.is_main_process
    precision = autocast(device, config.bf16)
    started = time.monotonic()

    # What the run is made of.
    found = newest_checkpoint(run, reporter, sweep=main) if config.resume else None
    data, tokenizer, train_set, collate, batches = load_examples(config, config.batch_size, device)
    say_dropped(data, reporter.say)
    eval_sets = encode_evaluation(data.evaluation, data.task, tokenizer, config.max_length)
    counts = train_set.counts
    per_epoch = steps_per_epoch(len(train_set), config.batch_size, config.accumulate, world)
    total = min(per_epoch * config.epochs, config.max_steps or per_epoch * config.epochs)
    factor = schedule_factor(config.schedule, config.warmup, total)
    model, new = load_seeded_model(config, data.task, device)
    journal = RunJournal(run, config.save_steps, reporter, accelerator)
    recipe = build_recipe(config)
    tuning = Tuning(recipe, model, batches=batches, steps=total, seed=config.seed, new=new, journal=journal)
    asked: dict[str, Any] = {name: getattr(config, name) for name in ("engine", "gradients")}
    engine = tuning.engine_for(torch.optim.AdamW, {}, **asked)  # refuses here what cannot be had
    check_spread(model, len(train_set), config.batch_size, config.accumulate, total, world)
    environment = describe_environment(device, world)
    environment |= {"data": data.fingerprint(), "dropped": dropped_items(data), "base": tuning.fingerprint.base}

    # Where it starts: at the newest checkpoint, or at step 0, where it is prepared and scored.
    if found is None:
        if config.resume and not journal.kept:
            reporter.say(f"{run.path} has no complete checkpoint: starting over")
        if main:
            write_start(run, config, data.task, tokenizer)
        reporter.tracking.start(config, run, 0)
        with journal.open(environment):
            tuning.start()
        progress = Progress(seconds=journal.seconds)
    else:
        path, checkpoint = found
        check_environment(run, environment, reporter)
        check_engine(engine, checkpoint, path)
        progress = unpack_model(tuning, checkpoint, path)
        reporter.say(f"resuming after step {tuning.index} of {total}")
        reporter.tracking.start(config, run, tuning.index)
        if main:
            run.cut_log(tuning.index)
    optimizer = tuning.optimizer(torch.optim.AdamW, lr=config.lr, weight_decay=config.weight_decay, **asked)
    if found is None and main:
        write_mask_and_environment(run, tuning, environment)
    reporter.say(f"engine {tuning.engine}")
    rates = [group["lr"] for group in optimizer.param_groups]  # before schedule or checkpoint change them
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    seed_everything(config.seed, "dropout", rank)
    if found is not None:
        unpack_optimizer(optimizer, checkpoint, path, rank, world)
    reporter.open(run.log, total, tuning.index)
    earlier = progress.seconds
    if found is None and journal.kept:  # what the scores have cost is not to be spent again
        progress.seconds = earlier + time.monotonic() - started
        state = pack(tuning, optimizer, progress, world)
        if main:
            save_checkpoint(run.checkpoints, state)
        accelerator.wait_for_everyone()
    journal.clear()

    with StopSignals(journal.received or None) as signals:
        while tuning.index < total:
            epoch, done = divmod(tuning.index, per_epoch)
            order = epoch_order(len(train_set), config.seed, epoch)
            plan = plan_epoch(order, config.batch_size, config.accumulate, rank, world, counts)
            for micros in plan[done : done + total - tuning.index]:
                share = factor(tuning.index)
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * share
                loss = torch.zeros((), device=device)
                for number, micro in enumerate(micros, start=1):
                    # Under DDP gradients are averaged over ranks once per step, in the last backward pass.
                    local = nullcontext() if number == len(micros) else accelerator.no_sync(wrapped)
                    with local:
                        with precision:
                            output = tuning.forward(collate(train_set, micro.indices), model=wrapped)
                        accelerator.backward(output.loss * micro.weight)
                    loss += output.loss.detach() * micro.weight
                norm = tuning.clip(config.clip or math.inf)
                loss = accelerator.reduce(loss, reduction="mean")
                check_finite(loss, norm, tuning.index)
                tuning.step(optimizer)
                optimizer.zero_grad()

                step = tuning.index
                progress.seconds = earlier + time.monotonic() - started
                reporter.step(step, loss=loss, lr=config.lr * share, grad_norm=norm, seconds=progress.seconds)
                if step == total or (step % per_epoch == 0 and config.eval_at == "epoch"):
                    evaluation = measure(model, data.task, eval_sets, collate, config.eval_batch_size)
                    reporter.evaluation(step, evaluation)
                    progress.note(step, evaluation, tuning, keep_best=config.policy == "best")
                stop = stop_signal(signals, accelerator)
                if stop or (config.save_steps and step % config.save_steps == 0):
                    state = pack(tuning, optimizer, progress, world)  # on every rank: random states are gathered
                    if main:
                        save_checkpoint(run.checkpoints, state)
                    accelerator.wait_for_everyone()
                if stop:
                    reporter.say(f"stopped by {stop.name} after step {step} of {total}; go on with --resume")
                    raise Stopped(stop)

    # What it leaves: the weights that the policy keeps, as a delta, and what they score.
    kept = progress.best_step if config.policy == "best" else total
    if kept != total:
        put_weights(tuning, progress.best, run.checkpoints)
        reporter.say(f"keeping the weights of step {kept}, the best on {next(iter(eval_sets))}")
    seconds = earlier + time.monotonic() - started
    levels = majority_scores(data)
    result = finish(run, config, tuning, tokenizer, progress.evaluations[kept], levels, seconds, kept, write=main)
    reporter.result(total, result)
    accelerator.wait_for_everyone()
    tuning.close()
    return result


def check_finite(loss: Tensor, norm: Tensor, index: int) -> None:
    """Raise NumericError where the loss or the gradient norm of step `index` (0-based) is NaN or infinite."""
    for name, value in (("loss", loss), ("gradient norm", norm)):
        if not math.isfinite(value):
            raise NumericError(
                f"the {name} is {float(value)} in step {index + 1}; nothing was updated by it. "
                "Try a lower --lr, a --clip, more --warmup, or full precision instead of --bf16"
            )
