"""The outer gradients by name. Each adds its share of an episode's gradient to `.grad` of what the outer loop moves."""

from __future__ import annotations

from collections.abc import Callable

from subnetune.prepare.priming.episodes import Episode
from subnetune.prepare.priming.first_order import Measured, fomaml
from subnetune.prepare.priming.implicit import imaml
from subnetune.prepare.priming.learner import Learner
from subnetune.prepare.priming.rates import Rates
from subnetune.prepare.priming.reptile import reptile
from subnetune.prepare.priming.second_order import maml

# (the model, an episode, inner steps taken before it, inner rates, share) -> the episode's losses
Algorithm = Callable[[Learner, Episode, int, Rates, float], Measured]
ALGORITHMS: dict[str, Algorithm] = {"fomaml": fomaml, "maml": maml, "reptile": reptile, "imaml": imaml}
