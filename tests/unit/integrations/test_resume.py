"""A Trainer's run that was stopped and resumed is the run that was never stopped, or an error."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from subnetune.core.errors import CheckpointError
from subnetune.core.recipe import Recipe
from subnetune.integrations.checkpoint_folder import KEY, OPTIONS, folder_to_resume, required_files
from subnetune.integrations.run_options import check_options
from subnetune.integrations.transformers import TunedTrainer
from subnetune.select.bernoulli import Bernoulli
from subnetune.select.top import Top
from tiny import bits, differing
from trainers import CLASSIFIER, EXACT, WHOLE, CountedScore, StopAt, Wandering, examples, small, stock, tuned

STATIC = Recipe(scope=CLASSIFIER, selector=Top(CountedScore(), keep=0.3), update=EXACT)
DYNAMIC = Recipe(scope=CLASSIFIER, selector=Bernoulli(0.4), update=EXACT)
STATEFUL = Recipe(scope=CLASSIFIER, selector=Wandering(), update=EXACT)


def stopped(folder: Path, recipe: Recipe, at: int, **changes: Any) -> Path:
    """Train until step `at`, save, stop; return the checkpoint."""
    tuned(folder, recipe, callbacks=[StopAt(at)], **changes).train()
    return folder / f"checkpoint-{at}"


def same_values(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_values(a[key], b[key]) for key in a)
    return bool(a == b)


@pytest.fixture(scope="module")
def one_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that tests read and leave as it is."""
    return stopped(tmp_path_factory.mktemp("one"), STATIC, 2)


RECIPES = {"whole": WHOLE, "static": STATIC, "dynamic": DYNAMIC, "stateful": STATEFUL}
RUNS = (("adamw_torch", 5, 1), ("adamw_torch_fused", 7, 2), ("adamw_torch", 7, 2), ("adamw_torch_fused", 5, 1))
QUICK = {("static", 7, "adamw_torch_fused"), ("dynamic", 5, "adamw_torch"), ("stateful", 7, "adamw_torch_fused")}


@pytest.mark.parametrize(
    ("recipe", "optim", "at", "accumulation"),
    [
        pytest.param(
            recipe,
            optim,
            at,
            accumulation,
            marks=() if (name, at, optim) in QUICK else pytest.mark.slow,
            id=f"{name}-{optim}-{at}-{accumulation}",
        )
        for name, recipe in RECIPES.items()
        for optim, at, accumulation in RUNS
    ],
)
def test_stop_and_resume_is_the_run_that_was_never_stopped(
    recipe: Recipe, at: int, accumulation: int, optim: str, tmp_path: Path
) -> None:
    changes = {"optim": optim, "gradient_accumulation_steps": accumulation}  # 40 rows: an epoch of 10 or 5 steps
    CountedScore.calls.clear()
    whole_run = tuned(tmp_path / "one", recipe, **changes)
    whole_run.train()
    checkpoint = stopped(tmp_path / "two", recipe, at, **changes)
    scored = len(CountedScore.calls)
    torch.manual_seed(999)  # another process has another random state
    second = tuned(tmp_path / "two", recipe, **changes)
    second.train(resume_from_checkpoint=str(checkpoint))
    assert len(CountedScore.calls) == scored == (2 if recipe is STATIC else 0)
    assert differing(bits(whole_run.model), bits(second.model)) == []
    assert second.tuning.index == 10
    assert same_values(whole_run.tuning.state_dict(), second.tuning.state_dict())
    mine, theirs = second.optimizer.state_dict(), whole_run.optimizer.state_dict()
    assert same_values(mine["state"], theirs["state"])


@pytest.mark.parametrize("at", [3, *(pytest.param(at, marks=pytest.mark.slow) for at in (1, 9))])
def test_any_step_will_do_and_true_finds_the_newest(at: int, tmp_path: Path) -> None:
    whole_run = tuned(tmp_path / "one", STATEFUL)
    whole_run.train()
    stopped(tmp_path / "two", STATEFUL, at)
    second = tuned(tmp_path / "two", STATEFUL)
    second.train(resume_from_checkpoint=True)
    assert differing(bits(whole_run.model), bits(second.model)) == []


