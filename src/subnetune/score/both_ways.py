"""Score one example by hooks and by a backward pass of its own, before hooks are trusted with more."""

from __future__ import annotations

import torch

from subnetune.core.errors import NumericError
from subnetune.core.types import Batch, Setting
from subnetune.score.by_hooks import HookedBatch
from subnetune.score.example_sums import ExampleSums
from subnetune.score.examples import single
from subnetune.score.owners import NotByHooks, Owner
from subnetune.score.squares import gradients
from subnetune.score.tap import Kinds


def checked_example(setting: Setting, owned: list[Owner], two: Batch, clip: float | None, piece: str) -> Kinds:
    """Score the first of `two` examples both ways; return what took part, or raise NotByHooks where the ways differ.

    A tensor's gradients may differ by rounding: relative to its norm, or to a part of the largest norm of all tensors,
    since where a gradient cancels (as that of a key's bias) rounding is all there is.
    """
    hooked, sums = HookedBatch(setting, owned, two), ExampleSums(clip)
    try:
        hooked.backward(sums, hooked.factors() * torch.tensor([1.0, 0.0]), "the first two examples")
    except torch.OutOfMemoryError:
        raise
    except (NumericError, RuntimeError) as error:  # the loop says it better, unless the hooks are to blame
        raise NotByHooks(f"the backward pass under hooks says: {error}") from error
    loss = setting.forward(setting.model, single(two, 0)).loss
    wanted = dict(gradients(loss, setting.params, clip, piece))
    if {n: g.shape for n, g in wanted.items()} != {n: total.shape for n, total in sums.totals.items()}:
        raise NotByHooks(f"hooks see {len(sums.totals)} tensors, the loop {len(wanted)}, or of other shapes")
    norms = {name: float(torch.linalg.vector_norm(gradient)) for name, gradient in wanted.items()}
    floor = max(norms.values(), default=0.0) / 32
    if not floor:
        raise NotByHooks("the first example has no gradient at all, which shows nothing")
    for name, gradient in wanted.items():
        apart = float(torch.linalg.vector_norm(sums.totals[name].sqrt() - gradient.abs()))
        if not apart <= hooked.noise * max(norms[name], floor):
            raise NotByHooks(f"hooks and loop differ at {name!r} by {apart:.0e}, its gradient is {norms[name]:.0e}")
    return hooked.kinds()
