"""What the two loops may touch, by canonical name in the model's order."""

from __future__ import annotations

from subnetune.core.errors import UsageError
from subnetune.core.recipe import Scope
from subnetune.core.scope import match
from subnetune.core.structure import Structure


def parent_names(scope: Scope, structure: Structure, fresh: set[str]) -> tuple[str, ...]:
    """Return the tensors that the outer loop moves: what `scope` names, without what is drawn anew for every task.

    "*" is every floating-point tensor but those of adapters, trainable or not: the outer loop moves the pretrained
    weights below an adapter. Raises UsageError where nothing is left.
    """
    rest = {name for name in structure.names if structure.read(name).is_floating_point()}
    rest -= structure.adapters() | structure.set_aside()
    found: set[str] = set()
    for pattern in (*scope.selected, *scope.whole):
        found |= rest if pattern == "*" else match(structure, pattern)
    for pattern in scope.exclude:
        found -= match(structure, pattern)
    names = tuple(name for name in structure.names if name in found - fresh)
    if not names:
        raise UsageError(f"Prime: {scope!r} leaves the outer loop nothing to move")
    return names
