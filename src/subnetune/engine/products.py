"""Selected weight gradients: a linear layer's weight gradient is computed at the selected entries alone.

It saves time, and is not bit-exact: each entry is summed in another order than in the dense product (a relative error
of about 1e-6 in float32), the same order in every repetition. Input and bias gradients are as ever. What is not worth
it, or not known to be right, stays lean: other classes than `nn.Linear` itself, entries too dense, half precision on
the CPU, autocast there, compiled forward passes, weights that a hook has replaced. A weight that is also read elsewhere
has both gradients added up.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from subnetune.core.errors import UsageError
from subnetune.core.types import placement
from subnetune.engine.child import Child
from subnetune.engine.kernels.products import entries_product
from subnetune.engine.lean import LeanGradients
from subnetune.engine.place import Place

# (tokens, rows), (tokens, columns) -> (count,): selected entries of the product of the first, turned, and the second
Product: TypeAlias = Callable[[Tensor, Tensor], Tensor]

LINES = 0.6  # the fraction of whole rows or columns from which on the dense product is as fast


class Plan(NamedTuple):
    """How one layer's weight gradient is made, and the leaf that takes it, (count,)."""

    weight: weakref.ref[Tensor]
    leaf: nn.Parameter
    product: Product


_PLANS: weakref.WeakKeyDictionary[nn.Module, Plan] = weakref.WeakKeyDictionary()  # copies of a layer have none


class SelectedLinear(nn.Linear):
    """What an `nn.Linear` is while its weight gradient is a selected one; its copies and pickles are `nn.Linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer, (..., columns) -> (..., rows)."""
        if torch.compiler.is_compiling():  # asked first: what the compiler traces it guards
            return super().forward(input)
        plan, weight = _PLANS.get(self), self.weight
        if plan is None or weight is not plan.weight() or not self.training or not torch.is_grad_enabled():
            return super().forward(input)
        if not weight.requires_grad:  # somebody has frozen it, and the leaf would train it all the same
            return super().forward(input)
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        if not _serves(kind, dtype) or not _plain(input, weight, dtype):
            return super().forward(input)
        bias = None if self.bias is None else self.bias.to(dtype)
        return _Selected.apply(input.to(dtype), weight.detach().to(dtype), bias, plan.leaf, plan.product)  # type: ignore[no-any-return,no-untyped-call]

    def __reduce_ex__(self, protocol: Any) -> Any:
        made = super().__reduce_ex__(protocol)
        return (object.__new__, (nn.Linear,), *made[2:])


class _Selected(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, leaf: Tensor, product: Product
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.product, ctx.dtype = product, leaf.dtype
        return nn.functional.linear(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None, None]:
        inputs, weight = ctx.saved_tensors
        needed = ctx.needs_input_grad
        flat = gradient.reshape(-1, gradient.shape[-1])
        selected = ctx.product(flat, inputs.reshape(-1, inputs.shape[-1])).to(ctx.dtype) if needed[3] else None
        return gradient @ weight if needed[0] else None, None, flat.sum(0) if needed[2] else None, selected, None


def select_products(child: Child, lean: LeanGradients) -> str:
    """Have the weight gradients of linear layers computed at the selected entries; return what was done, in words.

    Raises UsageError where no layer qualifies, with the reason.
    """
    done: set[str] = set()
    against = dict.fromkeys(lean.leaves, "no torch.nn.Linear reads it")
    for module in child.modules():
        if type(module) is not nn.Linear:
            continue
        for attribute, name, parameter in child.owned_by(module):
            if attribute != "weight" or name not in lean.leaves:
                continue
            found = product_of(child, name, parameter)
            if isinstance(found, str):
                against[name] = found
            else:
                lean.undo(_Swap(module, Plan(weakref.ref(parameter), lean.leaves[name], found)))
                done.add(name)
    matrices = [name for name in against if name not in done and child.local(name).dim() > 1]
    if not done:
        first = next(iter(matrices or against), None)
        why = "no tensor has a mask that leaves entries out" if first is None else f"{first!r}: {against[first]}"
        raise UsageError(f'gradients="selected" has no layer to work on ({why}); use gradients="lean"')
    rest = f", the others lean (such as {matrices[0]!r}: {against[matrices[0]]})" if matrices else ""
    return f"selected gradients of {len(done)} of {len(done) + len(matrices)} weights{rest}"


def product_of(child: Child, name: str, parameter: Tensor) -> Product | str:
    """Return what computes the selected entries of a weight's gradient, or why nothing does."""
    local = child.local(name)
    place = child.place(name, local)
    if place is None or placement(local).sharded:
        return "it is sharded, so that its gradient is made elsewhere"
    if not _serves(local.device.type, local.dtype):
        return f"there is no product for {local.dtype} on {local.device.type}"
    return product_at(place, local)


def product_at(place: Place, weight: Tensor) -> Product | str:
    """Return what computes the entries at `place` of the gradient of `weight`, (rows, columns), or why nothing does."""
    rows, columns = weight.shape
    keep = place.count / max(1, place.size)
    if place.count == 0:
        return _nothing
    index = place.indices()
    for axis, (numbers, lines, across) in enumerate(
        ((index // columns, rows, columns), (index % columns, columns, rows))
    ):
        counts = torch.bincount(numbers, minlength=lines)
        if bool(((counts == 0) | (counts == across)).all()):
            chosen = counts.nonzero().view(-1)
            return _Lines(axis, chosen) if keep <= LINES else f"{keep:.2g} of its lines are selected"
    product = entries_product(weight.device.type)
    if product is None:
        return f"there is no product of single entries for {weight.device.type} (Triton is not installed)"
    if keep > product.worth:
        return f"{keep:.2g} of its entries are selected, and above {product.worth} the dense product is faster"
    return product.make(index, rows, columns)


def _nothing(gradient: Tensor, inputs: Tensor) -> Tensor:
    return gradient.new_empty(0)


class _Lines:
    """Whole rows (axis 0) or columns (axis 1): a small dense product."""

    def __init__(self, axis: int, chosen: Tensor) -> None:
        self._axis, self._chosen = axis, chosen

    def __call__(self, gradient: Tensor, inputs: Tensor) -> Tensor:
        if self._axis == 0:
            return (gradient.index_select(1, self._chosen).t() @ inputs).view(-1)
        return (gradient.t() @ inputs.index_select(1, self._chosen)).view(-1)


class _Swap:
    """A layer that is a `SelectedLinear` until `remove`."""

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        self._module = module
        module.__class__ = SelectedLinear
        _PLANS[module] = plan

    def remove(self) -> None:
        """Make the layer what it was."""
        _PLANS.pop(self._module, None)
        if isinstance(self._module, SelectedLinear):
            self._module.__class__ = nn.Linear  # type: ignore[assignment]


def _serves(kind: str, dtype: torch.dtype) -> bool:
    return dtype == torch.float32 or (kind == "cuda" and dtype in (torch.float16, torch.bfloat16))


def _plain(inputs: Tensor, weight: Tensor, dtype: torch.dtype) -> bool:
    # Whatever is unusual takes the way that is known to be right.
    cast = torch.is_autocast_enabled(inputs.device.type)
    same = inputs.dtype == dtype or (cast and inputs.is_floating_point())
    return type(inputs) in (Tensor, nn.Parameter) and same and inputs.device == weight.device and inputs.numel() > 0
