"""MAML (Finn et al., ICML 2017, arXiv 1703.03400): the outer gradient goes back through the inner steps."""

from __future__ import annotations

import torch

from subnetune.prepare.priming.descent import check_reached
from subnetune.prepare.priming.episodes import Episode
from subnetune.prepare.priming.first_order import Measured
from subnetune.prepare.priming.functional import check_graph, differentiable_twice, loss_of
from subnetune.prepare.priming.learner import Learner
from subnetune.prepare.priming.rates import Rates


def maml(learner: Learner, episode: Episode, index: int, rates: Rates, share: float) -> Measured:
    """Add `share` of the query loss's gradient by the weights before the inner steps to the parent's gradients.

    Memory grows by the activations of every inner step, whose graph is kept.
    """
    learner.require({*learner.parent, *learner.moved})
    moved, rate = learner.tensors(learner.moved), rates.traced()
    run, adapted, first = loss_of(learner, episode.task), dict(moved), None
    with differentiable_twice():
        for k in range(learner.prime.inner_steps):
            mask = learner.masks.live(index + k, moved).mask or {}
            loss = run(adapted, (episode.support[k % len(episode.support)],))
            first = loss.detach() if first is None else first
            found = torch.autograd.grad(loss, list(adapted.values()), create_graph=True, allow_unused=True)
            if k == 0:
                check_reached(any(g is not None for g in found), "inner")
                check_graph(found)
            steps = {
                n: torch.where(mask[n], g, 0.0) if n in mask else g
                for n, g in zip(adapted, found, strict=True)
                if g is not None
            }
            adapted = {n: p - rate[n] * steps[n] if n in steps else p for n, p in adapted.items()}
        loss = run(adapted, episode.query)
        leaves = [*learner.tensors(learner.parent).values(), *([rates.log] if rates.learned else [])]
        torch.autograd.backward([loss * share], inputs=leaves)
    assert first is not None
    return Measured(first, loss.detach())
