"""Models, batches, and what a user would otherwise run: torch's AdamW, naive packing, the published update."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

RATES: dict[str, Any] = {"lr": 2e-5, "weight_decay": 0.01}


# -- models ----------------------------------------------------------------------------------------------------------


def bert(quick: bool, device: str = "cpu", seed: int = 0) -> nn.Module:
    """Return a classifier in BERT-base shapes (110 million entries), with random weights; `quick`: a small one."""
    from transformers import BertConfig, BertForSequenceClassification

    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    torch.manual_seed(seed)
    config = BertConfig(**({**small, "vocab_size": 2000} if quick else {}), num_labels=2)
    return BertForSequenceClassification(config).to(device).train()


def minilm(device: str = "cpu", seed: int = 0) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the packaged all-MiniLM-L6-v2 (22.7 million entries) as a classifier, and the names of its new tensors."""
    from subnetune.delta.models import load_pretrained

    torch.manual_seed(seed)
    model, new = load_pretrained("minilm", "AutoModelForSequenceClassification", labels={0: "no", 1: "yes"})
    return model.to(device).train(), tuple(new)


def batches(size: int, tokens: int, words: int, device: str = "cpu", count: int = 4) -> list[dict[str, Tensor]]:
    """Return random batches; what a step costs does not depend on the words."""
    random = torch.Generator().manual_seed(0)
    made = [
        {
            "input_ids": torch.randint(words // 20, words, (size, tokens), generator=random),
            "attention_mask": torch.ones((size, tokens), dtype=torch.int64),
            "labels": torch.randint(0, 2, (size,), generator=random),
        }
        for _ in range(count)
    ]
    return [{key: value.to(device) for key, value in batch.items()} for batch in made]


class Stack(nn.Module):
    """Twelve linear layers of about `entries` entries together: a model of any size, for steps without a forward."""

    def __init__(self, entries: int, device: str = "cpu") -> None:
        super().__init__()
        width = max(8, round((entries / 48) ** 0.5))
        self.layers = nn.ModuleList(nn.Linear(width, 4 * width, device=device) for _ in range(12))


def twin(model: nn.Module) -> nn.Module:
    """Return a model with parameters of its own that share the memory of those of `model`.

    Steps of different optimizers can be timed side by side so, each far larger than the caches.
    """
    known = {id(p): nn.Parameter(p.detach()) for p in model.parameters()}
    return copy.deepcopy(model, known)


class Gradients:
    """Fabricated gradients of a model, shared by its twins, fresh before every step."""

    def __init__(self, model: nn.Module) -> None:
        device = next(model.parameters()).device
        random = torch.Generator(device).manual_seed(1)
        self._pristine = [torch.randn(p.shape, generator=random, device=device).mul_(1e-3) for p in model.parameters()]
        self._used = [torch.empty_like(gradient) for gradient in self._pristine]

    @torch.no_grad()
    def refresh(self, model: nn.Module) -> None:
        """Give every parameter of `model` that trains its gradient; all twins have the same memory for it."""
        for p, used, pristine in zip(model.parameters(), self._used, self._pristine, strict=True):
            if p.requires_grad:
                p.grad = used.copy_(pristine)

    def backward(self, model: nn.Module) -> None:
        """Let autograd produce the gradients, each in memory of its own, in the order of a backward pass."""
        pairs = zip(model.parameters(), self._pristine, strict=True)
        torch.stack([_Fabricate.apply(p, gradient) for p, gradient in pairs if p.requires_grad]).sum().backward()


class _Fabricate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return parameter.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient.clone(), None


# -- what a user would otherwise run ---------------------------------------------------------------------------------


def trained(model: nn.Module) -> list[Tensor]:
    """Return the parameters that train."""
    return [p for p in model.parameters() if p.requires_grad]


def torch_adamw(model: nn.Module, **how: Any) -> torch.optim.AdamW:
    """Return torch's AdamW over everything that trains, fused unless `how` says otherwise."""
    return torch.optim.AdamW(trained(model), **RATES, **(how or {"fused": True}))


class Published:
    """The update of the Child-Tuning paper and release, in plain words: a loop over tensors, a dense mask on each.

    F (`masks` is None) draws a new mask at every step and divides by keep; D multiplies by a fixed one. Then AdamW
    with the decay after the update.
    """

    def __init__(self, model: nn.Module, keep: float, masks: Mapping[str, Tensor] | None = None) -> None:
        self._parameters = dict(model.named_parameters())
        self._keep, self._masks, self._count = keep, masks, 0
        self._first = {name: torch.zeros_like(p) for name, p in self._parameters.items()}
        self._second = {name: torch.zeros_like(p) for name, p in self._parameters.items()}

    @torch.no_grad()
    def step(self) -> None:
        """Take a step."""
        self._count += 1
        size = RATES["lr"] * (1 - 0.999**self._count) ** 0.5 / (1 - 0.9**self._count)
        for name, p in self._parameters.items():
            gradient = p.grad
            if gradient is None:
                continue
            if self._masks is None:
                gradient *= torch.bernoulli(torch.full_like(gradient, self._keep)) / self._keep
            elif name in self._masks:
                gradient *= self._masks[name]
            first = self._first[name].mul_(0.9).add_(gradient, alpha=0.1)
            second = self._second[name].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            p.addcdiv_(first, second.sqrt().add_(1e-6), value=-size)
            p.add_(p, alpha=-RATES["lr"] * RATES["weight_decay"])

    def state_bytes(self) -> int:
        """Return the bytes of moments and masks."""
        kept = [*self._first.values(), *self._second.values(), *(self._masks or {}).values()]
        return sum(tensor.nbytes for tensor in kept)


class Naive:
    """Packing with torch's own operations: gather the selected entries, step fused AdamW over them, scatter them."""

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        whole, self._packed = [], []
        for name, p in model.named_parameters():
            if name in masks:
                index = masks[name].reshape(-1).nonzero().squeeze(1)  # int64: index_copy_ takes nothing else
                self._packed.append((p, index, nn.Parameter(p.detach().view(-1)[index])))
            elif p.requires_grad:
                whole.append(p)
        leaves = [leaf for _, _, leaf in self._packed]
        self._optimizer = torch.optim.AdamW([*whole, *leaves], fused=True, **RATES)

    @torch.no_grad()
    def step(self) -> None:
        """Take a step."""
        for p, index, leaf in self._packed:
            assert p.grad is not None
            torch.index_select(p.view(-1), 0, index, out=leaf.data)
            leaf.grad = p.grad.view(-1).index_select(0, index)
        self._optimizer.step()
        for p, index, leaf in self._packed:
            p.view(-1).index_copy_(0, index, leaf)
            leaf.grad = None

    def state_bytes(self) -> int:
        """Return the bytes of moments, packed values and indices."""
        return state_bytes(self._optimizer) + sum(index.nbytes + leaf.nbytes for _, index, leaf in self._packed)


# -- ours ------------------------------------------------------------------------------------------------------------


def masks_of(tuning: Any) -> dict[str, Tensor]:
    """Return the static mask of a started Tuning as dense bool tensors."""
    return {name: tuning.mask[name].expand_as(p) for name, p in tuning.selected().items()}


def state_bytes(optimizer: Any) -> int:
    """Return the bytes of an optimizer's states, and of the places of its selected entries where it has such."""
    child = getattr(optimizer, "child", None)
    places = 0
    if child is not None:
        found = (child.place(name, child.local(name)) for name in child.names if child.host.recipe.selector.static)
        places = sum(place.nbytes for place in found if place is not None)
    states = optimizer.state_dict()["state"].values()
    return places + sum(v.nbytes for state in states for v in state.values() if isinstance(v, Tensor))


def state_bound(tuning: Any, model: nn.Module) -> int:
    """Return what issue and design allow: two moments of what trains, and a bitmask or int32 index for each mask."""
    masks = {id(p): int(tuning.mask[name].expand_as(p).sum()) for name, p in tuning.selected().items()}
    total = 0
    for p in trained(model):
        count = masks.get(id(p), p.numel())
        total += 8 * count + (min(-(-p.numel() // 8), 4 * count) if count < p.numel() else 0)
    return total


def closed_loop(model: nn.Module, optimizer: Any, data: list[dict[str, Tensor]], max_norm: float) -> Callable[[], None]:
    """Return a function that takes one plain training step: forward, backward, clip, step, zero_grad."""
    parameters, count = trained(model), [0]

    def step() -> None:
        batch = data[count[0] % len(data)]
        count[0] += 1
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def tuned_loop(tuning: Any, optimizer: Any, data: list[dict[str, Tensor]], max_norm: float) -> Callable[[], None]:
    """Return a function that takes one training step with a Tuning."""
    count = [0]

    def step() -> None:
        batch = data[count[0] % len(data)]
        count[0] += 1
        tuning.forward(batch).loss.backward()
        tuning.clip(max_norm)
        tuning.step(optimizer)
        optimizer.zero_grad()

    return step
