"""To which layer and to which role each tensor of a model belongs: exactly one of both, found from its structure."""

from __future__ import annotations

from collections.abc import Iterable

from subnetune.core.depth import depths
from subnetune.core.roles import layer_lists, role_names
from subnetune.core.structure import Structure

# In this order: the matrices of a head are the head, the norm among the embeddings is part of them.
_ROLES = ("head", "adapter", "embeddings", "norm", "bias", "linear")
ROLES = ("linear", "bias", "norm", "embeddings", "head", "adapter", "other")  # as they are listed


def layers_of(structure: Structure, new: tuple[str, ...] = ()) -> dict[str, str]:
    """Return each parameter's layer: "embeddings", "layer 0" and on, "head", "adapter", or "other" (such as a pooler).

    The layers of an encoder-decoder are counted on from the first stack to the second; a layer that a model uses
    several times (ALBERT) is one. With the embeddings counts what stands before the first layer.
    """
    inside: dict[str, str] = {}
    number = 0
    for stack in layer_lists(structure.model):
        for block in stack:
            for name in structure.inside(block):
                inside.setdefault(name, f"layer {number}")  # what stacks share goes with the first
            number += 1
    head, adapters = role_names(structure, "@head", new), structure.adapters()
    embeddings = role_names(structure, "@embeddings", new)
    below = {name for name, depth in depths(structure, new).items() if depth} if number else set()
    found = {}
    for name in structure.names:
        if name in adapters or name in head:
            found[name] = "adapter" if name in adapters else "head"
        else:
            found[name] = inside.get(name) or ("embeddings" if name in embeddings or name in below else "other")
    return found


def roles_of(structure: Structure, new: tuple[str, ...] = ()) -> dict[str, str]:
    """Return each parameter's role: one of `ROLES`."""
    names = {role: role_names(structure, f"@{role}", new) for role in _ROLES}
    return {name: next((role for role in _ROLES if name in names[role]), "other") for name in structure.names}


def listed(layers: Iterable[str]) -> list[str]:
    """Return the layers that there are, each once: embeddings, layers by number, head, other, adapter."""

    def place(layer: str) -> tuple[int, int]:
        numbered = layer.startswith("layer ")
        return (1, int(layer.removeprefix("layer "))) if numbered else (ends.index(layer) * 2, 0)

    ends = ("embeddings", "head", "other", "adapter")
    return sorted(set(layers), key=place)
