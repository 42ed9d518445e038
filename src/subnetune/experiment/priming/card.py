"""The card of a primed model, its README.md: what it was primed for, on what, and how. No paths, no times."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from subnetune.delta.about import free_of_paths
from subnetune.experiment.priming.config import PrimeConfig
from subnetune.experiment.priming.plan import Plan
from subnetune.experiment.priming.result import PrimeResult
from subnetune.experiment.strict_yaml import dump_yaml

# Where and how long, not what: not on the card.
_LEFT_OUT = ("output", "resume", "save_steps", "track", "threads", "data_dir", "model", "peft_config")
_HEADS = {
    "shared": "The head is in the checkpoint: all tasks shared it.",
    "matched": "The head is in the checkpoint: it has the labels of all tasks, and each task's loss was over its own.",
    "fresh": "The checkpoint has no head: every task began with a new one.",
}


def write_card(
    config: PrimeConfig, plan: Plan, result: PrimeResult, environment: Mapping[str, Any], examples: Mapping[str, int]
) -> str:
    """Return the text of the card."""
    base, method = free_of_paths(config.model), str(config.for_)
    front: dict[str, Any] = {"library_name": "transformers", "tags": ["subnetune", "priming", method]}
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", base):
        front["base_model"] = base
    data, versions = environment["data"], environment["versions"]
    rows = [f"| `{name}` | {examples[name]} | `{data[name]}` |" for name in plan.prime.tasks]
    settings = {name: value for name, value in config.values().items() if name not in _LEFT_OUT}
    known = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return "\n".join(
        (
            "---",
            dump_yaml(front).rstrip(),
            "---",
            "",
            f"# {base}, primed for {method}",
            "",
            f"`{base}` after {result.steps} outer steps of {config.algorithm} over {_count(plan)}, with an "
            f"inner loop that trains what `{method}` trains. Fine-tune it with that method: it is a plain checkpoint "
            "that transformers loads.",
            "",
            _HEADS[config.head],
            "",
            "## Tasks",
            "",
            "| task | training examples | sha256 |",
            "|---|---|---|",
            *rows,
            "",
            f"Labels: {', '.join(plan.task.labels) or 'scores'}.",
            "",
            "## The inner recipe",
            "",
            "```python",
            repr(plan.recipe),
            "```",
            "",
            "## Settings",
            "",
            "```yaml",
            dump_yaml(settings).rstrip(),
            "```",
            "",
            "## What it came to",
            "",
            f"- base model: `{base}`, fingerprint `{environment['base']}`",
            f"- gradient evaluations: {result.gradient_evaluations} (backward passes through a batch's loss)",
            f"- the outer loop moved {result.trained:,} of {result.total:,} entries, the inner loop {result.adapted:,}",
            f"- last losses: {result.support_loss:.6f} on support batches before the inner loop, {result.loss:.6f} on "
            "query batches after it",
            f"- {known}",
            "",
        )
    )


def _count(plan: Plan) -> str:
    return "one task" if len(plan.tasks) == 1 else f"{len(plan.tasks)} tasks"
