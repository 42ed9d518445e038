"""LoRA under the Trainer: its own checkpoints hold the adapter, and a resumed run is the run that was never stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from subnetune.delta import Delta
from subnetune.methods import lora
from tiny import bits, differing
from trainers import StopAt, small, tuned

pytest.importorskip("peft")


@pytest.mark.parametrize("at", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_the_trainers_own_checkpoint_resumes_to_the_bit(at: int, tmp_path: Path) -> None:
    recipe = lora(r=4, dropout=0.2)
    whole_run = tuned(tmp_path / "one", recipe)
    whole_run.train()
    tuned(tmp_path / "two", recipe, callbacks=[StopAt(at)]).train()
    checkpoint = tmp_path / "two" / f"checkpoint-{at}"
    kept = load_file(checkpoint / "model.safetensors")
    assert sum("lora_" in name for name in kept) == 8
    torch.manual_seed(999)
    second = tuned(tmp_path / "two", recipe)
    second.train(resume_from_checkpoint=str(checkpoint))
    assert differing(bits(whole_run.model), bits(second.model)) == []
    for trainer, name in ((whole_run, "whole"), (second, "resumed")):
        trainer.save_delta(tmp_path / name)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "resumed").read_bytes()
    model = small()
    Delta.load(tmp_path / "whole").apply(model)
    assert differing(bits(whole_run.model), bits(model)) == []


def test_only_adapter_and_head_move(tmp_path: Path) -> None:
    trainer = tuned(tmp_path, lora())
    start = bits(trainer.model)
    trainer.train()
    moved = differing(start, bits(trainer.model))
    assert moved
    assert all(".lora_" in name or name.startswith("classifier.") for name in moved)