def test_the_state_rides_safely_in_the_optimizer(tmp_path: Path) -> None:
    checkpoint = stopped(tmp_path, STATEFUL, 5)
    saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    selector = saved[KEY]["selector"]
    assert selector["big"].dtype == torch.int64
    assert int(selector["big"]) == 300_000_006  # a cast to float32 would round it
    assert all(mask.dtype == torch.bool for mask in selector["bits"].values())
    trainer = tuned(tmp_path, STATEFUL)
    optimizer = trainer.create_optimizer()
    optimizer.load_state_dict(saved)
    assert trainer.tuning.index == 5
    assert same_values(trainer.tuning.state_dict()["selector"], selector)
    assert KEY in saved  # the caller's dict stays as it was
    assert saved[OPTIONS]["max_grad_norm"] == 0.5  # what was asked for, not the 0 that the Trainer reads meanwhile
    plain = {key: value for key, value in saved.items() if key not in (KEY, OPTIONS)}
    optimizer.load_state_dict(plain)
    assert trainer.tuning.index == 5
    assert KEY not in optimizer.param_groups[0]


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    checkpoint = stopped(tmp_path, STATIC, 2)
    (checkpoint / name).unlink()
    trainer = tuned(tmp_path, STATIC)
    before = bits(trainer.model)
    with pytest.raises(CheckpointError, match=name):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    with pytest.raises(CheckpointError, match=f"checkpoint-2 lacks {name}"):
        trainer.train(resume_from_checkpoint=True)
    assert differing(before, bits(trainer.model)) == []
    assert trainer.args.max_grad_norm == 0.5


def test_an_incomplete_newest_checkpoint_is_passed_over_and_said(tmp_path: Path) -> None:
    stopped(tmp_path, STATIC, 2)
    (tmp_path / "checkpoint-10").mkdir()
    needed = required_files(1, 0, scaled=False)
    with pytest.warns(UserWarning, match="checkpoint-10 incomplete"):
        assert folder_to_resume(True, str(tmp_path), needed).name == "checkpoint-2"
    with pytest.raises(CheckpointError, match="no checkpoint-"):
        folder_to_resume(True, str(tmp_path / "nothing"), needed)
    with pytest.raises(CheckpointError, match="the folder itself is missing"):
        folder_to_resume(str(tmp_path / "checkpoint-3"), None, needed)
    assert required_files(2, 1, scaled=True)[3:] == ("rng_state_1.pth", "scaler.pt")


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_foreign_damaged_or_malicious_optimizer_state_is_refused(tmp_path: Path) -> None:
    checkpoint = stopped(tmp_path, STATIC, 2)
    good = (checkpoint / "optimizer.pt").read_bytes()
    canary = tmp_path / "canary"

    def resume() -> None:
        trainer = tuned(tmp_path, STATIC)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint))
        finally:
            trainer.tuning.close()

    for bad in (good[: len(good) // 2], b"", pickle.dumps(Canary(canary))):
        (checkpoint / "optimizer.pt").write_bytes(bad)
        with pytest.raises(CheckpointError, match="cannot read .*optimizer.pt"):
            resume()
    torch.save({"state": Canary(canary)}, checkpoint / "optimizer.pt")
    with pytest.raises(CheckpointError, match="cannot read"):
        resume()
    assert not canary.exists()
    stock(tmp_path / "stock", callbacks=[StopAt(2)]).train()
    (checkpoint / "optimizer.pt").write_bytes((tmp_path / "stock" / "checkpoint-2" / "optimizer.pt").read_bytes())
    with pytest.raises(CheckpointError, match="holds no tuning state"):
        resume()


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"seed": 4}, "seed"), ({"max_steps": 11}, "steps"), ({"recipe": DYNAMIC}, "recipe"), ({"model": 1}, "base")],
)
def test_a_checkpoint_of_another_run_is_refused(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    checkpoint = stopped(tmp_path, STATIC, 2)
    recipe = changes.pop("recipe", STATIC)
    if "model" in changes:
        changes["model"] = small()
        with torch.no_grad():
            changes["model"].bert.pooler.dense.weight[0, 0] += 1.0
    trainer: TunedTrainer = tuned(tmp_path, recipe, **changes)
    with pytest.raises(CheckpointError, match=named):
        trainer.train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"learning_rate": 2e-3}, r"learning_rate=0.001, now 0.002"),
        ({"weight_decay": 0.0}, r"weight_decay=0.1, now 0.0"),
        ({"adam_beta2": 0.98}, r"adam_beta2=0.999, now 0.98"),
        ({"optim": "sgd"}, r"optim='adamw_torch', now 'sgd'"),
        ({"lr_scheduler_type": "cosine"}, r"lr_scheduler_type='linear', now 'cosine'"),
        ({"warmup_steps": 3}, r"warmup_steps=0, now 3"),
        ({"per_device_train_batch_size": 2}, r"per_device_train_batch_size=4, now 2"),
        ({"gradient_accumulation_steps": 2}, r"gradient_accumulation_steps=1, now 2"),
        ({"data_seed": 8}, r"data_seed=None, now 8"),
        ({"max_grad_norm": 0.25}, r"max_grad_norm=0.5, now 0.25"),
        ({"max_grad_norm": 0.0}, r"max_grad_norm=0.5, now 0.0"),
        ({"bf16": True}, r"bf16=False, now True"),
        ({"label_smoothing_factor": 0.1}, r"label_smoothing_factor=0.0, now 0.1"),
        ({"dataloader_drop_last": True}, r"dataloader_drop_last=False, now True"),
        ({"train_dataset": examples(36)}, r"training examples=40, now 36"),
        ({"learning_rate": 2e-3, "adam_beta1": 0.8}, r"learning_rate=0.001, now 0.002; adam_beta1=0.9, now 0.8"),
    ],
    ids=lambda value: "+".join(f"{k}" for k in value) if isinstance(value, dict) else "",
)
def test_options_that_changed_are_all_named_before_anything_is_loaded(
    changes: dict[str, Any], told: str, one_checkpoint: Path, tmp_path: Path
) -> None:
    trainer = tuned(tmp_path, STATIC, **changes)
    before = bits(trainer.model)
    with pytest.raises(CheckpointError, match=f"the run has {told}. Set them as they were"):
        trainer.train(resume_from_checkpoint=str(one_checkpoint))
    assert trainer.tuning.index == 0
    assert differing(before, bits(trainer.model)) == []


