"""Check that what a run promised to hold was held, before it is written down as what the run changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from subnetune.core.bits import bits_of
from subnetune.core.errors import CheckpointError
from subnetune.core.masks import mask_of
from subnetune.update.hold_unselected import HoldUnselected

if TYPE_CHECKING:
    from subnetune.tuning import Tuning

_WHY = (
    "HoldUnselected keeps them, so other code wrote into the model (a tied or averaged copy, a load_state_dict); undo "
    "that, or train anew"
)


def check_held(tuning: Tuning) -> None:
    """Raise CheckpointError where an entry that `HoldUnselected` leaves out by a static mask differs from its anchor.

    Rules, optimizers and clipping cannot do that; code that writes into the model beside them can. A recipe without
    that rule, or whose mask changes, promises nothing and passes. On shards every rank must join, and all agree.
    """
    if tuning.mask is None or not any(isinstance(rule, HoldUnselected) for rule in tuning.recipe.update):
        return
    live = tuning.live()
    if live.mask is None:
        return
    if unheld := tuning.unheld():
        raise CheckpointError(
            f"{unheld[0]!r} is not what it was outside the mask, nor {len(unheld) - 1} more tensors: {_WHY}"
        )
    moved = {
        name: _moved(live.params[name], live.anchor[name], mask_of(live.mask, name, p))
        for name, p in live.params.items()
    }
    device = next(iter(live.params.values())).device  # a model may lie on several
    counts = live.sum(torch.stack([count.to(device) for count in moved.values()])).tolist()
    wrong = [(name, count) for name, count in zip(moved, counts, strict=True) if count]
    if wrong:
        name, count = wrong[0]
        more = f", and in {len(wrong) - 1} more tensors" if len(wrong) > 1 else ""
        raise CheckpointError(f"{count} entries of {name!r} outside the mask are not what they were{more}: {_WHY}")


def _moved(now: Tensor, before: Tensor, mask: Tensor) -> Tensor:
    # () int64: how many entries outside the mask have other bits.
    differ = (bits_of(now) != bits_of(before.to(now.device))).view(now.shape)
    return (differ & ~mask).count_nonzero()
