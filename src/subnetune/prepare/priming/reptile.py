"""Reptile (Nichol et al. 2018, arXiv 1803.02999): the parent follows the way that the adapted weights went."""

from __future__ import annotations

import torch

from subnetune.prepare.priming.episodes import Episode
from subnetune.prepare.priming.first_order import Measured, adapt
from subnetune.prepare.priming.learner import Learner
from subnetune.prepare.priming.rates import Rates


def reptile(learner: Learner, episode: Episode, index: int, rates: Rates, share: float) -> Measured:
    """Add `share` of (start - adapted) to the gradients of what both loops may touch; no other tensor moves."""
    parent = set(learner.parent)
    with learner.kept() as start:
        first = adapt(learner, episode, index, start, rates)
        with torch.no_grad():
            query = learner.losses.query(learner.model, episode.query, episode.task)
            for name, p in learner.tensors(learner.moved).items():
                if name in parent:
                    way = start[name].sub_(p).mul_(share)
                    p.grad = way if p.grad is None else p.grad.add_(way)
    assert first is not None  # reptile takes one step or more
    return Measured(first, query)
