"""The gradient that each example of a batch has at a module's tensors, for the modules whose formula is known."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from subnetune.score.example_sums import ExampleSums

# (module, names of its selected tensors by attribute, input (B, ...), gradient of the output (B, ...), where it goes)
Formula = Callable[[nn.Module, dict[str, str], Tensor, Tensor, ExampleSums], None]


def formula_of(module: nn.Module) -> Formula | None:
    """Return the formula for this very type of module, or None. A changed `forward` is no known type."""
    kind, parameters = type(module), dict(module.named_parameters(recurse=False))
    if "forward" in vars(module) or any(True for _ in module.children()):
        return None
    if kind is nn.Linear:
        return _linear
    if kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils":
        return _conv1d
    if kind is nn.Embedding and isinstance(module, nn.Embedding):
        return None if module.scale_grad_by_freq or module.max_norm is not None else _embedding
    # Layer norms and RMS norms: their tensors have the shape of what is normalised, and act entry by entry.
    if kind in (nn.LayerNorm, nn.RMSNorm):
        return _norm
    scale = parameters.get("weight")
    return _norm if kind.__name__.endswith("Norm") and len(parameters) == 1 and _flat(scale) else None


def _flat(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.dim() == 1


def _linear(module: nn.Module, names: dict[str, str], x: Tensor, gradient: Tensor, sums: ExampleSums) -> None:
    # y = x @ weight.T + bias, weight (out, in)
    x, gradient = _positions(x), _positions(gradient)
    if "weight" in names:
        sums.add_products(names["weight"], gradient, x)
    if "bias" in names:
        sums.add_dense(names["bias"], gradient.sum(1))


def _conv1d(module: nn.Module, names: dict[str, str], x: Tensor, gradient: Tensor, sums: ExampleSums) -> None:
    # y = x @ weight + bias, weight (in, out)
    x, gradient = _positions(x), _positions(gradient)
    if "weight" in names:
        sums.add_products(names["weight"], x, gradient)
    if "bias" in names:
        sums.add_dense(names["bias"], gradient.sum(1))


def _embedding(module: nn.Module, names: dict[str, str], x: Tensor, gradient: Tensor, sums: ExampleSums) -> None:
    assert isinstance(module, nn.Embedding)
    index, values = x.reshape(x.shape[0], -1), _positions(gradient)
    if module.padding_idx is not None:  # it gets no gradient
        values = values.masked_fill((index == module.padding_idx).unsqueeze(2), 0.0)
    sums.add_rows(names["weight"], module.weight.shape, index, values)


def _norm(module: nn.Module, names: dict[str, str], x: Tensor, gradient: Tensor, sums: ExampleSums) -> None:
    between = tuple(range(1, gradient.dim() - next(module.parameters()).dim()))  # axes neither examples nor entries
    if "weight" in names:  # the output is a linear function of the weight: its slope is what one gives above zero
        ends = []
        for value in (1.0, 0.0):
            fixed = {name: torch.full_like(p, value) for name, p in module.named_parameters() if name == "weight"}
            ends.append(functional_call(module, fixed, (x,)).float())
        weighted = gradient.float() * (ends[0] - ends[1])
        sums.add_dense(names["weight"], weighted.sum(between) if between else weighted)
    if "bias" in names:
        sums.add_dense(names["bias"], gradient.float().sum(between) if between else gradient.float())


def _positions(tensor: Tensor) -> Tensor:
    # (B, ..., n) -> (B, T, n) in single precision
    return tensor.reshape(tensor.shape[0], -1, tensor.shape[-1]).float()
