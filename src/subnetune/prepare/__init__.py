"""Preparations: what is done to the model before step 0."""

from subnetune.prepare.concat_pooling import ConcatPooling
from subnetune.prepare.noisy_start import NoisyStart
from subnetune.prepare.prime import Prime
from subnetune.prepare.set_dropout import SetDropout

__all__ = ["ConcatPooling", "NoisyStart", "Prime", "SetDropout"]
