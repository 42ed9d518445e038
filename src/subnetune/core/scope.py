"""From a scope's patterns to tensors: every tensor is selected, whole or frozen, and every pattern has its say."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple

from subnetune.core.depth import depths
from subnetune.core.errors import UsageError, nearest
from subnetune.core.recipe import Group, Scope
from subnetune.core.roles import role_names
from subnetune.core.structure import Structure


class Resolved(NamedTuple):
    """Canonical names per kind, each in the model's order."""

    selected: tuple[str, ...]
    whole: tuple[str, ...]
    frozen: tuple[str, ...]

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the tensors that train at least in part, selected first."""
        return self.selected + self.whole


_WHY_EMPTY = {
    "@bias": "this model has no bias parameters outside its head, so bias-only tuning (BitFit) has nothing to train",
    "@head": "nothing lies outside the base model; pass the newly initialised names as `new`, or use '@head?'",
    "@adapter": "no adapter library has added layers to this model",
    "@layers": "this model has no nn.ModuleList of blocks",
    "@norm": "this model has no normalisation layers with parameters",
}


def match(structure: Structure, pattern: str, new: tuple[str, ...] = ()) -> set[str]:
    """Return the canonical names that a pattern (a glob or a role, not `*`) stands for; `a|b` is either glob.

    Raises UsageError when it matches nothing, unless it is a role that ends with `?`.
    """
    if pattern.startswith("@"):
        found = role_names(structure, pattern.removesuffix("?"), new)
        body = found
        if pattern == "@bias":  # a new head's biases are not the pretrained ones that bias-only tuning is about
            body = found - role_names(structure, "@head", new)
        if not body and not pattern.endswith("?"):
            why = _WHY_EMPTY.get(pattern.split("[")[0], "it is empty on this model")
            raise UsageError(f"{pattern!r} matches nothing on {type(structure.pretrained()).__name__}: {why}")
        return found
    globs = pattern.split("|")
    if any(glob == "" or glob.startswith("@") for glob in globs):
        raise UsageError(f"pattern {pattern!r}: alternatives are globs; write roles as patterns of their own")
    found = {name for name in structure.slots if any(fnmatchcase(name, glob) for glob in globs)}
    found |= {name for alias, name in structure.aliases.items() if any(fnmatchcase(alias, glob) for glob in globs)}
    found -= structure.set_aside()
    if not found:
        if all(glob.endswith("bias") for glob in globs):
            match(structure, "@bias", new)  # a model without any says so in plainer words
        hint = nearest(pattern, (*structure.names, *structure.aliases))
        raise UsageError(f"pattern {pattern!r} matches no parameter of {type(structure.pretrained()).__name__}{hint}")
    return found


def resolve(scope: Scope, structure: Structure, new: tuple[str, ...] = ()) -> Resolved:
    """Return which tensors a scope selects, trains whole, and freezes. Where `@head` is named no other role claims it.

    Raises UsageError when a pattern matches nothing, two explicit patterns claim a tensor differently, nothing is left
    to train, or a claimed tensor cannot train (integers).
    """
    excluded: set[str] = set()
    for pattern in scope.exclude:
        if pattern == "*":
            raise UsageError("Scope.exclude cannot hold '*': what no pattern claims is frozen anyway")
        excluded |= match(structure, pattern, new)
    named = next((p for p in (*scope.selected, *scope.whole) if p in ("@head", "@head?")), None)
    head = set() if named is None else match(structure, named, new)
    claims: dict[str, tuple[str, str]] = {}  # name -> (kind, the pattern that claimed it)
    rest: list[str] = []
    for kind, patterns in (("selected", scope.selected), ("whole", scope.whole)):
        for pattern in patterns:
            if pattern == "*":
                rest.append(kind)
                continue
            found = match(structure, pattern, new) - excluded
            if pattern.startswith("@") and not pattern.startswith("@head"):
                found -= head  # where a scope names the head, other roles do not mean its biases, norms and matrices
            for name in _in_order(structure, found):
                other = claims.setdefault(name, (kind, pattern))
                if other[0] != kind:
                    raise UsageError(f"{name!r} is claimed as {other[0]} by {other[1]!r} and as {kind} by {pattern!r}")
    if len(rest) > 1:
        raise UsageError("Scope: '*' stands in both `selected` and `whole`; what no other pattern claims has one kind")
    if rest:
        adapted = structure.adapted()
        for name in set(structure.names) - set(claims) - excluded - structure.set_aside():
            # On an adapted model the rest means what the adapter library made trainable.
            if structure.read(name).is_floating_point() and (not adapted or structure.read(name).requires_grad):
                claims[name] = (rest[0], "*")
    for name, (_, pattern) in claims.items():
        if not structure.read(name).is_floating_point():
            raise UsageError(f"{pattern!r} claims {name!r}, whose dtype {structure.read(name).dtype} cannot train")
    if not claims:
        raise UsageError(f"{scope!r} leaves nothing to train on {type(structure.pretrained()).__name__}")
    kinds = {name: claim[0] for name, claim in claims.items()}
    return Resolved(
        tuple(n for n in structure.names if kinds.get(n) == "selected"),
        tuple(n for n in structure.names if kinds.get(n) == "whole"),
        tuple(n for n in structure.names if n not in kinds),
    )


def group_rates(
    groups: tuple[Group, ...], structure: Structure, names: Iterable[str], new: tuple[str, ...] = ()
) -> dict[tuple[float, float | None], list[str]]:
    """Return the names that share one (lr_scale, weight_decay); None is the optimizer's own weight decay.

    Groups that match the same tensor combine: scales multiply, weight decays must agree (UsageError otherwise).
    Raises UsageError too for rates by layer on a model without layers.
    """
    scale = dict.fromkeys(names, 1.0)
    decay: dict[str, tuple[float, str]] = {}
    depth = depths(structure, new) if any(group.per_layer != 1.0 for group in groups) else {}
    for group in groups:
        matched = set(structure.names) if group.pattern == "*" else match(structure, group.pattern, new)
        for name in matched & set(scale):
            scale[name] *= group.lr_scale
            if group.per_layer != 1.0:
                scale[name] /= group.per_layer ** depth[name]
            if group.weight_decay is None:
                continue
            first = decay.setdefault(name, (group.weight_decay, group.pattern))
            if first[0] != group.weight_decay:
                raise UsageError(
                    f"{name!r} is given weight_decay {first[0]} by {first[1]!r} "
                    f"and {group.weight_decay} by {group.pattern!r}"
                )
    rates: dict[tuple[float, float | None], list[str]] = {}
    for name in scale:
        rates.setdefault((scale[name], decay[name][0] if name in decay else None), []).append(name)
    return rates


def _in_order(structure: Structure, names: set[str]) -> list[str]:
    return [name for name in structure.names if name in names]
