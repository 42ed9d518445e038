"""Law 1: what a mask leaves out keeps its bits, whatever optimizer, precision, wrapper or schedule carries the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conformance.table import MODELS, still, train
from subnetune import Bernoulli, HoldUnselected, MaskGradient, Random, Recipe, Scope, Top, Tuning
from subnetune.core.errors import UsageError
from tiny import batch, batches, bits, differing, tiny

STATIC = Recipe(Scope(selected=("*",)), Top(Random(), 0.3), (MaskGradient(), HoldUnselected()))
HELD = Recipe(Scope(selected=("*",)), Top(Random(), 0.3), (HoldUnselected(),))  # the moments see the dense gradient
DYNAMIC = Recipe(Scope(selected=("*",)), Bernoulli(0.3), (MaskGradient(rescale=True), HoldUnselected()))
RECIPES = {"static": STATIC, "held": HELD, "dynamic": DYNAMIC}

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "adamw": (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
    "adamw-foreach": (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1, "foreach": True}),
    "adamw-fused": (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1, "fused": True}),
    "adam-l2": (torch.optim.Adam, {"lr": 1e-2, "weight_decay": 0.1}),
    "sgd-momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "adafactor": (torch.optim.Adafactor, {"lr": 1e-2, "weight_decay": 0.1}),
}


def held_across_steps(model: nn.Module, tuning: Tuning, step: Callable[[int], None], steps: int = 3) -> None:
    """Assert, step by step, that unselected entries keep their bits and that some selected ones move."""
    for index in range(steps):
        live = tuning.live()
        assert live.mask is not None
        mask = {name: live.mask[name].expand(p.shape).clone() for name, p in live.params.items()}
        before = {name: p.detach().clone() for name, p in live.params.items()}
        step(index)
        moved = 0
        for name, p in live.params.items():
            kept = [t.detach()[~mask[name]].view(torch.uint8) for t in (before[name], p)]
            assert torch.equal(*kept), f"{name} leaked in step {index}"
            moved += int((before[name] != p).sum())
        assert moved > 0


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_unselected_entries_keep_their_bits(kind: str, dtype: torch.dtype, recipe: Recipe) -> None:
    model = tiny("bert", num_hidden_layers=1).to(dtype)
    tuning = Tuning(recipe, model)
    cls, hyper = OPTIMIZERS[kind]
    optimizer = tuning.optimizer(cls, **hyper)
    data = batches(3)
    held_across_steps(model, tuning, lambda i: train(tuning, optimizer, [data[i]]))
    assert tuning.index == 3


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_tied_weights_are_one_tensor_with_one_mask(kind: str) -> None:
    model = tiny(kind, "CausalLM", tie_word_embeddings=True)
    tuning = Tuning(STATIC, model)
    optimizer = tuning.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
    data = batches(3, "CausalLM")
    held_across_steps(model, tuning, lambda i: train(tuning, optimizer, [data[i]]))
    ends = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert ends[0] is ends[1]
    assert ends[0].shape in [p.shape for p in tuning.selected().values()]


def test_accumulation_holds_and_counts_one_step() -> None:
    model = tiny("bert", num_hidden_layers=1)
    tuning = Tuning(STATIC, model)
    optimizer = tuning.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)

    def step(index: int) -> None:
        for each in batches(2, seed=index):
            (tuning.forward(each).loss / 2).backward()
        tuning.clip(1.0)
        assert tuning.step(optimizer)
        optimizer.zero_grad()
        assert tuning.index == index + 1

    held_across_steps(model, tuning, step)


# -- an overflow is no step -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["selected", "whole"])
@pytest.mark.parametrize("clip", [False, True], ids=["", "clip"])
@pytest.mark.parametrize("fused", [False, True], ids=["loop", "fused"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_an_overflow_advances_nothing(recipe: Recipe, fused: bool, clip: bool, where: str) -> None:
    recipe = Recipe(Scope(("*",), whole=("@head",)), recipe.selector, recipe.update)
    model = still(tiny("bert", num_hidden_layers=1))
    tuning = Tuning(recipe, model)
    optimizer = tuning.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    happened = []
    for index, each in enumerate(batches(4)):
        scaler.scale(tuning.forward(each).loss).backward()
        if index in (0, 2):
            name = "classifier.weight" if where == "whole" else next(iter(tuning.selected()))
            model.get_parameter(name).grad.view(-1)[0] = float("inf")
        if clip:
            scaler.unscale_(optimizer)
            tuning.clip(1.0)
        before, counted = bits(model), tuning.index
        mask = {n: tuning.live().mask[n].clone() for n in tuning.selected()}
        scale = scaler.get_scale()
        happened.append(tuning.step(optimizer, scaler=scaler))
        optimizer.zero_grad()
        if happened[-1]:
            assert tuning.index == counted + 1
            assert differing(before, bits(model))
        else:
            assert tuning.index == counted
            assert differing(before, bits(model)) == []
            assert all(torch.equal(mask[n], tuning.live().mask[n]) for n in mask)
            assert scaler.get_scale() == scale / 2
    assert happened == [False, True, False, True]


@pytest.mark.parametrize("fused", [False, True], ids=["loop", "fused"])
def test_a_scaled_run_is_the_unscaled_one(fused: bool) -> None:
    """Scaling by powers of two changes no bit, so a rule that saw scaled gradients would show."""
    ends = []
    for scaled in (False, True):
        model = still(tiny("bert", num_hidden_layers=1))
        tuning = Tuning(STATIC, model)
        optimizer = tuning.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.1, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=scaled)
        for each in batches(3):
            scaler.scale(tuning.forward(each).loss).backward()
            assert tuning.step(optimizer, scaler=scaler)
            optimizer.zero_grad()
        ends.append(bits(model))
    assert differing(*ends) == []


def test_a_scaler_that_hides_the_scale_is_an_error_before_the_step() -> None:
    """Torch's fused optimizers unscale inside their kernel, where no rule can look."""
    model = tiny("bert", num_hidden_layers=1)
    tuning = Tuning(STATIC, model)
    optimizer = tuning.optimizer(torch.optim.AdamW, engine="reference", lr=1e-2, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    scaler.scale(tuning.forward(batch()).loss).backward()
    before = bits(model)
    with pytest.raises(UsageError, match=r"unscale_\(optimizer\) first"):
        scaler.step(optimizer)
    assert differing(before, bits(model)) == []
    assert tuning.index == 0


def test_a_packed_step_leaves_unscaling_to_the_scaler() -> None:
    """The scaler's own call of the step: nothing is hidden from an optimizer that is not torch's own fused one."""
    ends = []
    for scaled in (False, True):
        model = still(tiny("bert", num_hidden_layers=1))
        tuning = Tuning(STATIC, model)
        optimizer = tuning.optimizer(torch.optim.AdamW, engine="packed", lr=1e-2, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=scaled)
        for index, each in enumerate(batches(3)):
            scaler.scale(tuning.forward(each).loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            assert tuning.index == index + 1
        ends.append(bits(model))
    assert differing(*ends) == []


# -- wrappers ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [STATIC, DYNAMIC], ids=["static", "dynamic"])
def test_a_compiled_model_holds_and_counts(recipe: Recipe) -> None:
    model = still(tiny("bert", num_hidden_layers=1))
    tuning = Tuning(recipe, model)
    optimizer = tuning.optimizer(torch.optim.AdamW, lr=1e-3, weight_decay=0.1)
    compiled = torch.compile(model, backend="aot_eager")
    data = batches(3)
    held_across_steps(model, tuning, lambda i: train(tuning, optimizer, [data[i]], model=compiled))
    plain = still(tiny("bert", num_hidden_layers=1))
    other = Tuning(recipe, plain)
    train(other, other.optimizer(torch.optim.AdamW, lr=1e-3, weight_decay=0.1), data)
    for name, p in bits(model).items():
        torch.testing.assert_close(p, bits(plain)[name], rtol=0.0, atol=6.3e-3)  # Adam turns rounding into lr a step
    assert list(tuning.selected()) == list(other.selected())
    assert tuning.index == other.index == 3


# -- randomness -------------------------------------------------------------------------------------------------------


def order_and_dropout(recipe: Recipe, loader: Any, model: nn.Module, own: bool) -> list[Tensor]:
    torch.manual_seed(77)
    tuning = Tuning(recipe, model, batches=loader if own else list(loader), seed=3)
    torch.manual_seed(78)
    tuning.start()
    seen = []
    for _ in range(2):
        for each in loader:
            seen += [each["input_ids"], tuning.forward(each).logits.detach()]
    return seen


@pytest.mark.parametrize("kind", ["global", "generator", "accelerate"])
def test_scoring_changes_neither_data_order_nor_dropout(kind: str) -> None:
    from subnetune.methods import child_tuning_d, full

    examples = [{k: v[0] for k, v in batch(seed=i, rows=2).items()} for i in range(12)]
    runs = []
    for recipe in (full(), child_tuning_d(keep=0.3), child_tuning_d(keep=0.3, release=True)):
        generator = torch.Generator().manual_seed(5) if kind == "generator" else None
        loader: Any = torch.utils.data.DataLoader(examples, batch_size=4, shuffle=True, generator=generator)
        if kind == "accelerate":
            from accelerate import Accelerator
            from accelerate.utils import DataLoaderConfiguration

            configuration = DataLoaderConfiguration(use_seedable_sampler=True, data_seed=6)
            loader = Accelerator(cpu=True, dataloader_config=configuration).prepare(loader)
        model = MODELS["bert"][1]()
        runs.append(order_and_dropout(recipe, loader, model, own=True))
    assert len(runs[0]) == 12
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))
    assert not torch.equal(runs[0][0], runs[0][6]), "the second epoch has another order"


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_masks_take_no_random_numbers(recipe: Recipe) -> None:
    torch.manual_seed(1)
    model = tiny("bert", num_hidden_layers=1)
    tuning = Tuning(recipe, model)
    state = torch.get_rng_state()
    tuning.start()
    for _ in range(3):
        live = tuning.live()
        assert all(live.mask[name].any() for name in live.params if live.params[name].numel() > 30)
        tuning.advance()
    assert torch.equal(torch.get_rng_state(), state)
