"""A few layers of plain torch, quick to build and to train: what tests of gradients share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from subnetune import HoldUnselected, MaskGradient, Random, Recipe, Scope, Top, Tuning
from subnetune.core.types import Output

TOWER = Recipe(Scope(("layers.*",), ("head.*",)), Top(Random(), 0.25), (MaskGradient(), HoldUnselected()))


class Block(nn.Module):
    """A linear layer, an activation with dropout, another linear layer, and a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.down(self.dropout(torch.tanh(self.up(x)))))


class Tower(nn.Module):
    """Words, blocks and a head; `checkpointing` recomputes blocks, reentrantly or not; `tied` shares a weight."""

    def __init__(self, width: int = 24, checkpointing: bool | None = None, tied: bool = False) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(20, width), nn.Linear(width, 2)
        self.layers = nn.ModuleList(Block(width) for _ in range(2))
        self.checkpointing = checkpointing
        if tied:
            self.layers[1].up.weight = self.layers[0].up.weight

    def forward(self, ids: Tensor, labels: Tensor) -> Output:
        x = self.words(ids).requires_grad_()
        for layer in self.layers:
            x = layer(x) if self.checkpointing is None else checkpoint(layer, x, use_reentrant=self.checkpointing)
        logits = self.head(x.mean(1))
        return Output(nn.functional.cross_entropy(logits, labels), logits)


def tower(**options: Any) -> Tower:
    """A tower in training mode; the same values each time."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Tower(**options).train()


def data(seed: int = 0) -> dict[str, Tensor]:
    """A batch of four rows."""
    random = torch.Generator().manual_seed(seed)
    return {
        "ids": torch.randint(0, 20, (4, 7), generator=random),
        "labels": torch.randint(0, 2, (4,), generator=random),
    }


def tuned(
    gradients: str = "lean", model: nn.Module | None = None, recipe: Recipe = TOWER, **hyper: Any
) -> tuple[Tuning, torch.optim.Optimizer]:
    """A tuning of a tower and its optimizer, by default the packed one's AdamW."""
    torch.manual_seed(0)  # dropout draws the same in every run that is compared
    tuning = Tuning(recipe, tower() if model is None else model, steps=9, forward=lambda model, batch: model(**batch))
    options = {"engine": "packed", "lr": 1e-2, "weight_decay": 0.1, **hyper}
    return tuning, tuning.optimizer(options.pop("cls", torch.optim.AdamW), gradients=gradients, **options)