def test_an_optimizer_of_the_callers_own_with_other_settings_is_refused(tmp_path: Path) -> None:
    def trainer(rate: float, at: int) -> TunedTrainer:
        model = small()
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
        return tuned(tmp_path, STATIC, model=model, optimizers=(optimizer, None), callbacks=[StopAt(at)])

    trainer(1e-3, 2).train()
    with pytest.raises(CheckpointError, match=r"optimizer given='AdamW\(.*lr=0.001.*now 'AdamW\(.*lr=0.002"):
        trainer(2e-3, -1).train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match=r"optimizer given='AdamW\(.*now None"):
        tuned(tmp_path, STATIC).train(resume_from_checkpoint=True)
    assert trainer(1e-3, -1).train(resume_from_checkpoint=True).global_step == 10


def test_a_checkpoint_that_does_not_tell_its_options_is_refused(tmp_path: Path) -> None:
    checkpoint = stopped(tmp_path, STATIC, 2)
    saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    del saved[OPTIONS]
    torch.save(saved, checkpoint / "optimizer.pt")
    with pytest.raises(CheckpointError, match="does not hold the options of its run"):
        tuned(tmp_path, STATIC).train(resume_from_checkpoint=True)


def test_an_option_that_one_side_lacks_is_named() -> None:
    check_options({"a": 1}, {"a": 1})
    with pytest.raises(CheckpointError, match="the run has a=1, now None; no b, now 2"):
        check_options({"a": 1}, {"b": 2})


def test_a_new_head_need_not_be_drawn_again_to_resume(tmp_path: Path) -> None:
    """Names given as `new` are not part of the base: their anchors come from the checkpoint."""
    new = ("classifier.weight", "classifier.bias")

    def trainer(folder: str, head: float, at: int = -1) -> TunedTrainer:
        model = small()
        with torch.no_grad():
            model.classifier.weight.mul_(head)
        return tuned(tmp_path / folder, STATIC, model=model, new=new, callbacks=[StopAt(at)])

    whole_run = trainer("one", 1.0)
    whole_run.train()
    trainer("two", 1.0, at=4).train()
    second = trainer("two", -3.0)
    second.train(resume_from_checkpoint=True)
    assert differing(bits(whole_run.model), bits(second.model)) == []
    assert same_values(whole_run.tuning.state_dict(), second.tuning.state_dict())
