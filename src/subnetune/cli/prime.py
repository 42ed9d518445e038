"""`subnetune prime`: prime a model on tasks for the fine-tuning that it will get, and leave a plain checkpoint."""

from __future__ import annotations

from subnetune.cli.options import takes
from subnetune.experiment.priming.config import PrimeConfig

# The flags, in the order and under the headings of the help. `options` is written --set NAME=VALUE.
PANELS: dict[str, tuple[str, ...]] = {
    "Model and tasks": ("model", "tasks", "data_dir", "max_length", "max_train", "train_seed"),
    "What it is primed for": ("for_", "with_", "keep", "peft_config", "options"),
    "Outer loop": (
        *("algorithm", "head", "outer", "freeze", "steps", "task_batch", "query"),
        *("lr", "schedule", "weight_decay", "clip"),
    ),
    "Inner loop": ("inner_steps", "inner_lr", "inner_rates", "rates_lr", "support", "pull", "dropout"),
    "Run": (*("batch_size", "bf16", "checkpointing", "seed", "output", "resume", "save_steps", "threads", "track"),),
}
PRIME = tuple(name for names in PANELS.values() for name in names)


@takes(*PRIME, of=PrimeConfig, panels=PANELS)
def prime(config: PrimeConfig) -> None:
    """Prime a model for a method: meta-learning whose inner loop trains what the method will train.

    The output is a plain checkpoint with a card; fine-tune it by `subnetune train --model OUTPUT`. docs/priming.md says
    what is the paper's and what is ours. The last line printed is query_loss VALUE.
    """
    from subnetune.experiment.priming import prime as run

    result = run(config)
    print(f"primed model: {result.path}")
    print(f"query_loss {result.loss:.6f}")
