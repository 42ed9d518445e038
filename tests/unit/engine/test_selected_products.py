"""Selected weight gradients against dense ones: equal to rounding, repeatable, and only where they are right."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from subnetune import Magnitude, Random, Top, Tuning
from subnetune.core.errors import UsageError
from subnetune.core.masks import pack
from subnetune.engine.kernels.products import SampledProduct, entries_product
from subnetune.engine.place import Place
from subnetune.engine.products import product_at
from tiny import bits, differing
from tower import TOWER, data, tower, tuned

SPARSE = replace(TOWER, selector=Top(Random(), 0.08))
ROWS, COLUMNS = (replace(TOWER, selector=Top(Random(), 0.3, unit=unit)) for unit in ("row", "column"))


def leaves(tuning: Tuning, optimizer: Any) -> dict[str, Tensor]:
    """The packed gradient of each tensor with a mask, in any mode."""
    found = {}
    for name, mask in tuning.mask.items():
        parameter = dict(tuning.model.named_parameters())[name]
        if optimizer.lean is not None and name in optimizer.lean.leaves:
            found[name] = optimizer.lean.gradient(name)
        elif parameter.grad is not None:
            found[name] = parameter.grad[mask.expand(parameter.shape)]
    return found


def gradients_of(mode: str, recipe: Any = SPARSE, micro: int = 1, **options: Any) -> dict[str, Tensor]:
    tuning, optimizer = tuned(mode, tower(**options), recipe=recipe)
    for index in range(micro):
        tuning.forward(data(index)).loss.backward()
    return leaves(tuning, optimizer)


def swapped(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if type(module).__name__ == "SelectedLinear"]


def dense_product_is_never_made(model: nn.Module) -> list[str]:
    """Note the weights that autograd accumulates a dense gradient for."""
    seen: list[str] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda grad, name=name: seen.append(name))
    return seen


@pytest.mark.parametrize("shape", [(5, 7), (48, 24), (64, 130)])
@pytest.mark.parametrize("keep", [0.001, 0.03, 0.1, 0.9])
def test_products_of_entries(shape: tuple[int, int], keep: float) -> None:
    random = torch.Generator().manual_seed(0)
    rows, columns = shape
    mask = torch.rand(shape, generator=random) < keep
    mask[2, 3] = True
    gradient, inputs = torch.randn(11, rows, generator=random), torch.randn(11, columns, generator=random)
    wanted = (gradient.double().t() @ inputs.double())[mask]
    for make in (SampledProduct, entries_product("cpu").make):
        product = make(mask.view(-1).nonzero().view(-1), rows, columns)
        found = product(gradient, inputs)
        assert (found - wanted).norm() <= 1e-6 * wanted.norm()
        assert torch.equal(product(gradient, inputs), found)


def test_products_do_not_depend_on_the_number_of_threads_and_pass_nan_on() -> None:
    random = torch.Generator().manual_seed(0)
    gradient, inputs = torch.randn(33, 200, generator=random), torch.randn(33, 300, generator=random)
    index = (torch.rand(200 * 300, generator=random) < 0.1).nonzero().view(-1)
    product, threads = entries_product("cpu").make(index, 200, 300), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(product(gradient, inputs))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)
    gradient[5, 7] = float("nan")
    inputs[3, 11] = float("inf")
    spoilt = product(gradient, inputs)
    assert torch.equal(spoilt.isnan(), index // 300 == 7)
    assert torch.equal(spoilt.isinf(), (index % 300 == 11) & (index // 300 != 7))


@pytest.mark.parametrize("axis", [0, 1])
def test_lines_are_found_and_computed(axis: int) -> None:
    random = torch.Generator().manual_seed(0)
    lines = torch.tensor([True, False, False, True, False, True, False, False])
    mask = (lines[:, None] if axis == 0 else lines[None, :]).expand(8, 8).clone()
    gradient, inputs = torch.randn(11, 8, generator=random), torch.randn(11, 8, generator=random)
    product = product_at(Place.of_bits(pack(mask), 64), torch.empty(8, 8))
    assert type(product).__name__ == "_Lines"
    torch.testing.assert_close(product(gradient, inputs), (gradient.t() @ inputs)[mask], rtol=1e-6, atol=1e-6)
    mask[7, 7] = True
    assert "the dense product is faster" in product_at(Place.of_bits(pack(mask), 64), torch.empty(8, 8))


@pytest.mark.parametrize("recipe", [SPARSE, ROWS, COLUMNS], ids=["entries", "rows", "columns"])
@pytest.mark.parametrize("micro", [1, 3])
def test_packed_gradients_are_the_dense_ones_to_rounding(recipe: Any, micro: int) -> None:
    wanted = gradients_of("dense", recipe, micro)
    found = gradients_of("selected", recipe, micro)
    assert set(found) == set(wanted)
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name
    assert differing(found, gradients_of("selected", recipe, micro)) == []


@pytest.mark.parametrize("options", [{"checkpointing": True}, {"checkpointing": False}, {"tied": True}], ids=str)
def test_checkpointing_and_tied_weights(options: dict[str, Any]) -> None:
    wanted, found = gradients_of("dense", **options), gradients_of("selected", **options)
    assert set(found) == set(wanted)
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_no_dense_gradient_of_a_selected_weight_is_made_and_keys_stay() -> None:
    keys = list(tower().state_dict())
    tuning, optimizer = tuned("selected", recipe=SPARSE)
    assert swapped(tuning.model) == ["layers.0.up", "layers.0.down", "layers.1.up", "layers.1.down"]
    assert list(tuning.model.state_dict()) == keys
    seen = dense_product_is_never_made(tuning.model)
    tuning.forward(data()).loss.backward()
    assert seen
    assert not [name for name in seen if ".up.weight" in name or ".down.weight" in name]
    assert all(optimizer.lean.gradient(name) is not None for name in optimizer.lean.leaves)


def test_input_and_bias_gradients_are_dense_ones() -> None:
    found = []
    for mode in ("dense", "selected"):
        tuning, _ = tuned(mode, recipe=SPARSE)
        layer = tuning.model.layers[0].up
        inputs = torch.linspace(-1.0, 1.0, 2 * 3 * 24).view(2, 3, 24).requires_grad_()
        out = layer(inputs)
        (out * torch.linspace(0.0, 1.0, out.numel()).view_as(out)).sum().backward()
        found.append((out.detach(), inputs.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_a_run_trains_as_with_dense_gradients_and_holds_the_rest() -> None:
    ends = []
    for mode in ("dense", "selected"):
        tuning, optimizer = tuned(mode, recipe=SPARSE, cls=torch.optim.SGD, weight_decay=0.0, momentum=0.9)
        before = bits(tuning.model)
        for index in range(4):
            tuning.forward(data(index)).loss.backward()
            tuning.clip(0.1)
            assert tuning.step(optimizer)
            tuning.model.zero_grad()
        ends.append(bits(tuning.model))
        for name, mask in tuning.mask.items():
            assert torch.equal(
                ends[-1][name][~mask.expand(before[name].shape)], before[name][~mask.expand(before[name].shape)]
            )
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-5, atol=1e-6)
    assert differing(ends[0], before) != []


def test_a_layer_of_which_nothing_is_selected_has_no_product_at_all() -> None:
    ends = []
    for mode in ("dense", "selected"):
        recipe = replace(SPARSE, selector=Top(Magnitude(), 0.003))
        model = tower()
        with torch.no_grad():
            model.layers[0].down.weight.mul_(1e-3)
            model.layers[0].up.weight.mul_(10.0)
        tuning, optimizer = tuned(mode, model, recipe=recipe)
        assert not bool(tuning.mask["layers.0.down.weight"].any())
        for index in range(2):
            tuning.forward(data(index)).loss.backward()
            tuning.clip(0.1)
            tuning.step(optimizer)
            model.zero_grad()
        ends.append(bits(model))
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-5, atol=1e-6)


def test_a_weight_that_is_also_read_elsewhere_has_both_gradients() -> None:
    found = []
    for mode in ("dense", "selected"):
        tuning, optimizer = tuned(mode, recipe=SPARSE)
        weight = tuning.model.layers[0].up.weight
        (tuning.forward(data()).loss + (weight * weight).sum()).backward()
        found.append(leaves(tuning, optimizer))
    for name, gradient in found[0].items():
        assert (found[1][name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_evaluation_and_replaced_weights_take_the_plain_way() -> None:
    tuning, optimizer = tuned("selected", recipe=SPARSE)
    layer, name = tuning.model.layers[0].up, "layers.0.up.weight"
    inputs = torch.ones(3, 24)
    seen = dense_product_is_never_made(tuning.model)
    layer.eval()
    layer(inputs).sum().backward()
    layer.train()
    assert seen.count(name) == 1  # and the lean hook took it
    assert optimizer.lean.gradient(name) is not None
    assert layer.weight.grad is None
    other = torch.zeros_like(layer.weight).requires_grad_()
    torch.func.functional_call(layer, {"weight": other}, (inputs,)).sum().backward()
    assert other.grad is not None
    with torch.autocast("cpu", torch.bfloat16):
        layer(inputs).sum().backward()
    assert seen.count(name) == 2
    with torch.no_grad():
        assert torch.equal(layer(inputs), nn.functional.linear(inputs, layer.weight, layer.bias))


def test_a_weight_that_somebody_has_frozen_gets_no_gradient() -> None:
    tuning, optimizer = tuned("selected", recipe=SPARSE)
    frozen = tuning.model.layers[0].up.weight.requires_grad_(False)
    before = frozen.detach().clone()
    tuning.forward(data()).loss.backward()
    assert optimizer.lean.gradient("layers.0.up.weight") is None
    assert tuning.step(optimizer)
    assert torch.equal(frozen, before)


def test_copies_and_pickles_are_plain_layers_and_closing_restores() -> None:
    tuning, _ = tuned("selected", recipe=SPARSE)
    for other in (copy.deepcopy(tuning.model), pickle.loads(pickle.dumps(tuning.model))):
        assert swapped(other) == []
        other(**data()).loss.backward()
        assert other.layers[0].up.weight.grad is not None
    assert len(swapped(tuning.model)) == 4
    tuning.close()
    assert swapped(tuning.model) == []
    assert type(tuning.model.layers[0].up) is nn.Linear


def test_what_is_not_worth_it_stays_lean_and_is_named() -> None:
    with pytest.raises(UsageError, match=r"no layer to work on.*of its entries are selected.*gradients=\"lean\""):
        tuned("selected", recipe=TOWER)
    with pytest.raises(UsageError, match=r"no product for torch.bfloat16 on cpu"):
        tuned("selected", tower().to(torch.bfloat16), recipe=SPARSE)
    model = tower()
    tuned("selected", model, recipe=replace(TOWER, selector=Top(Random(), 0.08, per="tensor")))[0].close()
    assert swapped(model) == []


def test_the_engine_says_what_is_selected() -> None:
    recipe = replace(SPARSE, scope=replace(SPARSE.scope, selected=("layers.*", "words.*")))
    tuning, _ = tuned("selected", recipe=recipe)
    assert tuning.engine == (
        "packed: asked for; selected gradients of 4 of 5 weights, the others lean (such as 'words.weight': no "
        "torch.nn.Linear reads it)"
    )


@pytest.mark.slow
def test_a_compiled_model_takes_the_plain_way() -> None:
    tuning, optimizer = tuned("selected", recipe=SPARSE)
    seen = dense_product_is_never_made(tuning.model)
    compiled = torch.compile(tuning.model, backend="aot_eager")
    tuning.forward(data(), model=compiled).loss.backward()
    assert "layers.0.up.weight" in seen
    assert optimizer.lean.gradient("layers.0.up.weight") is not None
