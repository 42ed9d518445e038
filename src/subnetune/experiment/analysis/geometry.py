"""How far each layer and role moved, how many of its entries did, and how many the mask let."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from subnetune.core.bits import bits_of
from subnetune.core.errors import UsageError
from subnetune.core.fingerprint import named_parameters, parameter_aliases
from subnetune.core.masks import PackedMask
from subnetune.core.recipe import Recipe
from subnetune.core.scope import resolve
from subnetune.core.structure import Structure
from subnetune.delta import Delta
from subnetune.delta.apply import restructured
from subnetune.delta.delta import Entries, Whole
from subnetune.experiment.analysis.jaccard import ones
from subnetune.experiment.analysis.parts import ROLES, layers_of, listed, roles_of
from subnetune.experiment.analysis.solution import solution

_PIECE = 1 << 20  # entries at a time, in double precision


@dataclass(frozen=True)
class Change:
    """What became of one tensor. The sums of squares are of tuned - base and of base; None: there is no base."""

    entries: int
    moved: int
    squares: float | None
    base_squares: float | None
    largest: float | None
    selected: int | None = None


def geometry(delta: Delta, model: nn.Module, mask: PackedMask | None, recipe: Recipe) -> dict[str, Any]:
    """Return `{"layers": [row], "roles": [row], "total": row, "why": {}}` of a run; `model` is its base.

    A row is {"name", "entries", "selected", "moved", "distance", "norm", "largest"}: the number of entries, of those
    that train (tensors that train whole count whole, and so do those of a recipe without a selector; null where a
    selector's mask changes from step to step), of those whose bits changed; the Euclidean norms of tuned - base and of
    base, and the largest change of an entry. Distances are null where there is no base, as for a new head; the total's
    are over all tensors that have one. Adapters have entries in a row of their own, and distances in the rows of the
    weights that they are merged into. `why` explains nulls.
    """
    why: dict[str, str] = {}
    with restructured(delta, model):
        structure = Structure(model)
        aliases = parameter_aliases(model)
        new = tuple(aliases.get(name, name) for name in delta.new)
        selected = _selected(structure, new, mask, recipe, why)
        parts = {aliases.get(name, name): part for name, part in delta.touched.items()}
        changes = {
            name: _change(structure.read(name), parts.get(name), name in new, selected.get(name))
            for name in structure.names
        }
        layers, roles = layers_of(structure, new), roles_of(structure, new)
        adapted = structure.adapted()
    if adapted:
        changes |= _through_adapters(delta, model, changes, why)
    return {
        "layers": [_row(name, _where(changes, layers, name)) for name in listed(layers.values())],
        "roles": [_row(name, _where(changes, roles, name)) for name in ROLES if name in roles.values()],
        "total": _row("total", list(changes.values())),
        "why": why,
    }


def _selected(
    structure: Structure, new: tuple[str, ...], mask: PackedMask | None, recipe: Recipe, why: dict[str, str]
) -> Mapping[str, int]:
    """Return how many entries of each tensor train; {} where nothing fixed says it."""
    if mask is None and recipe.selector is not None:
        why["selected"] = "the run's mask changes from step to step"
        return {}
    try:
        found = resolve(recipe.scope, structure, new)
    except UsageError as error:
        why["selected"] = f"the method's scope does not fit the model: {error}"
        return {}
    whole = found.trained if mask is None else found.whole
    counts = {name: structure.read(name).numel() if name in whole else 0 for name in structure.names}
    return counts if mask is None else counts | {name: ones(mask.bits[name].numpy()) for name in mask}


def _change(base: Tensor, part: Entries | Whole | None, new: bool, selected: int | None) -> Change:
    if new:
        return Change(base.numel(), base.numel(), None, None, None, selected)
    moved, squares, largest = (0, 0.0, 0.0) if part is None else _moved(base, part)
    return Change(base.numel(), moved, squares, _squares(base), largest, selected)


def _moved(base: Tensor, part: Entries | Whole) -> tuple[int, float, float]:
    """Return how many entries moved, the sum of their squared changes, and the largest one."""
    if isinstance(part, Whole):
        moved = int((bits_of(base.cpu()) != bits_of(part.values)).count_nonzero())
        return moved, *_sums(_pieces(base, part.values))
    flat = base.detach().reshape(-1).cpu()

    def pieces() -> Iterator[Tensor]:
        start = 0
        for positions in part.index.pieces():
            stop = start + positions.numel()
            yield part.values[start:stop].double() - flat[positions].double()
            start = stop

    return part.index.moved, *_sums(pieces())


def _pieces(base: Tensor, tuned: Tensor) -> Iterator[Tensor]:
    before, after = base.detach().reshape(-1).cpu(), tuned.detach().reshape(-1).cpu()
    for start in range(0, before.numel(), _PIECE):
        yield after[start : start + _PIECE].double() - before[start : start + _PIECE].double()


def _sums(differences: Iterator[Tensor]) -> tuple[float, float]:
    squares = largest = 0.0
    for difference in differences:
        if difference.numel():
            squares += float(difference.square().sum())
            largest = max(largest, float(difference.abs().max()))
    return squares, largest


def _squares(tensor: Tensor) -> float:
    flat = tensor.detach().reshape(-1)
    return sum(float(flat[i : i + _PIECE].double().square().sum()) for i in range(0, flat.numel(), _PIECE))


def _through_adapters(
    delta: Delta, model: nn.Module, changes: Mapping[str, Change], why: dict[str, str]
) -> dict[str, Change]:
    """Return the changes of the weights that have adapters, as far as these move them."""
    found: dict[str, Change] = {}
    with solution(delta, model) as at:
        if at.why is not None:
            why["distance"] = at.why
        parameters = named_parameters(model)
        for name in at.adapted:
            was = changes[name]
            squares, largest = (None, None) if at.why else _sums(_pieces(at.base[name], parameters[name]))
            found[name] = Change(was.entries, was.moved, squares, was.base_squares, largest, was.selected)
    return found


def _where(changes: Mapping[str, Change], places: Mapping[str, str], place: str) -> list[Change]:
    return [change for name, change in changes.items() if places[name] == place]


def _row(name: str, changes: Sequence[Change]) -> dict[str, Any]:
    based = [change for change in changes if change.base_squares is not None]
    known = bool(based) and all(change.squares is not None for change in based)
    selected = [change.selected for change in changes]
    largest = [change.largest for change in based if change.largest is not None]
    return {
        "name": name,
        "entries": sum(change.entries for change in changes),
        "selected": None if None in selected else sum(count or 0 for count in selected),
        "moved": sum(change.moved for change in changes),
        "distance": math.sqrt(sum(change.squares or 0.0 for change in based)) if known else None,
        "norm": math.sqrt(sum(change.base_squares or 0.0 for change in based)) if based else None,
        "largest": max(largest) if known and largest else None,
    }
