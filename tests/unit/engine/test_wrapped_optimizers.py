"""The engines behind accelerate: prepared, accumulating, clipped, saved and loaded, equal to the reference engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from subnetune.core.recipe import Recipe, Scope
from subnetune.score import Random
from subnetune.select import Top
from subnetune.tuning import Tuning
from subnetune.update import HoldUnselected, MaskGradient
from tiny import batches, bits, differing, tiny

accelerate = pytest.importorskip("accelerate")
RECIPE = Recipe(Scope(("@layers",), whole=("@head",)), Top(Random(), 0.3), (MaskGradient(), HoldUnselected()))
MICRO, STEPS = 2, 4


class Prepared:
    """A run as accelerate's documentation writes it."""

    def __init__(self, engine: str) -> None:
        self.accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=MICRO)
        torch.manual_seed(3)
        self.model = tiny("bert", num_hidden_layers=1)
        self.tuning = Tuning(RECIPE, self.model, steps=STEPS)
        inner: Any = self.tuning.optimizer(torch.optim.AdamW, engine=engine, lr=1e-2, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(inner, lambda step: 1.0 / (1 + step))
        prepared = self.accelerator.prepare(self.model, inner, schedule)
        self.wrapped, self.optimizer, self.schedule = prepared

    def train(self, data: list[dict[str, Tensor]], clips: str = "tuning") -> list[float]:
        norms = []
        for batch in data:
            with self.accelerator.accumulate(self.wrapped):
                self.accelerator.backward(self.tuning.forward(batch, model=self.wrapped).loss)
                if self.accelerator.sync_gradients:
                    if clips == "tuning":
                        norms.append(float(self.tuning.clip(0.3)))
                    else:
                        norms.append(float(self.accelerator.clip_grad_norm_(self.wrapped.parameters(), 0.3)))
                happened = self.tuning.step(self.optimizer)
                assert happened == self.accelerator.sync_gradients
                self.schedule.step()
                self.optimizer.zero_grad()
        return norms


@pytest.mark.parametrize("clips", ["tuning", "accelerate"])
def test_prepared_and_accumulating_it_is_the_reference_engine(clips: str) -> None:
    """Clipping by accelerate sees dense gradients, in every engine."""
    ends, norms = [], []
    for engine in ("reference", "packed"):
        run = Prepared(engine)
        norms.append(run.train(batches(MICRO * STEPS), clips))
        assert run.tuning.index == STEPS
        ends.append(bits(run.model))
    assert norms[0] == norms[1]
    assert len(norms[0]) == STEPS
    assert differing(*ends) == []


@pytest.mark.parametrize("engine", ["packed", "fused"])
def test_a_saved_state_goes_on_bit_for_bit(engine: str, tmp_path: Path) -> None:
    data = batches(MICRO * STEPS)
    half = len(data) // 2
    whole = Prepared(engine)
    whole.train(data[:half])
    whole.accelerator.save_state(str(tmp_path))
    of_tuning = whole.tuning.state_dict()
    whole.train(data[half:])
    wanted = bits(whole.model)
    whole.tuning.close()
    resumed = Prepared(engine)
    resumed.tuning.load_state_dict(of_tuning)
    resumed.accelerator.load_state(str(tmp_path))
    resumed.train(data[half:])
    assert resumed.tuning.index == STEPS
    assert differing(wanted, bits(resumed.model)) == []


def test_clipping_each_micro_batch_scales_what_is_there_by_then() -> None:
    """A call of the step that accelerate skips leaves the gradients as clipped: later ones add to these."""
    ends = []
    for engine in ("reference", "packed"):
        run = Prepared(engine)
        for batch in batches(MICRO * STEPS):
            with run.accelerator.accumulate(run.wrapped):
                run.accelerator.backward(run.tuning.forward(batch, model=run.wrapped).loss)
                run.tuning.clip(0.1)
                run.tuning.step(run.optimizer)
                run.optimizer.zero_grad()
        ends.append(bits(run.model))
        assert run.tuning.index == STEPS
    assert differing(*ends) == []


@pytest.mark.parametrize("engine", ["packed", "fused"])
def test_clearing_gradients_reaches_parameters_that_were_exchanged(engine: str) -> None:
    """Sharding swaps the model's tensors after the optimizer was built; the groups follow the model."""
    model = tiny("bert", num_hidden_layers=1)
    tuning = Tuning(RECIPE, model)
    optimizer = tuning.optimizer(torch.optim.AdamW, engine=engine, lr=1e-2)
    layer = model.bert.encoder.layer[0].output.dense
    layer.weight = nn.Parameter(layer.weight.detach().clone())
    tuning.forward(batches(1)[0]).loss.backward()
    before = bits(model)
    tuning.step(optimizer)
    assert "bert.encoder.layer.0.output.dense.weight" in differing(before, bits(model))
    assert any(p is layer.weight for group in optimizer.param_groups for p in group["params"])
    optimizer.zero_grad()
    assert layer.weight.grad is None
