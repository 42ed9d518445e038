"""The state of a Tuning as plain data, and back: nothing missing, nothing foreign, nothing cast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from subnetune.core.errors import CheckpointError, UsageError
from subnetune.core.masks import LazyMask, PackedMask, mask_of
from subnetune.core.recipe import Recipe
from subnetune.core.types import Mask, Params, State, Step, placement
from subnetune.engine.anchors import Anchors
from subnetune.select.fixed import without_folder

FORMAT = 1
PACKED = 2  # with anchors of selected entries alone: an older version does not read it
_KEYS = ("format", "recipe", "seed", "steps", "index", "base", "selector", "anchor", "unprepared")


@dataclass(frozen=True)
class Restored:
    """What a saved state holds beside the identity of its run."""

    index: int
    state: State
    anchor: dict[str, Tensor]
    unprepared: dict[str, Tensor]
    entries: dict[str, Tensor]
    prints: dict[str, str]


def identity(recipe: Recipe, seed: int, steps: int, base: str) -> dict[str, Any]:
    """Return what must agree between a saved run and the one that continues it."""
    return {"recipe": recipe_text(recipe), "seed": seed, "steps": steps, "base": base}


def recipe_text(recipe: Recipe) -> str:
    """Return the recipe as a saved state has it."""
    return repr(without_folder(recipe))


def snapshot(
    who: Mapping[str, Any], index: int, state: State, anchor: Anchors, unprepared: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Return a state of tensors, strings and numbers; tensors are copies. Raises for parameters in shards."""
    for name, tensor in anchor.local():
        if placement(tensor).sharded:
            raise CheckpointError(f"{name!r} is sharded: the state of a sharded Tuning cannot be saved yet")
    saved = {
        "format": PACKED if anchor.entries else FORMAT,
        **who,
        "index": index,
        "selector": _copied(state, None),
        "anchor": _copied(anchor.kept, None),
        "unprepared": _copied(dict(unprepared), None),
    }
    if anchor.entries:
        saved |= {"entries": _copied(anchor.entries, None), "prints": dict(anchor.prints)}
    return saved


def restore(saved: Mapping[str, Any], who: Mapping[str, Any], like: Mapping[str, Tensor]) -> Restored:
    """Check a saved state against this run and return its parts on the devices of `like`.

    Raises CheckpointError for a missing key, a newer format, another recipe, seed, run length or base, and for anchors
    whose names, shapes or dtypes differ from the tensors that train.
    """
    keys = (*_KEYS, "entries", "prints") if saved.get("format") == PACKED else _KEYS
    missing = [key for key in keys if key not in saved]
    if missing:
        raise CheckpointError(
            f"the tuning state lacks {', '.join(map(repr, missing))}: it is damaged or of another kind"
        )
    if saved["format"] not in (FORMAT, PACKED):
        raise CheckpointError(
            f"the tuning state has format {saved['format']!r}; this version reads {FORMAT} and {PACKED}"
        )
    for key, here in who.items():
        if saved[key] != here:
            raise CheckpointError(f"the tuning state was saved with {key}={saved[key]!r}, this run has {key}={here!r}")
    anchor, entries, prints = saved["anchor"], saved.get("entries", {}), saved.get("prints", {})
    if len(anchor) + len(entries) != len(like) or {*anchor, *entries} != set(like) or set(entries) != set(prints):
        odd = sorted({*anchor, *entries} ^ set(like)) or sorted(set(anchor) & set(entries)) or sorted(entries)
        raise CheckpointError(f"the tuning state anchors other tensors than this recipe trains, such as {odd[0]!r}")
    for name, tensor in like.items():
        if name in entries and placement(tensor).sharded:
            raise CheckpointError(f"{name!r} is sharded, and its anchor was saved packed: resume without sharding")
        old = anchor[name] if name in anchor else entries[name]
        shape = placement(tensor).shape if name in anchor else (old.numel(),)  # anchors are saved whole
        if tuple(old.shape) != shape or old.dtype != tensor.dtype:
            raise CheckpointError(
                f"the anchor of {name!r} is {tuple(old.shape)} {old.dtype}, the model has {shape} {tensor.dtype}"
            )
    device = next(iter(like.values())).device
    return Restored(
        int(saved["index"]),
        _copied(saved["selector"], device),
        {name: old.to(like[name].device, copy=True) for name, old in anchor.items()},
        {name: old.to(device, copy=True) for name, old in saved["unprepared"].items()},
        {name: old.to(like[name].device, copy=True) for name, old in entries.items()},
        dict(prints),
    )


def first_mask(recipe: Recipe, state: State, params: Params, step: Step) -> Mask | None:
    """Return the mask with which a restored run goes on.

    Raises CheckpointError where the selector's state lacks a key, or a mask that fits for a selected tensor.
    """
    if recipe.selector is None:
        return None
    try:
        for key in recipe.selector.state_keys:
            state[key]
        mask = recipe.selector.mask(state, params, step)
        if mask is not None:
            _check_covers(mask, params)
    except (KeyError, TypeError, UsageError) as error:
        who = type(recipe.selector).__name__
        raise CheckpointError(f"the saved state of {who} is damaged or of another version: {error!r}") from error
    return mask


def _check_covers(mask: Mask, params: Params) -> None:
    # Packed bits are not decoded for this; a lazy mask reads its state now, by its first tensor, and not in mid-run.
    for place, (name, tensor) in enumerate(params.items()):
        if isinstance(mask, PackedMask) and name in mask:
            stand_in = torch.empty((), dtype=torch.bool, device="meta").expand(mask.shapes[name])
            mask_of({name: stand_in}, name, torch.empty(placement(tensor).shape, device="meta"))
        elif name not in mask or place == 0 or not isinstance(mask, LazyMask):
            mask_of(mask, name, tensor)


def _copied(value: Any, device: Any) -> Any:
    # `device` None keeps each tensor where it is. dtypes are never touched: masks are bits, indices are integers.
    if isinstance(value, Tensor):
        return value.detach().to(device if device is not None else value.device, copy=True)
    if isinstance(value, dict):
        return {key: _copied(inner, device) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(inner, device) for inner in value)
    return value
