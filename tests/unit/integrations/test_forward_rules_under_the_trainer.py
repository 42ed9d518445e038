"""What forward rules add under the Trainer: the value of their formula, however the Trainer normalises the loss."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import pytest
from torch import Tensor, nn

from subnetune.core.recipe import Recipe, Scope
from subnetune.core.types import Batch, Forward, Live, Output
from subnetune.forward import R3F, NoisyLayers, PullToPretrained, RDrop
from tiny import tiny
from trainers import examples, small, tuned

SCOPE = Scope(("*",), ("@head?",))


@dataclass(frozen=True)
class Record:
    """Notes what the rules inside it give; the same for each pass when it is innermost."""

    notes: ClassVar[dict[str, list[tuple[float, Tensor]]]] = {}
    name: str = "rules"

    def __call__(self, forward: Forward, model: nn.Module, batch: Batch, live: Live) -> Output:
        output = forward(model, batch)
        counted = batch["labels"][:, 1:] != -100 if batch["labels"].dim() == 2 else ...
        logits = output.logits[:, :-1] if batch["labels"].dim() == 2 else output.logits
        self.notes.setdefault(self.name, []).append((float(output.loss.detach()), logits.detach()[counted].double()))
        return output


@dataclass(frozen=True)
class Pass(Record):
    """Of its own type, since no recipe holds two pieces of one."""

    name: str = "passes"


def apart(p: Tensor, q: Tensor) -> float:
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    return float(((p.exp() - q.exp()) * (p - q)).sum(-1).mean())


def sentences() -> list[dict[str, Tensor]]:
    """Token sequences whose labels count unequally."""
    rows = examples()
    for i, row in enumerate(rows):
        row["labels"] = row["input_ids"].clone()
        row["labels"][: 1 + i % 5] = -100
    return rows


QUICK = {
    ("r-drop", "classes", 2),
    ("r3f", "tokens", 2),
    ("l2-sp", "classes", 1),
    ("l2-sp", "tokens", 2),
    ("hype", "classes", 2),
}


@pytest.mark.parametrize(
    ("kind", "task", "accumulation"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for case in product(("r-drop", "r3f", "l2-sp", "hype"), ("classes", "tokens"), (1, 2))
    ],
)
def test_the_logged_loss_is_the_formula(kind: str, task: str, accumulation: int, tmp_path: Path) -> None:
    rule = {"r-drop": RDrop(300.0), "r3f": R3F(300.0, 0.5), "l2-sp": PullToPretrained(3.0), "hype": NoisyLayers(0.5)}[
        kind
    ]
    changes: dict[str, Any] = {"gradient_accumulation_steps": accumulation, "max_steps": 2, "logging_steps": 1}
    model = small()
    if task == "tokens":
        model = tiny("llama", "CausalLM", num_hidden_layers=2, attention_dropout=0.2)
        changes["train_dataset"] = sentences()
    Record.notes.clear()
    trainer = tuned(tmp_path, Recipe(SCOPE, forward=(Record(), rule, Pass())), model=model, **changes)
    distances: list[float] = []

    def moved(*_: Any) -> None:
        base = trainer.tuning.base_values()
        params = trainer.tuning.selected()
        distances.append(float(sum((p.detach().double() - base[n].double()).square().sum() for n, p in params.items())))

    model.register_forward_pre_hook(moved)
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history[:-1]]
    outer, inner = Record.notes["rules"], Record.notes["passes"]
    assert len(outer) == 2 * accumulation
    per_step = [sum(loss for loss, _ in outer[i : i + accumulation]) / accumulation for i in (0, accumulation)]
    assert logged == pytest.approx(per_step, rel=1e-4)
    for index, (loss, _) in enumerate(outer):
        if kind in ("r-drop", "r3f"):
            (one, first), (two, second) = inner[2 * index : 2 * index + 2]
            tasks = (one + two) / 2 if kind == "r-drop" else one
            wanted = tasks + 300.0 * apart(first, second) / (2 if kind == "r-drop" else 1)
            assert abs(wanted - tasks) > 1e-3
        else:
            wanted = inner[index][0] + (1.5 * distances[index] if kind == "l2-sp" else 0.0)
        assert loss == pytest.approx(wanted, rel=1e-4)
    if kind == "l2-sp":
        assert distances[0] == 0.0
        assert 1.5 * distances[-1] > 1e-3
