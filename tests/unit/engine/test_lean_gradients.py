"""Lean gradients have the bits of dense ones, and what could silently be wrong with them is right or refused."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from subnetune import Bernoulli, HoldUnselected, MaskGradient, Random, Recipe, Scope, Top, Tuning
from subnetune.core.errors import LifeCycleError, UsageError
from subnetune.update.recall import Recall
from tiny import batch, bits, differing, tiny
from tower import TOWER, data, tower, tuned


def train(
    tuning: Tuning,
    optimizer: torch.optim.Optimizer,
    steps: int = 3,
    *,
    micro: int = 1,
    clip: float | None = None,
    forget: Callable[[], None] | None = None,
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The weights after some steps, and the norms."""
    norms = []
    for index in range(steps):
        for part in range(micro):
            tuning.forward(data(10 * index + part)).loss.backward()
        if clip is not None:
            norms.append(tuning.clip(clip))
        assert tuning.step(optimizer)
        (forget or optimizer.zero_grad)()
    return bits(tuning.model), norms


def placed(tuning: Tuning) -> list[str]:
    """The names of what has a mask that leaves entries out."""
    return [name for name, mask in (tuning.mask or {}).items() if not bool(mask.all())]


def gradients_of(tuning: Tuning) -> dict[str, Tensor]:
    return {name: p.grad for name, p in tuning.model.named_parameters() if p.grad is not None}


# -- the same bits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["packed", "fused"])
@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("micro", [1, 3])
def test_training_has_the_bits_of_dense_gradients(engine: str, clip: float | None, micro: int) -> None:
    ends = []
    for gradients in ("dense", "lean"):
        tuning, optimizer = tuned(gradients, engine=engine)
        ends.append(train(tuning, optimizer, micro=micro, clip=clip, forget=tuning.model.zero_grad))
    assert differing(ends[0][0], ends[1][0]) == []
    assert ends[0][1] == ends[1][1]


def test_norms_and_weights_are_those_of_the_reference_engine() -> None:
    wanted = train(*tuned("dense", engine="reference"), clip=0.1)
    found = train(*tuned("lean"), clip=0.1)
    assert found[1] == wanted[1]
    assert differing(found[0], wanted[0]) == []


@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.RMSprop])
def test_other_optimizers_and_rescaled_gradients(cls: type[torch.optim.Optimizer]) -> None:
    recipe = replace(TOWER, update=(MaskGradient(rescale=True), HoldUnselected()))
    ends = []
    for gradients in ("dense", "lean"):
        ends.append(train(*tuned(gradients, recipe=recipe, cls=cls, lr=1e-3, momentum=0.9), clip=1.0)[0])
    assert differing(ends[0], ends[1]) == []


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool) -> None:
    ends = [train(*tuned(g, tower(checkpointing=reentrant)), steps=2, micro=2)[0] for g in ("dense", "lean")]
    assert differing(ends[0], ends[1]) == []


@pytest.mark.parametrize("checkpointing", [None, True, False])
def test_tied_weights(checkpointing: bool | None) -> None:
    models = [tower(tied=True, checkpointing=checkpointing) for _ in range(2)]
    ends = [train(*tuned(g, model), steps=2)[0] for g, model in zip(("dense", "lean"), models, strict=True)]
    assert differing(ends[0], ends[1]) == []


@pytest.mark.slow
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_transformers_model_with_tied_embeddings_and_checkpointing(reentrant: bool) -> None:
    recipe = Recipe(Scope(("*",)), Top(Random(), 0.25), (MaskGradient(), HoldUnselected()))
    ends = []
    for gradients in ("dense", "lean"):
        torch.manual_seed(0)
        model = tiny("gpt2", "CausalLM", n_layer=2)
        assert model.lm_head.weight is model.transformer.wte.weight
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        tuning = Tuning(recipe, model)
        optimizer = tuning.optimizer(lr=1e-2, engine="packed", gradients=gradients)
        for index in range(3):
            tuning.forward(batch("CausalLM", seed=index)).loss.backward()
            tuning.clip(0.1)
            tuning.step(optimizer)
            model.zero_grad()
        ends.append(bits(model))
    assert differing(ends[0], ends[1]) == []


def test_low_precision_and_masters() -> None:
    ends = []
    for gradients in ("dense", "lean"):
        model = tower().to(torch.bfloat16)
        ends.append(train(*tuned(gradients, model, precision="master"), clip=0.1, micro=2)[0])
    assert differing(ends[0], ends[1]) == []


def test_a_sparse_gradient_is_taken() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(20, 3, sparse=True)
            self.out = nn.Linear(3, 1)

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(self.words(ids)).sum()

    recipe = Recipe(Scope(("words.weight",), ("out.*",)), Top(Random(), 0.25), (MaskGradient(), HoldUnselected()))
    ends = []
    for gradients in ("dense", "lean"):
        torch.manual_seed(0)
        model = Words()
        tuning = Tuning(recipe, model)
        optimizer = tuning.optimizer(torch.optim.SGD, lr=0.1, engine="packed", gradients=gradients)
        for _ in range(2):
            model(torch.tensor([1, 2, 2, 7])).backward()
            model(torch.tensor([1, 3])).backward()
            tuning.step(optimizer)
            optimizer.zero_grad()
        ends.append(bits(model))
    assert differing(ends[0], ends[1]) == []


