"""The tensors that rules work on: a parameter itself, or a view of the local shard that knows where it lies."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from subnetune.core.errors import UsageError
from subnetune.core.masks import LazyMask
from subnetune.core.types import Mask, Params, Placement, is_sharded, placement


def local_view(tensor: Tensor) -> Tensor:
    """Return `tensor`, or for a DTensor a detached view of this rank's shard, its local gradient attached.

    The view shares storage with the shard: writing into it writes into the parameter. Raises UsageError for layouts
    other than replicated or split along dimensions that one mesh axis each splits evenly in rank order, over all ranks
    once; and for a gradient that lies otherwise.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    local = tensor.to_local().detach()
    local.subnetune_placement = _placement(tensor)  # type: ignore[attr-defined]
    if isinstance(tensor.grad, DTensor):
        if tensor.grad.placements != tensor.placements:
            raise UsageError(f"a gradient placed as {tensor.grad.placements} is no part of one as {tensor.placements}")
        local.grad = tensor.grad.to_local()
    return local


def _placement(tensor: DTensor) -> Placement:
    start = [0] * tensor.dim()
    sharded = False
    split: set[int] = set()
    parts = 1
    for axis, place in enumerate(tensor.placements):
        if isinstance(place, Replicate):
            continue
        if type(place) is not Shard or place.dim in split:  # strided shards may be a subclass
            raise UsageError(f"parameters placed as {tensor.placements} are not supported; use FSDP2's default layout")
        # torch.chunk's rule: equal chunks of ceil(n / ranks), the last ones shorter or empty.
        rows, ranks = tensor.shape[place.dim], tensor.device_mesh.size(axis)
        chunk = -(-rows // ranks)
        start[place.dim] = min(rows, chunk * tensor.device_mesh.get_local_rank(axis))
        sharded = True
        parts *= ranks
        split.add(place.dim)
    if sharded and parts != dist.get_world_size():  # norms and counts are sums over all ranks
        raise UsageError(
            f"parameters in {parts} shards on {dist.get_world_size()} ranks are not supported (HSDP, sub-meshes): what "
            "several ranks hold would be counted several times; shard over all ranks"
        )
    return Placement(tuple(tensor.shape), tuple(start), sharded)


def local_part(whole: Tensor, local: Tensor) -> Tensor:
    """Return the part of `whole` that lies where `local` lies in its unsharded tensor.

    `whole` has the unsharded tensor's shape, or broadcasts to it; what is local already comes back as it is.
    """
    where = placement(local)
    missing = len(where.shape) - whole.dim()
    for axis in range(whole.dim()):
        size, start = local.shape[axis + missing], where.start[axis + missing]
        if whole.shape[axis] == where.shape[axis + missing] != size and whole.shape[axis] > 1:
            whole = whole.narrow(axis, start, size)
    return whole


def local_parts(whole: Params, params: Params) -> Params:
    """Return for each of `params` the local part of the tensor of that name, cut when it is read."""
    return LazyMask(params, lambda name: local_part(whole[name], params[name]))


def local_mask(mask: Mask | None, params: Params) -> Mask | None:
    """Return the mask of the local shards; a mask from before sharding is cut when it is read."""
    if mask is None or not any(map(is_sharded, params.values())):
        return mask
    return LazyMask(params, lambda name: local_part(mask[name], params[name]))


def gathered(local: Tensor, like: Tensor) -> Tensor:
    """Return the whole tensor of which `local` is this rank's shard, placed as the parameter `like` is.

    Every rank must join. On a parameter that is not sharded `local` comes back as it is.
    """
    if not isinstance(like, DTensor):
        return local
    bits = local.to(torch.uint8) if local.dtype == torch.bool else local
    whole = DTensor.from_local(bits, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())
    return whole.full_tensor().to(local.dtype)


def whole_mask(mask: Mask | None, params: Params, read: Callable[[str], Tensor]) -> tuple[Mask | None, Params]:
    """Return a mask of whole tensors and stand-ins (meta) for these, gathered from the ranks when an entry is read.

    `params` are local shards, `read` gives a parameter by name. Where nothing is sharded both come back as they are.
    """
    if not any(placement(p).sharded for p in params.values()):
        return mask, params
    stand_ins = {name: torch.empty(placement(p).shape, dtype=p.dtype, device="meta") for name, p in params.items()}
    if mask is None:
        return None, stand_ins
    return LazyMask(params, lambda name: gathered(mask[name].expand(params[name].shape), read(name))), stand_ins
