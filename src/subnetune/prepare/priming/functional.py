"""A model's loss as a function of some of its tensors, differentiable as often as one likes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from subnetune.core.errors import UsageError
from subnetune.core.types import Batch
from subnetune.prepare.priming.learner import Learner

LossOf: TypeAlias = Callable[[Mapping[str, Tensor], Sequence[Batch]], Tensor]


class _Loss(nn.Module):
    def __init__(self, learner: Learner, task: str) -> None:
        super().__init__()
        self.model, self._losses, self._task = learner.model, learner.losses, task

    def forward(self, batches: Sequence[Batch]) -> Tensor:
        return self._losses.query(self.model, batches, self._task)


def loss_of(learner: Learner, task: str) -> LossOf:
    """Return the mean loss over batches as a function of the tensors that the inner loop moves (tied ones follow)."""
    whole = _Loss(learner, task)
    names = {id(p): name for name, p in whole.named_parameters()}  # as wrappers and adapters spell them
    spelled = {name: names[id(p)] for name, p in learner.tensors(learner.moved).items()}

    def loss(tensors: Mapping[str, Tensor], batches: Sequence[Batch]) -> Tensor:
        value: Tensor = functional_call(whole, {spelled[name]: t for name, t in tensors.items()}, (batches,))
        return value

    return loss


def check_graph(gradients: Iterable[Tensor | None]) -> None:
    """Raise UsageError where a gradient came through a function that says that it has no second derivative.

    Autograd leaves such a function out, and says nothing, where it is asked for gradients of chosen tensors.
    """
    left = [g.grad_fn for g in gradients if g is not None and g.grad_fn is not None]
    seen = set(left)
    while left:
        node = left.pop()
        if node.name().endswith("::Error"):
            raise UsageError(_KERNEL.format("a function that is marked as once differentiable"))
        following = {other for other, _ in node.next_functions if other is not None} - seen
        seen |= following
        left += following


_KERNEL = (
    "Prime: this model has a kernel without a second derivative ({}); load it with "
    'attn_implementation="eager", or use fomaml or reptile'
)


@contextmanager
def differentiable_twice() -> Iterator[None]:
    """Have attention computed by plain operations inside: the fused kernels have no second derivative.

    This reaches all that goes through torch's scaled_dot_product_attention, and eager attention needs nothing. Raises
    UsageError for other kernels without a second derivative.
    """
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    except (RuntimeError, NotImplementedError) as error:
        if "derivative" not in str(error) and "double backward" not in str(error):
            raise
        raise UsageError(_KERNEL.format(error)) from error