@pytest.mark.slow
def test_a_compiled_model() -> None:
    ends = []
    for gradients in ("dense", "lean"):
        tuning, optimizer = tuned(gradients)
        compiled = torch.compile(tuning.model, backend="aot_eager")
        for index in range(2):
            tuning.forward(data(index), model=compiled).loss.backward()
            tuning.clip(0.1)
            assert tuning.step(optimizer)
            optimizer.zero_grad()
        ends.append(bits(tuning.model))
    assert differing(ends[0], ends[1]) == []


@pytest.mark.slow
def test_accelerate_in_one_process() -> None:
    accelerate = pytest.importorskip("accelerate")
    ends = []
    for gradients in ("dense", "lean"):
        tuning, optimizer = tuned(gradients)
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + step))
        model, prepared, scheduled = accelerator.prepare(tuning.model, optimizer, schedule)
        happened = []
        for index in range(6):
            with accelerator.accumulate(model):
                accelerator.backward(tuning.forward(data(index), model=model).loss)
                if accelerator.sync_gradients:
                    tuning.clip(0.1)
                happened.append(tuning.step(prepared))
                scheduled.step()
                prepared.zero_grad()
        assert happened == [False, True] * 3
        ends.append(bits(tuning.model))
    assert differing(ends[0], ends[1]) == []


# -- memory ---------------------------------------------------------------------------------------------------------


def test_no_two_dense_gradients_live_at_once() -> None:
    tuning, _optimizer = tuned("lean")
    parameters = dict(tuning.model.named_parameters())
    names, alive = placed(tuning), []
    assert len(names) == 12
    for name in names:  # before autograd accumulates, and after the engine has taken the gradient
        parameters[name].register_hook(lambda grad: alive.append(sum(parameters[n].grad is not None for n in names)))
        parameters[name].register_post_accumulate_grad_hook(lambda p: alive.append(int(p.grad is not None)))
    tuning.forward(data()).loss.backward()
    assert len(alive) == 2 * len(names)
    assert set(alive) == {0}
    assert set(gradients_of(tuning)) == {"head.weight", "head.bias"}


def test_leaves_take_no_memory_beside_the_packed_gradients() -> None:
    tuning, optimizer = tuned("lean")
    leaves = optimizer.lean.leaves
    assert set(leaves) == set(placed(tuning))
    assert all(leaf.untyped_storage().nbytes() == leaf.element_size() for leaf in leaves.values())
    tuning.forward(data()).loss.backward()
    counts = {name: int(mask.sum()) for name, mask in tuning.mask.items()}
    assert {name: leaf.grad.numel() for name, leaf in leaves.items()} == {name: counts[name] for name in leaves}


# -- what could silently go wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["selected", "whole"])
def test_a_scaler_sees_an_overflow_and_the_next_step_is_clean(where: str) -> None:
    ends = []
    for gradients in ("dense", "lean"):
        tuning, optimizer = tuned(gradients)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        name = placed(tuning)[0] if where == "selected" else "head.weight"
        parameter = dict(tuning.model.named_parameters())[name]
        happened = []
        for index in range(3):
            loss = tuning.forward(data(index)).loss
            if index == 1:
                chosen = tuning.mask[name].expand(parameter.shape) if where == "selected" else parameter != 0
                loss = loss + (parameter * torch.where(chosen, float("inf"), 0.0)).sum()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            tuning.clip(0.1)
            happened.append(tuning.step(optimizer, scaler=scaler))
            tuning.model.zero_grad()  # as a Trainer does
        assert happened == [True, False, True]
        assert scaler.get_scale() == 2.0
        ends.append(bits(tuning.model))
    assert differing(ends[0], ends[1]) == []


def test_clipping_of_scaled_gradients_is_noticed() -> None:
    tuning, optimizer = tuned("lean")
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(tuning.forward(data()).loss).backward()
    tuning.clip(0.1)
    with pytest.raises(UsageError, match="still scaled"):
        tuning.step(optimizer, scaler=scaler)


@pytest.mark.parametrize("to_none", [True, False])
def test_a_backward_pass_is_discarded_by_the_optimizer(to_none: bool) -> None:
    ends = []
    for gradients in ("dense", "lean"):
        tuning, optimizer = tuned(gradients)
        tuning.forward(data(5)).loss.backward()
        tuning.clip(1e-3)
        optimizer.zero_grad(set_to_none=to_none)
        ends.append(train(tuning, optimizer, steps=1)[0])
    assert differing(ends[0], ends[1]) == []


