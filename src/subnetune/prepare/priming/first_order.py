"""First-order MAML (Finn et al., ICML 2017, arXiv 1703.03400): the outer gradient at the adapted weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from subnetune.prepare.priming.episodes import Episode
from subnetune.prepare.priming.learner import Learner
from subnetune.prepare.priming.rates import Rates


class Measured(NamedTuple):
    """Losses of an episode, scalars: on the first support batch before adapting, on the query batches after."""

    support: Tensor
    query: Tensor


def adapt(
    learner: Learner, episode: Episode, index: int, start: Mapping[str, Tensor], rates: Rates, pull: float = 0.0
) -> Tensor | None:
    """Take the inner steps in place, plain gradient steps on the support batches in turn; return the first loss.

    index: how many inner steps there were before, for masks that change. pull: of a quadratic pull to `start`.
    """
    first = None
    for k in range(learner.prime.inner_steps):
        learner.require(learner.moved)
        live = learner.masks.live(index + k, start)
        loss = learner.losses.support(learner.model, episode.support[k % len(episode.support)], episode.task, live)
        first = loss.detach() if first is None else first
        moved = learner.tensors(learner.moved)
        gradients: Sequence[Tensor | None] = torch.autograd.grad(loss, list(moved.values()), allow_unused=True)
        del loss
        with torch.no_grad():
            for (name, p), gradient in zip(moved.items(), gradients, strict=True):
                if gradient is None:
                    continue
                if pull:
                    gradient = gradient.add(p - start[name], alpha=pull)
                mask = None if live.mask is None else live.mask.get(name)
                p.sub_(gradient if mask is None else gradient * mask, alpha=rates.of(name))
        del gradients
    return first


def fomaml(learner: Learner, episode: Episode, index: int, rates: Rates, share: float) -> Measured:
    """Add `share` of the query loss's gradient at the adapted weights to the parent's gradients.

    Memory: what the inner loop moves is copied once, and its gradients are held while a step is taken.
    """
    with learner.kept() as start:
        first = adapt(learner, episode, index, start, rates)
        learner.require({*learner.parent, *(learner.moved if rates.learned else ())})
        with rates.watching(learner.tensors(learner.moved), start):
            loss = learner.losses.query(learner.model, episode.query, episode.task)
            (loss * share).backward()  # type: ignore[no-untyped-call]
        return Measured(loss.detach() if first is None else first, loss.detach())
