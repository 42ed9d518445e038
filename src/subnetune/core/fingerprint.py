"""Know a base model again: a sha256 per parameter, and one over all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from subnetune.core.embeddings import embedding_module
from subnetune.core.errors import CheckpointError, UsageError
from subnetune.core.parallel import each, on_cpu
from subnetune.core.types import canonical_name, unwrap

_CHUNK = 1 << 22  # elements hashed at a time where a copy is needed (16 MiB of float32)


def raw_bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor, (bytes,) uint8 on the CPU; a view where the tensor is contiguous and on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def whole_tensor(tensor: Tensor) -> Tensor:
    """Return the unsharded tensor, detached. A DTensor is gathered, which every rank must join."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def fingerprint(tensor: Tensor) -> str:
    """Return the hex sha256 of a tensor's shape and values; bf16 weights and the same weights in float32 agree.

    Floats of at most 32 bits are hashed as float32, which holds each of them exactly; other types as their own bytes
    under their own name. At most one chunk of 16 MiB is copied. Raises UsageError on a tensor without data (meta).
    """
    tensor = whole_tensor(tensor)
    if tensor.is_meta:
        raise UsageError("a tensor on the meta device has no values to fingerprint: load the weights first")
    widen = tensor.is_floating_point() and tensor.element_size() <= 4
    kind = "float32" if widen else str(tensor.dtype).removeprefix("torch.")
    digest = hashlib.sha256(f"{kind}{list(tensor.shape)}".encode())
    flat = tensor.reshape(-1)
    for start in range(0, flat.numel(), _CHUNK):
        part = flat[start : start + _CHUNK]
        digest.update(raw_bytes(part.float() if widen else part).numpy().data)
    return digest.hexdigest()


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of the unwrapped model by canonical name, tied ones once.

    Raises UsageError where two parameters would share a canonical name.
    """
    named: dict[str, nn.Parameter] = {}
    for wrapped, parameter in unwrap(model).named_parameters():
        name = canonical_name(wrapped)
        if name in named:
            raise UsageError(f"two parameters of the model share the name {name!r} once wrappers are removed")
        named[name] = parameter
    return named


def named_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers of the unwrapped model by canonical name, shared ones once."""
    return {canonical_name(name): buffer for name, buffer in unwrap(model).named_buffers()}


def parameter_aliases(model: nn.Module) -> dict[str, str]:
    """Return for each further name of a tied parameter the name that `named_parameters` gives it."""
    first = {id(parameter): name for name, parameter in named_parameters(model).items()}
    everyone = unwrap(model).named_parameters(remove_duplicate=False)
    pairs = ((canonical_name(name), first[id(parameter)]) for name, parameter in everyone)
    return {alias: name for alias, name in pairs if alias != name}


def embedding_ends(model: nn.Module) -> tuple[str, str] | None:
    """Return the names of input and output embedding (one name where tied); None for a model without both."""
    names = {id(parameter): name for name, parameter in named_parameters(model).items()}
    weights = [getattr(embedding_module(model, end), "weight", None) for end in ("input", "output")]
    found = [names[id(weight)] for weight in weights if id(weight) in names]
    return (found[0], found[1]) if len(found) == 2 else None


def digest_of(pairs: Iterable[tuple[str, str]]) -> str:
    """Return the hex sha256 over (name, hex) pairs, whatever their order."""
    lines = (f"{name}\x00{value}\n" for name, value in sorted(pairs))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class Fingerprint:
    """What a model's parameters were: `tensors` by canonical name, `base` over all of them.

    `copy` names an output embedding that has the input embedding's values in a parameter of its own. It does not count
    in `base`, so a tied model and an untied one with equal weights are the same base; `tied` tells them apart.
    """

    tensors: Mapping[str, str] = field(repr=False)
    copy: str | None = None
    tied: bool = False

    @property
    def base(self) -> str:
        """The hex sha256 of the whole base model: one changed weight anywhere changes it."""
        return digest_of((name, value) for name, value in self.tensors.items() if name != self.copy)

    @staticmethod
    def of(model: nn.Module, exclude: Collection[str] = ()) -> Fingerprint:
        """Return the fingerprint of a model's parameters without those named in `exclude` (a newly initialised head).

        Raises UsageError where `exclude` names no parameter of the model.
        """
        parameters = named_parameters(model)
        aliases = parameter_aliases(model)
        left_out = {aliases.get(name, name) for name in exclude}
        if unknown := sorted(left_out - set(parameters)):
            raise UsageError(f"cannot leave out {', '.join(unknown)}: the model has no such parameter")
        counted = {name: p for name, p in parameters.items() if name not in left_out}
        side_by_side = on_cpu(counted.values())
        hashes = each(fingerprint, counted.values()) if side_by_side else map(fingerprint, counted.values())
        return Fingerprint.over(model, dict(zip(counted, hashes, strict=True)))

    @staticmethod
    def over(model: nn.Module, tensors: Mapping[str, str]) -> Fingerprint:
        """Return the fingerprint of hashes by name; `model` says only how its embeddings are tied."""
        ends = embedding_ends(model)
        if ends is None or not all(name in tensors for name in ends):
            return Fingerprint(tensors)
        copied = ends[0] != ends[1] and tensors[ends[0]] == tensors[ends[1]]
        return Fingerprint(tensors, copy=ends[1] if copied else None, tied=ends[0] == ends[1])

    def check(self, other: Fingerprint) -> None:
        """Raise CheckpointError, naming what differs, unless `other` is of the same base."""
        if self.base == other.base:
            return
        names = sorted(set(self.tensors) | set(other.tensors))
        moved = [name for name in names if self.tensors.get(name) != other.tensors.get(name)]
        listed = ", ".join(moved[:5]) + (f" and {len(moved) - 5} more" if len(moved) > 5 else "")
        raise CheckpointError(
            f"the model is not the base that was recorded: {len(moved)} of {len(names)} tensors differ ({listed}); "
            "load the weights that the run started from"
        )