def test_gradients_set_by_hand_are_taken() -> None:
    ends = []
    for gradients in ("dense", "lean"):
        tuning, optimizer = tuned(gradients)
        random = torch.Generator().manual_seed(3)
        for parameter in tuning.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn(parameter.shape, generator=random)
        tuning.clip(0.1)
        tuning.step(optimizer)
        ends.append(bits(tuning.model))
        assert gradients == "dense" or set(gradients_of(tuning)).isdisjoint(placed(tuning))
    assert differing(ends[0], ends[1]) == []


def test_tensors_without_gradient_are_left_alone() -> None:
    ends = []
    for gradients in ("dense", "lean"):
        tuning, optimizer = tuned(gradients)
        train(tuning, optimizer, steps=1)
        tuning.model.head(torch.ones(1, 24)).sum().backward()  # the layers take no part, and do not decay
        before = bits(tuning.model)
        assert tuning.step(optimizer)
        assert set(differing(before, bits(tuning.model))) == {"head.weight", "head.bias"}
        ends.append(bits(tuning.model))
    assert differing(ends[0], ends[1]) == []


def test_an_exchanged_parameter_is_noticed() -> None:
    tuning, optimizer = tuned("lean")
    layer = tuning.model.layers[0].down
    layer.weight = nn.Parameter(layer.weight.detach().clone())
    tuning.forward(data()).loss.backward()
    with pytest.raises(LifeCycleError, match=r"layers.0.down.weight' was sharded or exchanged"):
        tuning.step(optimizer)


def test_closing_gives_dense_gradients_back() -> None:
    tuning, optimizer = tuned("lean")
    train(tuning, optimizer, steps=1)
    names = placed(tuning)
    tuning.close()
    for parameter in tuning.model.parameters():
        parameter.requires_grad_(True)
    tuning.model(**data()).loss.backward()
    assert set(names) <= set(gradients_of(tuning))


def test_a_dropped_run_leaves_no_hooks_and_is_not_kept_by_its_model() -> None:
    model = tower()
    tuning, optimizer = tuned("lean", model)
    names = placed(tuning)
    del tuning, optimizer
    gc.collect()
    model(**data()).loss.backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if name in names)
    Tuning(TOWER, model).close()


def test_copies_of_the_model_have_gradients_of_their_own() -> None:
    tuning, _ = tuned("lean")
    other = copy.deepcopy(tuning.model)
    other(**data()).loss.backward()
    assert set(placed(tuning)) <= {name for name, p in other.named_parameters() if p.grad is not None}


def test_states_are_those_of_dense_gradients_and_go_on_with_either() -> None:
    wanted = train(*tuned("dense"), steps=4)[0]
    tuning, optimizer = tuned("lean")
    train(tuning, optimizer, steps=2)
    random, weights = torch.get_rng_state(), copy.deepcopy(tuning.model.state_dict())
    saved, state = copy.deepcopy(tuning.state_dict()), copy.deepcopy(optimizer.state_dict())
    for gradients in ("dense", "lean"):
        again = Tuning(TOWER, tower(), steps=9, forward=lambda model, batch: model(**batch))
        again.load_state_dict(saved)
        again.model.load_state_dict(weights)
        resumed = again.optimizer(engine="packed", gradients=gradients, lr=1.0)
        resumed.load_state_dict(state)
        torch.set_rng_state(random)
        for index in (2, 3):
            again.forward(data(10 * index)).loss.backward()
            again.step(resumed)
            resumed.zero_grad()
        assert differing(bits(again.model), wanted) == []


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "arguments", "words"),
    [
        (TOWER, {"gradients": "sparse"}, "must be one of"),
        (Recipe(), {}, "no selector"),
        (replace(TOWER, selector=Bernoulli(0.25)), {}, "mask of Bernoulli changes"),
        (replace(TOWER, update=(MaskGradient(),)), {}, "without HoldUnselected"),
        (
            replace(TOWER, update=(MaskGradient(clip_first=True), HoldUnselected())),
            {},
            "clips the dense gradient",
        ),
        (replace(TOWER, update=(MaskGradient(), HoldUnselected(), Recall(t0=2))), {}, "Recall"),
        (TOWER, {"engine": "reference"}, "reference: asked for"),
        (TOWER, {"cls": torch.optim.Adafactor}, "Adafactor"),
    ],
    ids=["name", "full", "changing", "leaking", "clip-first", "other-rule", "reference", "optimizer"],
)
@pytest.mark.parametrize("gradients", ["lean", "selected"])
def test_what_cannot_serve_is_refused_with_the_reason(
    gradients: str, recipe: Recipe, arguments: dict[str, Any], words: str
) -> None:
    tuning = Tuning(recipe, tower(), steps=9)
    arguments = {"gradients": gradients, "cls": torch.optim.AdamW, **arguments}
    with pytest.raises(UsageError, match=words):
        tuning.optimizer(arguments.pop("cls"), lr=1e-3, **arguments)
    tuning.optimizer(lr=1e-3)  # a refusal leaves nothing behind


def test_the_engine_says_so() -> None:
    tuning, _ = tuned("lean")
    assert tuning.engine == "packed: asked for; lean gradients"
