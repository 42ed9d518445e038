"""What a run leaves in its directory: before step 0, at its end, and when it fails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from subnetune.core.errors import CheckpointError
from subnetune.core.files import atomic_write
from subnetune.experiment.config import RunConfig
from subnetune.experiment.environment import differences
from subnetune.experiment.progress import Reporter
from subnetune.experiment.result import Evaluation, RunResult
from subnetune.experiment.rundir import RunDir, read_json, write_json
from subnetune.tasks.types import Task
from subnetune.tuning import Tuning


def write_start(run: RunDir, config: RunConfig, task: Task, tokenizer: Any) -> None:
    """Write configuration, labels and tokenizer, in place of whatever an earlier attempt without checkpoint left."""
    run.forget()
    atomic_write(run.config, config.to_yaml().encode())  # first: whatever follows belongs to a run that can be resumed
    write_json(run.labels, {"task": task.name, "kind": task.kind, "labels": list(task.labels)})
    tokenizer.save_pretrained(run.tokenizer)


def write_mask_and_environment(run: RunDir, tuning: Tuning, environment: Mapping[str, Any]) -> None:
    """Write the static mask (if there is one), what the result depends on, and which engine serves, before step 0."""
    from subnetune.select.maskfile import write_mask

    if tuning.mask is not None:
        write_mask(run.mask, tuning.mask, tuning.selected())
    write_json(run.environment, {**environment, "mask": tuning.mask_digest(), "engine": tuning.engine})


def check_environment(run: RunDir, environment: Mapping[str, Any], reporter: Reporter) -> None:
    """Compare with the run that is resumed: other data or another base are refused, other versions are said.

    Raises CheckpointError that names what differs.
    """
    check_same_environment(run, read_json(run.environment), environment, reporter)


def check_same_environment(
    run: RunDir, before: Mapping[str, Any], environment: Mapping[str, Any], reporter: Reporter
) -> None:
    """Do what `check_environment` does, with an environment that was read already."""
    for key, what in (("data", "examples"), ("base", "base model"), ("world", "number of processes")):
        if before.get(key) != environment.get(key):
            raise CheckpointError(
                f"{run.path} cannot be resumed: its {what} were {before.get(key)!r}, now {environment.get(key)!r}; "
                "give what the run was started with, or choose another --output"
            )
    if changed := differences({k: before.get(k) for k in environment}, environment):
        reporter.say(f"resumed in another environment, so bits may differ: {'; '.join(changed)}")


def finish(
    run: RunDir,
    config: RunConfig,
    tuning: Tuning,
    tokenizer: Any,
    evaluation: Evaluation,
    majority: Evaluation,
    seconds: float,
    step: int,
    *,
    write: bool,
) -> RunResult:
    """Save the delta, then the metrics (which mark the run as finished); return the result."""
    from subnetune.delta import Delta
    from subnetune.delta.about import about_tokenizer

    description = tuning.describe()
    if write:
        about = about_tokenizer(tokenizer, config.model)
        Delta.of(tuning, base_name=config.model, tokenizer=about).save(run.delta)
    result = RunResult.of(
        evaluation,
        path=run.path,
        trained=description.trained,
        total=description.total,
        seconds=round(seconds, 3),
        delta_bytes=run.delta.stat().st_size if write else 0,
        majority=majority,
    )
    if write:
        write_json(run.metrics, {**result.to_json(), "step": step, "steps": tuning.index})
    return result


@contextmanager
def marked_if_failed(run: RunDir, *, write: bool) -> Iterator[None]:
    """Write `status: failed` and the reason into the metrics of a run that ends with an error."""
    try:
        yield
    except Exception as error:
        if write and run.config.is_file():
            write_json(run.metrics, {"status": "failed", "error": type(error).__name__, "message": str(error)})
        raise
