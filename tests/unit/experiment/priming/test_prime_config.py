"""A priming's options: their defaults, limits, refusals, and the file that they are written to."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from subnetune.core.errors import UsageError
from subnetune.core.recipe import Recipe, Scope
from subnetune.experiment.config import RunConfig
from subnetune.experiment.priming import PrimeConfig
from subnetune.prepare.prime import Prime

GIVEN = {"tasks": "rte,mrpc", "for": "bitfit", "output": "primed"}


def test_defaults_are_those_of_the_piece() -> None:
    piece, config = Prime(("rte",), Recipe()), PrimeConfig()
    assert Scope(config.outer, exclude=config.freeze) == piece.outer
    same = {field.name for field in fields(Prime)} - {"tasks", "inner", "outer", "classes"}
    assert same <= set(PrimeConfig.model_fields)
    for name in same:
        assert getattr(config, name) == getattr(piece, name), name


def test_common_fields_have_the_limits_of_a_training_run() -> None:
    common = set(PrimeConfig.model_fields) & set(RunConfig.model_fields)
    assert {"model", "keep", "options", "max_length", "bf16", "save_steps"} <= common
    for name in common - {"lr", "schedule", "weight_decay", "clip", "batch_size"}:
        ours, theirs = PrimeConfig.model_fields[name], RunConfig.model_fields[name]
        assert (ours.annotation, ours.alias) == (theirs.annotation, theirs.alias)
        assert {*map(repr, ours.metadata)} == {*map(repr, theirs.metadata)}
    run = PrimeConfig.from_values({**GIVEN, "for": "child-tuning-d", "keep": 0.3, "seed": 7}).as_run("rte")
    assert (run.method, run.keep, run.seed, run.task) == ("child-tuning-d", 0.3, 7, "rte")


def test_a_file_gives_the_same_priming(tmp_path: Path) -> None:
    config = PrimeConfig.from_values({**GIVEN, "outer": "@layers,@embeddings", "with": ["r-drop"], "clip": 0})
    file = tmp_path / "prime.yaml"
    file.write_text(config.to_yaml())
    assert PrimeConfig.load(file, {}) == config
    assert PrimeConfig.load(file, {"steps": 7}).steps == 7
    file.write_text("steps: 5\ninner_step: 3\n")
    with pytest.raises(
        UsageError, match=r"prime.yaml, line 2: unknown option 'inner_step'; did you mean 'inner_steps'"
    ):
        PrimeConfig.load(file, {})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "steps: got 0, allowed is an integer of at least 1"),
        ({"algorithm": "anil"}, "algorithm: got 'anil', allowed is fomaml, maml, reptile or imaml"),
        ({"head": "new"}, "head: got 'new', allowed is shared, fresh or matched"),
        ({"inner_lr": 0}, "inner_lr: got 0, allowed is a number above 0"),
        ({"tasks": "rte,,mrpc"}, "tasks: .*an empty name"),
        ({"outer": ""}, "outer: .*an empty name"),
        ({"bf16": True, "algorithm": "maml"}, "bf16 is for first-order algorithms.*maml.*--algorithm fomaml"),
        ({"checkpointing": True, "algorithm": "maml"}, "checkpointing is for first-order algorithms.*leave out"),
        ({"checkpointing": True, "algorithm": "imaml"}, "checkpointing is for first-order algorithms.*imaml"),
        ({"pull": 2.0}, "pull belongs to algorithm imaml, and this is fomaml"),
        ({"rates_lr": 0.1}, "rates_lr belongs to inner_rates learned"),
        ({"method": "bitfit"}, "unknown option 'method'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PrimeConfig.from_values({**GIVEN, **given})


def test_allowed_together() -> None:
    for more in ({"bf16": True}, {"checkpointing": True, "algorithm": "reptile"}, {"pull": 2.0, "algorithm": "imaml"}):
        assert PrimeConfig.from_values({**GIVEN, **more})
