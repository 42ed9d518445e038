"""Implicit MAML (Rajeswaran et al., NeurIPS 2019, arXiv 1909.04630): the outer gradient at a proximal minimum.

The inner loop nears the minimum of L_support(phi, theta) + pull / 2 * |phi - start|^2, where the outer gradient needs
no inner graph. With v = (I + H / pull)^-1 dL_query/dphi by conjugate gradients, H the support loss's Hessian by phi, it
is v by the start, and dL_query/dtheta - (d/dtheta <dL_support/dphi, v>) / pull by what the inner loop does not touch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from subnetune.prepare.priming.conjugate import solve
from subnetune.prepare.priming.episodes import Episode
from subnetune.prepare.priming.first_order import Measured, adapt
from subnetune.prepare.priming.functional import check_graph, differentiable_twice, loss_of
from subnetune.prepare.priming.learner import Learner
from subnetune.prepare.priming.rates import Rates

ITERATIONS = 5  # of conjugate gradients, as in the paper's few-shot runs
Named = dict[str, Tensor]


def imaml(learner: Learner, episode: Episode, index: int, rates: Rates, share: float) -> Measured:
    """Add `share` of the implicit gradient to the parent's gradients.

    Memory does not grow with the inner steps, but with the support batches: one graph of the gradient of their mean
    loss, and five tensors for each one that the inner loop moves.
    """
    pull, both = learner.prime.pull, {*learner.parent, *learner.moved}
    with learner.kept() as start:
        first = adapt(learner, episode, index, start, rates, pull)
        mask = learner.masks.live(index, start).mask or {}
        learner.require(both)
        tensors, loss = learner.tensors(name for name in learner.structure.names if name in both), None
        run = loss_of(learner, episode.task)
        phi = {name: tensors[name] for name in learner.moved}
        with differentiable_twice():
            loss = run(phi, episode.query)
            found = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
            outer = {name: g for name, g in zip(tensors, found, strict=True) if g is not None}
            slope = torch.autograd.grad(
                run(phi, episode.support), list(phi.values()), create_graph=True, allow_unused=True
            )
            check_graph(slope)
            graph = {name: g for name, g in zip(phi, slope, strict=True) if g is not None and g.requires_grad}

            def masked(values: Named) -> Named:
                return {n: torch.where(mask[n], v, 0.0) if n in mask else v for n, v in values.items()}

            def product(v: Named, by: Named, keep: bool = True) -> Named:
                if not (shared := [(graph[n] * v[n]).sum() for n in graph if n in v]) or not by:
                    return {}
                pulled = torch.stack(shared).sum()
                got = torch.autograd.grad(pulled, list(by.values()), retain_graph=keep, allow_unused=True)
                return {n: g for n, g in zip(by, got, strict=True) if g is not None}

            def curved(v: Named) -> Named:  # (I + H / pull) v, within the mask
                bent = masked(product(v, {n: phi[n] for n in v}))
                return {n: v[n] + bent[n] / pull if n in bent else v[n] for n in v}

            reached = {n: p for n, p in phi.items() if n in outer or n in graph}
            right = {n: outer[n] if n in outer else torch.zeros_like(p) for n, p in reached.items()}
            v = solve(curved, masked(right), ITERATIONS)
            # What the mask leaves out of a tensor starts and stays: it is as what the inner loop does not touch.
            rest = {n: tensors[n] for n in learner.parent if n not in phi or n in mask}
            mixed = product(v, rest, keep=False)
        with torch.no_grad():
            for name in learner.parent:
                p, gradient = tensors[name], v.get(name)
                if name in rest and (name in outer or name in mixed):
                    direct = outer.get(name, torch.zeros_like(p))
                    straight = direct - mixed[name] / pull if name in mixed else direct
                    gradient = straight if gradient is None else torch.where(mask[name], gradient, straight)
                if gradient is not None:
                    p.grad = gradient * share if p.grad is None else p.grad.add_(gradient, alpha=share)
    assert first is not None
    return Measured(first, loss.detach())
