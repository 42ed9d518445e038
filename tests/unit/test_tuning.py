"""The life cycle of a Tuning: what it does when, and what it refuses."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from subnetune import (
    Bernoulli,
    Group,
    Recipe,
    Scope,
    Top,
    Tuning,
    methods,
)
from subnetune.core.errors import DataError, LifeCycleError, UsageError
from subnetune.core.types import Output, Setting
from tiny import batch, bits, differing, tiny
from tuning_cases import DRAWN, RANDOM, small, step

# -- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"recipe": "bitfit"}, "needs a Recipe, got 'bitfit'"),
        ({"model": "minilm"}, "Tuning needs a model, a torch.nn.Module, got 'minilm'; load it first"),
        ({"model": None}, "Tuning needs a model, a torch.nn.Module, got None"),
        ({"steps": 0}, "steps must be a whole number >= 1, got 0"),
        ({"steps": True}, "steps must be a whole number >= 1, got True"),
        ({"steps": 2.0}, "steps must be"),
        ({"seed": -1}, "seed must be a whole number >= 0, got -1"),
        ({"seed": 1.5}, "seed must be"),
        ({"recipe": methods.child_tuning_d()}, r"needs `batches` \(Top uses them\)"),
        ({"batches": iter([batch()])}, "batches must be a data loader"),
        ({"batches": 7}, "batches must be .* got int"),
        ({"tasks": {"rte": iter([batch()])}}, r"tasks\['rte'\] must be"),
        ({"new": ("classifier.wieght",)}, "classifier.wieght"),
        ({"recipe": Recipe(Scope(("encoder.*",)))}, "matches no parameter"),
        ({"recipe": Recipe(groups=(Group("nothing.*"),))}, "matches no parameter"),
        ({"recipe": Recipe(Scope((), ("@head",)), Bernoulli(0.5))}, "Bernoulli has no selected tensors"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_happens(options: dict[str, Any], words: str) -> None:
    model = small()
    before = bits(model)
    recipe = options.pop("recipe", RANDOM)
    with pytest.raises(UsageError, match=words):
        Tuning(recipe, options.pop("model", model), **options)
    assert differing(before, bits(model)) == []
    assert all(p.requires_grad for p in model.parameters())
    Tuning(RANDOM, model)  # the refused one holds nothing


# -- binding ----------------------------------------------------------------------------------------------------------


def test_the_constructor_only_binds_and_start_freezes_the_rest() -> None:
    model = small()
    calls = []

    def scorer(setting: Setting) -> dict[str, torch.Tensor]:
        calls.append(sorted(n for n, p in model.named_parameters() if p.requires_grad))
        return {name: p.detach().abs() for name, p in setting.params.items()}

    tuning = Tuning(Recipe(Scope(("@layers",), ("@head",)), Top(scorer, 0.5)), model)
    assert calls == []
    assert all(p.requires_grad for p in model.parameters())
    tuning.start()
    tuning.start()
    assert calls == [sorted(tuning.scope.trained)]
    assert not model.bert.embeddings.word_embeddings.weight.requires_grad
    tuning.close()
    assert all(p.requires_grad for p in model.parameters())


def test_one_model_has_one_tuning_at_a_time() -> None:
    model = small()
    first = Tuning(RANDOM, model)
    with pytest.raises(LifeCycleError, match="another Tuning is bound"):
        Tuning(DRAWN, model)
    first.close()
    second = Tuning(DRAWN, model)
    first.close()  # closing again must not take the model from the second
    with pytest.raises(LifeCycleError, match="another Tuning is bound"):
        Tuning(RANDOM, model)
    del second
    gc.collect()
    Tuning(RANDOM, model)


def test_a_closed_tuning_does_nothing_more() -> None:
    tuning = Tuning(RANDOM, small())
    optimizer = tuning.optimizer(torch.optim.SGD, lr=0.1)
    step(tuning, optimizer)
    state = tuning.state_dict()
    tuning.close()
    for call in (
        tuning.start,
        tuning.state_dict,
        lambda: tuning.forward(batch()),
        lambda: tuning.clip(1.0),
        lambda: tuning.step(optimizer),
        lambda: tuning.optimizer(torch.optim.SGD, lr=0.1),
        lambda: tuning.load_state_dict(state),
    ):
        with pytest.raises(LifeCycleError):
            call()


def test_an_attached_optimizer_steps_no_more_once_its_tuning_is_closed_unless_it_was_taken_off() -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = Tuning(RANDOM, model)
    first.attach(optimizer)
    first.forward(batch()).loss.backward()
    first.close()
    before = bits(model)
    with pytest.raises(LifeCycleError, match="the Tuning of this optimizer is closed"):
        optimizer.step()
    assert differing(before, bits(model)) == []
    second = Tuning(RANDOM, model)
    handle = second.attach(optimizer)  # served again
    optimizer.step()
    assert second.index == 1
    handle.remove()
    second.close()
    optimizer.step()  # the caller's own again


@pytest.mark.parametrize("moved", [lambda m: m.bfloat16(), lambda m: m.to("meta")], ids=["dtype", "device"])
def test_a_model_that_was_moved_after_binding_is_refused(moved: Any) -> None:
    model = small()
    tuning = Tuning(RANDOM, model)
    moved(model)
    with pytest.raises(LifeCycleError, match="move the model first, then build the Tuning"):
        tuning.start()


@pytest.mark.parametrize("how", ["resized", "replaced", "added"])
def test_a_model_that_was_rebuilt_after_binding_is_refused(how: str) -> None:
    model = small()
    tuning = Tuning(Recipe(Scope(("*",)), Bernoulli(0.5)), model)
    if how == "resized":
        model.resize_token_embeddings(60)
    else:
        setattr(model, "classifier" if how == "replaced" else "second_head", nn.Linear(32, 2))
    with pytest.raises(LifeCycleError, match="was exchanged after the model was bound"):
        tuning.start()


@pytest.mark.parametrize("recipe", [RANDOM, methods.full()], ids=["selected", "whole"])
@pytest.mark.parametrize("name", ["bert.encoder.layer.0.output.dense.weight", "bert.embeddings.LayerNorm.bias"])
def test_weights_that_changed_after_binding_are_named_before_training(recipe: Recipe, name: str) -> None:
    model = small()
    tuning = Tuning(recipe, model)
    with torch.no_grad():
        model.get_parameter(name)[0] += 1.0
    with pytest.raises(LifeCycleError, match=f"the values of '{name}' changed between binding and start"):
        tuning.start()
    assert all(p.requires_grad for p in model.parameters()), "nothing was begun"


def test_a_new_head_may_be_drawn_after_binding() -> None:
    model = small()
    tuning = Tuning(RANDOM, model)  # the head is new by default: its values are no part of the base
    with torch.no_grad():
        model.classifier.weight.mul_(2.0)
    tuning.start()
    assert torch.equal(tuning.state_dict()["anchor"]["classifier.weight"], model.classifier.weight)


def test_batches_that_are_no_mappings_are_told_in_the_users_words() -> None:
    rows = batch()
    loader = DataLoader(TensorDataset(rows["input_ids"], rows["labels"]), batch_size=2)
    model = small()
    words = "a batch is a list; wanted a mapping of tensors with `labels`"
    with pytest.raises(DataError, match=words):
        Tuning(methods.child_tuning_d(keep=0.3), model, batches=loader).start()
    tuning = Tuning(RANDOM, model)
    with pytest.raises(DataError, match=words):
        tuning.forward(next(iter(loader)))
    with pytest.raises(DataError, match="a batch is a Tensor"):
        tuning.forward(rows["input_ids"])  # type: ignore[arg-type]
    given = lambda module, each: module(input_ids=each[0], labels=each[1])  # noqa: E731
    own = Tuning(RANDOM, small(), forward=given)
    assert torch.isfinite(own.forward(next(iter(loader))).loss), "a forward of the user's own may take what it likes"


# -- forward ----------------------------------------------------------------------------------------------------------


def test_forward_rules_nest_with_the_leftmost_outermost_and_sleep_in_eval() -> None:
    order: list[str] = []

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, run: Any, model: nn.Module, each: Any, live: Any) -> Output:
            order.append(f"{self.name}-in")
            out = run(model, each)
            order.append(f"{self.name}-out")
            return Output(out.loss * 2, out.logits)

    model = small()
    tuning = Tuning(Recipe(Scope(("*",)), forward=(Named("a"), Named("b"))), model)
    loss = tuning.forward(batch()).loss
    assert order == ["a-in", "b-in", "b-out", "a-out"]
    model.eval()
    order.clear()
    raw = model(**batch()).loss
    assert torch.equal(tuning.forward(batch()).loss, raw)
    assert order == []
    assert loss.requires_grad


def test_the_wrapper_must_hold_the_model() -> None:
    model = small()
    tuning = Tuning(RANDOM, model)
    wrapper = nn.Module()
    wrapper.inner = model
    wrapper.forward = model.forward  # type: ignore[method-assign]
    assert tuning.forward(batch(), model=wrapper).loss.requires_grad
    with pytest.raises(UsageError, match="without the model that this Tuning holds"):
        tuning.forward(batch(), model=small())


def test_eval_mode_is_that_of_the_model_not_of_the_wrapper() -> None:
    model = small()

    def shout(run: Any, module: nn.Module, each: Any, live: Any) -> Output:
        raise AssertionError("a forward rule ran in eval mode")

    tuning = Tuning(Recipe(Scope(("*",)), forward=(shout,)), model)
    wrapper = nn.Sequential(model)
    wrapper.forward = model.forward  # type: ignore[method-assign]
    model.eval()
    assert wrapper.training
    assert torch.isfinite(tuning.forward(batch(), model=wrapper).loss)


# -- describe ---------------------------------------------------------------------------------------------------------


def test_describe_counts_per_role() -> None:
    model = small()
    tuning = Tuning(RANDOM, model)
    early = tuning.describe()
    assert not early.chosen
    assert "at most (start() chooses the mask)" in str(early)
    tuning.start()
    told = tuning.describe()
    rows = {row.role: row for row in told.rows}
    layers = sum(p.numel() for p in model.bert.encoder.parameters())
    assert (rows["layers"].total, rows["layers"].selected, rows["layers"].trained) == (layers, layers, layers // 4)
    assert (rows["head"].whole, rows["head"].trained) == (66, 66)
    assert (rows["embeddings"].trained, rows["embeddings"].selected) == (0, 0)
    assert told.total == sum(p.numel() for p in model.parameters())
    assert told.trained == layers // 4 + 66
    assert early.trained == layers + 66
    assert "entries train" in str(told)
    assert "changes" not in str(told) + str(early)


def test_describe_says_that_a_mask_changes() -> None:
    told = Tuning(DRAWN, small()).describe()
    assert told.dynamic
    assert told.chosen
    assert "at most (the mask changes over the run)" in str(told)


def test_tied_tensors_count_once() -> None:
    model = tiny("gpt2", "CausalLM")
    told = Tuning(methods.full(), model).describe()
    assert told.total == told.trained == sum(p.numel() for p in model.parameters())
