"""A recipe that primes, under the Trainer: before step 0 on the tasks that it was given, and once in a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from subnetune import Prime, UsageError, methods
from subnetune.core.recipe import Recipe
from subnetune.delta import Delta
from tiny import bits, differing
from trainers import StopAt, examples, small, tuned


def recipe(**changed: Any) -> Recipe:
    values: dict[str, Any] = {"steps": 2, "inner_steps": 2, "task_batch": 2, "lr": 1e-2, "inner_lr": 0.1}
    bitfit = methods.bitfit()
    return replace(bitfit, prepare=(Prime(("a", "b"), inner=bitfit, **values | changed),))


def tasks() -> dict[str, Any]:
    return {name: DataLoader(examples(12, seed), batch_size=4) for name, seed in (("a", 1), ("b", 2))}


def test_a_recipe_that_primes_needs_tasks_here_too(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Prime uses them.*tasks="):
        tuned(tmp_path, recipe())


@pytest.mark.parametrize("algorithm", ["fomaml", pytest.param("maml", marks=pytest.mark.slow)])
def test_a_resumed_run_is_primed_as_the_whole_one_was(algorithm: str, tmp_path: Path) -> None:
    piece = recipe(algorithm=algorithm)
    whole = tuned(tmp_path / "one", piece, tasks=tasks(), max_steps=4)
    start = bits(whole.model)
    whole.train()
    assert "bert.embeddings.word_embeddings.weight" in differing(start, bits(whole.model)), "BitFit moves biases alone"
    tuned(tmp_path / "two", piece, tasks=tasks(), max_steps=4, callbacks=[StopAt(2)]).train()
    torch.manual_seed(999)
    second = tuned(tmp_path / "two", piece, tasks=tasks(), max_steps=4)
    second.train(resume_from_checkpoint=str(tmp_path / "two" / "checkpoint-2"))
    assert differing(bits(whole.model), bits(second.model)) == []
    second.save_delta(tmp_path / "d")
    model = small()
    Delta.load(tmp_path / "d").apply(model)
    assert differing(bits(whole.model), bits(model)) == []
