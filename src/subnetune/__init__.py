"""Raise a child network inside a pretrained language model: fine-tune a chosen part of its own weights, exactly.

Names are loaded when they are first used (PEP 562), so `import subnetune` imports neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from subnetune import methods as methods
    from subnetune.core.errors import CheckpointError as CheckpointError
    from subnetune.core.errors import DataError as DataError
    from subnetune.core.errors import LifeCycleError as LifeCycleError
    from subnetune.core.errors import NumericError as NumericError
    from subnetune.core.errors import SubnetuneError as SubnetuneError
    from subnetune.core.errors import UsageError as UsageError
    from subnetune.core.recipe import Group as Group
    from subnetune.core.recipe import Recipe as Recipe
    from subnetune.core.recipe import Scope as Scope
    from subnetune.core.recipe import Selector as Selector
    from subnetune.delta import Delta as Delta
    from subnetune.delta import load as load
    from subnetune.forward.mix_unselected import MixUnselected as MixUnselected
    from subnetune.forward.noisy_layers import NoisyLayers as NoisyLayers
    from subnetune.forward.pull_to_pretrained import PullToPretrained as PullToPretrained
    from subnetune.forward.r3f import R3F as R3F
    from subnetune.forward.r_drop import RDrop as RDrop
    from subnetune.integrations.transformers import TunedTrainer as TunedTrainer
    from subnetune.integrations.transformers import TuningMixin as TuningMixin
    from subnetune.prepare.add_adapter import AddAdapter as AddAdapter
    from subnetune.prepare.concat_pooling import ConcatPooling as ConcatPooling
    from subnetune.prepare.noisy_start import NoisyStart as NoisyStart
    from subnetune.prepare.prime import Prime as Prime
    from subnetune.prepare.set_dropout import SetDropout as SetDropout
    from subnetune.score.fisher import Fisher as Fisher
    from subnetune.score.magnitude import Magnitude as Magnitude
    from subnetune.score.movement import Movement as Movement
    from subnetune.score.random import Random as Random
    from subnetune.select.bernoulli import Bernoulli as Bernoulli
    from subnetune.select.fixed import Fixed as Fixed
    from subnetune.select.random_draws import RandomDraws as RandomDraws
    from subnetune.select.random_lines import RandomLines as RandomLines
    from subnetune.select.staged import Staged as Staged
    from subnetune.select.top import Top as Top
    from subnetune.select.top_down import TopDown as TopDown
    from subnetune.tuning import Tuning as Tuning
    from subnetune.update.decay_to_anchor import DecayToAnchor as DecayToAnchor
    from subnetune.update.hold_unselected import HoldUnselected as HoldUnselected
    from subnetune.update.mask_gradient import MaskGradient as MaskGradient
    from subnetune.update.recall import Recall as Recall
    from subnetune.update.skip_unselected import SkipUnselected as SkipUnselected

_HOME = {  # public name -> the module that defines it; the imports above say the same to type checkers
    "Tuning": "subnetune.tuning",
    "Recipe": "subnetune.core.recipe",
    "Scope": "subnetune.core.recipe",
    "Group": "subnetune.core.recipe",
    "Selector": "subnetune.core.recipe",
    "Bernoulli": "subnetune.select.bernoulli",
    "Top": "subnetune.select.top",
    "TopDown": "subnetune.select.top_down",
    "Fixed": "subnetune.select.fixed",
    "Staged": "subnetune.select.staged",
    "RandomDraws": "subnetune.select.random_draws",
    "RandomLines": "subnetune.select.random_lines",
    "Fisher": "subnetune.score.fisher",
    "Magnitude": "subnetune.score.magnitude",
    "Movement": "subnetune.score.movement",
    "Random": "subnetune.score.random",
    "MaskGradient": "subnetune.update.mask_gradient",
    "MixUnselected": "subnetune.forward.mix_unselected",
    "HoldUnselected": "subnetune.update.hold_unselected",
    "SkipUnselected": "subnetune.update.skip_unselected",
    "ConcatPooling": "subnetune.prepare.concat_pooling",
    "NoisyStart": "subnetune.prepare.noisy_start",
    "Prime": "subnetune.prepare.prime",
    "DecayToAnchor": "subnetune.update.decay_to_anchor",
    "Recall": "subnetune.update.recall",
    "AddAdapter": "subnetune.prepare.add_adapter",
    "SetDropout": "subnetune.prepare.set_dropout",
    "RDrop": "subnetune.forward.r_drop",
    "R3F": "subnetune.forward.r3f",
    "PullToPretrained": "subnetune.forward.pull_to_pretrained",
    "NoisyLayers": "subnetune.forward.noisy_layers",
    "Delta": "subnetune.delta",
    "load": "subnetune.delta",
    "TunedTrainer": "subnetune.integrations.transformers",
    "TuningMixin": "subnetune.integrations.transformers",
    "SubnetuneError": "subnetune.core.errors",
    "UsageError": "subnetune.core.errors",
    "LifeCycleError": "subnetune.core.errors",
    "DataError": "subnetune.core.errors",
    "CheckpointError": "subnetune.core.errors",
    "NumericError": "subnetune.core.errors",
}

__all__ = [  # noqa: PLE0604, RUF100 - the names are those of the table
    "methods",
    *_HOME,
]


def __getattr__(name: str) -> object:
    """Import the module that defines `name`, once."""
    if name == "methods":
        return import_module("subnetune.methods")
    if name == "__version__":
        from importlib.metadata import version

        return version("subnetune")
    if name not in _HOME:
        raise AttributeError(f"module 'subnetune' has no attribute {name!r}")
    value: object = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
