"""Law 10 beyond transformers' own checkpoints: blocks that are run again whole, and other losses of the same model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_forward_rules import CASES, bind, build, checkpointed, each_case, gradients, one
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from subnetune.core.types import ForwardRule
from tiny import batch, differing


class Together(nn.Module):
    """Blocks under one checkpoint, which runs them again with all their hooks."""

    def __init__(self, blocks: nn.Module, reentrant: bool | None) -> None:
        super().__init__()
        self.blocks, self.reentrant = blocks, reentrant

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        def run(hidden: Tensor) -> Tensor:
            states: Tensor = self.blocks(hidden, *args, **kwargs)[0]
            return states

        again = run(hidden) if self.reentrant is None else checkpoint(run, hidden, use_reentrant=self.reentrant)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=again)


def together(reentrant: bool | None) -> nn.Module:
    model = build()
    model.bert.encoder = Together(model.bert.encoder, reentrant)
    return model


@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
@each_case
def test_blocks_that_are_run_again_whole(rules: tuple[ForwardRule, ...], reentrant: bool) -> None:
    """transformers' own checkpoints lie inside a block, past the hooks on it; others lie around blocks."""
    assert differing(one(bind(rules, together(None))), one(bind(rules, together(reentrant)))) == []


@pytest.mark.parametrize("ours", [0, pytest.param(1, marks=pytest.mark.slow), 2], ids=["first", "between", "last"])
@pytest.mark.parametrize("again", [False, True], ids=["", "later-in-the-step"])
@pytest.mark.parametrize("make", [build, together], ids=["inside", "around"])
@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
@pytest.mark.parametrize("rules", [CASES["mix"], CASES["noisy-layers"]], ids=["mix", "noisy-layers"])
def test_another_pass_of_the_model_in_the_same_backward_pass(
    rules: tuple[ForwardRule, ...], reentrant: bool, make: Any, again: bool, ours: int
) -> None:
    """A loss of one's own beside the Tuning's: each is recomputed as it ran, in whatever order they ran."""
    ends = []
    for checkpointing in (False, True):
        model = make(reentrant if checkpointing else None) if make is together else build()
        if checkpointing and make is build:
            checkpointed(model, reentrant)
        tuning = bind(rules, model)
        if again:
            one(tuning)
        torch.manual_seed(5)
        runs = [lambda seed: tuning.model(**batch(seed=seed)).loss] * 3  # noqa: B023
        runs[ours] = lambda seed: tuning.forward(batch(seed=seed)).loss  # noqa: B023
        torch.stack([run(seed) for seed, run in enumerate(runs)]).sum().backward()
        ends.append(gradients(model))
    assert differing(*ends) == []
