"""The outer gradients by name. Each adds its share of an episode's gradient to `.grad` of what the outer loop moves."""

from __future__ import annotations

from collections.abc import Callable

import torch

from subnetune.prepare.priming.checked import over_ranks
from subnetune.prepare.priming.episodes import Episode, Episodes
from subnetune.prepare.priming.first_order import Measured, fomaml
from subnetune.prepare.priming.implicit import imaml
from subnetune.prepare.priming.learner import Learner
from subnetune.prepare.priming.rates import Rates
from subnetune.prepare.priming.reptile import reptile
from subnetune.prepare.priming.second_order import maml

# (the model, an episode, inner steps taken before it, inner rates, share) -> the episode's losses
Algorithm = Callable[[Learner, Episode, int, Rates, float], Measured]
ALGORITHMS: dict[str, Algorithm] = {"fomaml": fomaml, "maml": maml, "reptile": reptile, "imaml": imaml}


def gradients(learner: Learner, episodes: Episodes, index: int, rates: Rates) -> Measured:
    """Leave the gradients of outer step `index` in `.grad`; return the means of its episodes' losses over all ranks."""
    prime, found = learner.prime, []
    learner.require(learner.moved)
    learner.masks.begin()
    for number in range(index * prime.task_batch, (index + 1) * prime.task_batch):
        learner.fresh.draw(number)
        add, before = ALGORITHMS[prime.algorithm], number * prime.inner_steps
        found.append(add(learner, episodes.next(), before, rates, 1 / prime.task_batch))
        learner.drop_gradients()
    return Measured(*(over_ranks(torch.stack(values).mean()) for values in zip(*found, strict=True)))
