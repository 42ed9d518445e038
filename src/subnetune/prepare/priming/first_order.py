"""First-order MAML (Finn et al., ICML 2017, arXiv 1703.03400): the outer gradient at the adapted weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from subnetune.core.types import Live
from subnetune.prepare.priming.descent import Update, check_reached, descend
from subnetune.prepare.priming.episodes import Episode
from subnetune.prepare.priming.learner import Learner
from subnetune.prepare.priming.rates import Rates
from subnetune.prepare.priming.start import Start


class Measured(NamedTuple):
    """Losses of an episode, scalars: on the first support batch before adapting, on the query batches after."""

    support: Tensor
    query: Tensor


def adapt(
    learner: Learner, episode: Episode, index: int, start: Start, rates: Rates, pull: float = 0.0
) -> Tensor | None:
    """Take the inner steps in place, plain gradient steps on the support batches in turn; return the first loss.

    index: how many inner steps there were before, for masks that change. pull: of a quadratic pull to `start`.
    """
    first, numbers = None, rates.numbers()
    learner.require(learner.moved)
    for k in range(learner.prime.inner_steps):
        live = learner.masks.live(index + k, start)
        loss = learner.losses.support(learner.model, episode.support[k % len(episode.support)], episode.task, live)
        first = loss.detach() if first is None else first
        descend(loss, learner.tensors(learner.moved), _plain_step(live, start, numbers, pull))
    learner.masks.clear()
    return first


def _plain_step(live: Live, start: Start, numbers: Mapping[str, float], pull: float) -> Update:
    def update(name: str, p: Tensor, gradient: Tensor) -> None:
        if pull:
            gradient = gradient.add(p - start[name], alpha=pull)
        mask = None if live.mask is None else live.mask.get(name)
        if mask is not None:
            gradient = gradient.masked_fill(~mask, 0.0)
        rows = start.keep(name, gradient)
        if rows is None:
            p.sub_(gradient, alpha=numbers[name])
        else:
            p.index_copy_(0, rows, p[rows].sub_(gradient[rows], alpha=numbers[name]))

    return update


def fomaml(learner: Learner, episode: Episode, index: int, rates: Rates, share: float) -> Measured:
    """Add `share` of the query loss's gradient at the adapted weights to the parent's gradients.

    Memory: a copy of what the inner loop moves (`Start`), beside the graph of one batch at a time.
    """
    with learner.kept() as start:
        first = adapt(learner, episode, index, start, rates)
        learner.require({*learner.parent, *(learner.moved if rates.learned else ())})
        losses = []
        with rates.watching(learner.tensors(learner.moved), start):
            for batch in episode.query:
                loss = learner.losses.query(learner.model, (batch,), episode.task)
                check_reached(loss.requires_grad, "outer")
                (loss * (share / len(episode.query))).backward()  # type: ignore[no-untyped-call]
                losses.append(loss.detach())
        query = torch.stack(losses).mean()
        return Measured(query if first is None else first, query)
