"""What each layer says about the examples, before and after a run: similarity, and the directions that are left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from subnetune.experiment.analysis.similarity import LEAST_EXAMPLES, effective_rank, linear_cka
from subnetune.experiment.data import Collator, Encoded, eval_batches

MEASURE = "debiased linear CKA (arXiv 1905.00414)"
# The first token would not do: before the first layer it is the same vector in every example, and decoders read the
# last one.
REPRESENTATION = "mean over the tokens that are no padding"


def hidden_states(model: nn.Module, encoded: Encoded, collate: Collator, batch_size: int) -> dict[str, Tensor]:
    """Return each layer's mean over the tokens, (examples, width) float32 on the CPU, "embeddings" first.

    In eval mode, which is put back. The layers of a decoder follow those of its encoder. {} for a model that does not
    give its hidden states.
    """
    was_training = model.training
    model.eval()
    parts: list[list[Tensor]] = []
    order: list[int] = []
    with torch.no_grad():
        for indices in eval_batches(encoded, batch_size):
            batch = {key: value for key, value in collate(encoded, indices).items() if key != "labels"}
            stacks = _stacks(model(**batch, output_hidden_states=True))
            parts.append([_mean(states, batch.get("attention_mask")) for stack in stacks for states in stack])
            order += indices
            names = [name for number, stack in enumerate(stacks) for name in _names(stacks, number, len(stack))]
    model.train(was_training)
    back = torch.tensor(order).argsort()
    return {name: torch.cat([part[i] for part in parts])[back] for i, name in enumerate(names)}


def compare_states(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what `cka.json` holds, of what `hidden_states` gave for the base and for the tuned model.

    `{"examples", "measure", "representation", "layers": [{"name", "cka", "effective_rank_base",
    "effective_rank_tuned"}], "why"}`. A layer whose examples are all alike has nulls; `why` says why there are no
    layers, or is null.
    """
    count = len(next(iter(base.values()))) if base else 0
    why = None
    if not base:
        why = "the model does not give its hidden states"
    elif count < LEAST_EXAMPLES:
        why = f"{count} examples; {LEAST_EXAMPLES} are the least"
    layers = [
        {
            "name": name,
            "cka": linear_cka(base[name], tuned[name]),
            "effective_rank_base": effective_rank(base[name]),
            "effective_rank_tuned": effective_rank(tuned[name]),
        }
        for name in (base if why is None else ())
    ]
    return {
        "examples": count,
        "measure": MEASURE,
        "representation": REPRESENTATION,
        "layers": layers,
        "why": why,
    }


def _stacks(output: Any) -> list[tuple[Tensor, ...]]:
    """Return the hidden states of the model, or of its encoder and its decoder: the embeddings' first in each."""
    names = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")
    return [states for name in names if (states := getattr(output, name, None))]


def _names(stacks: list[tuple[Tensor, ...]], number: int, count: int) -> list[str]:
    first = sum(len(stack) - 1 for stack in stacks[:number])
    return ["embeddings" if number == 0 else "decoder embeddings", *(f"layer {first + i}" for i in range(count - 1))]


def _mean(states: Tensor, attention: Tensor | None) -> Tensor:
    """Return the mean of (batch, length, width) over the tokens of each example, (batch, width)."""
    states = states.float()
    if attention is None or attention.shape != states.shape[:2]:
        return states.mean(1).cpu()
    weights = attention.to(states.device, torch.float32).unsqueeze(-1)
    return ((states * weights).sum(1) / weights.sum(1).clamp_min(1.0)).cpu()
