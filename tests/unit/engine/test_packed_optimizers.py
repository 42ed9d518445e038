"""Every optimizer that the packed engine takes against dense training of the same class: equal in every bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler

from subnetune.core.errors import LifeCycleError, UsageError
from subnetune.core.recipe import Recipe, Scope
from subnetune.core.types import Batch, Output
from subnetune.engine.packed import ELEMENT_WISE
from subnetune.score import Random
from subnetune.select import Top
from subnetune.tuning import Tuning
from subnetune.update import HoldUnselected, MaskGradient
from tiny import bits, differing

STEPS = 12
HELD = (MaskGradient(), HoldUnselected())


class Net(nn.Module):
    """Tensors of many sizes: none, few and many selected entries, sizes that no vector register divides, a scalar."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.table = nn.Embedding(23, 12)
            self.inner = nn.Linear(12, 19)
            self.norm = nn.LayerNorm(19)
            self.outer = nn.Linear(19, 7)
            self.scalar = nn.Parameter(torch.tensor(0.7))
            self.spare = nn.Linear(3, 5)  # takes part only in some steps
            self.head = nn.Linear(7, 2)

    def forward(self, ids: Tensor, labels: Tensor, extra: bool = False) -> Output:
        hidden = self.outer(torch.tanh(self.norm(self.inner(self.table(ids).mean(1))))) * self.scalar
        if extra:
            hidden = hidden + self.spare(hidden[:, :3]).sum(1, keepdim=True)
        logits = self.head(hidden)
        return Output(nn.functional.cross_entropy(logits.float(), labels), logits)


def call(model: nn.Module, batch: Batch) -> Output:
    output = model(**batch)
    assert isinstance(output, Output)
    return output


def data(count: int = STEPS) -> list[dict[str, Any]]:
    random = torch.Generator().manual_seed(5)
    return [
        {
            "ids": torch.randint(0, 23, (6, 4), generator=random),
            "labels": torch.randint(0, 2, (6,), generator=random),
            "extra": index % 3 != 1,
        }
        for index in range(count)
    ]


def recipe(keep: float = 0.3, **options: Any) -> Recipe:
    return Recipe(Scope(("*",), whole=("head.*",)), Top(Random(), keep), options.get("update", HELD))


def bound(cls: Any, engine: str, dtype: torch.dtype = torch.float32, groups: Any = None, **hyper: Any) -> Any:
    """A fresh model, its Tuning, and an optimizer; a tensor among the hyper-parameters is copied."""
    model = Net().to(dtype)
    tuning = Tuning(hyper.pop("recipe", recipe()), model, forward=call, steps=STEPS)
    own = {name: value.clone() if isinstance(value, Tensor) else value for name, value in hyper.items()}
    made = None if groups is None else groups(tuning)
    return model, tuning, tuning.optimizer(cls, engine=engine, groups=made, **own)


def train(
    tuning: Tuning,
    optimizer: optim.Optimizer,
    batches: list[dict[str, Any]],
    clip: float | None = None,
    scheduler: Any = None,
    accumulate: int = 1,
) -> list[dict[str, Tensor]]:
    """Weights after each optimizer step."""
    after = []
    for index, batch in enumerate(batches):
        (tuning.forward(batch).loss / accumulate).backward()
        if (index + 1) % accumulate:
            continue
        if clip is not None:
            tuning.clip(clip)
        assert tuning.step(optimizer)
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()
        after.append(bits(tuning.model))
    return after


def assert_equal(runs: list[list[dict[str, Tensor]]]) -> None:
    for step, (wanted, got) in enumerate(zip(*runs, strict=True)):
        assert differing(wanted, got) == [], f"after step {step + 1}"
    assert differing(runs[0][0], runs[0][-1]), "nothing moved"


def compared(cls: Any, hyper: dict[str, Any], **options: Any) -> None:
    runs = []
    for engine in ("reference", "packed"):
        given = {key: options[key] for key in ("dtype", "groups") if key in options}
        _, tuning, optimizer = bound(cls, engine, **given, **hyper)
        assert tuning.engine.startswith(engine)
        if engine == "packed":
            assert optimizer.engine == "packed", "the packed engine was not tried"
        schedule = options.get("schedule")
        runs.append(
            train(
                tuning,
                optimizer,
                data(),
                options.get("clip"),
                None if schedule is None else schedule(optimizer),
                options.get("accumulate", 1),
            )
        )
        tuning.close()
    assert_equal(runs)


DECAY = {"weight_decay": 0.1}
VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "adamw": (optim.AdamW, {"lr": 1e-2, **DECAY}),
    "adamw-foreach": (optim.AdamW, {"lr": 1e-2, "foreach": True, **DECAY}),
    "adamw-amsgrad": (optim.AdamW, {"lr": 1e-2, "amsgrad": True, **DECAY}),
    "adamw-maximize": (optim.AdamW, {"lr": 1e-3, "maximize": True, **DECAY}),
    "adamw-tensor-lr": (optim.AdamW, {"lr": torch.tensor(1e-2), **DECAY}),
    "adamw-fused": (optim.AdamW, {"lr": 1e-2, "fused": True, **DECAY}),
    "adamw-fused-amsgrad": (optim.AdamW, {"lr": 1e-2, "fused": True, "amsgrad": True, **DECAY}),
    "adamw-fused-tensor-lr": (optim.AdamW, {"lr": torch.tensor(1e-2), "fused": True, **DECAY}),
    "adam": (optim.Adam, {"lr": 1e-2, **DECAY}),
    "adam-fused": (optim.Adam, {"lr": 1e-2, "fused": True, **DECAY}),
    "adam-foreach-amsgrad": (optim.Adam, {"lr": 1e-2, "foreach": True, "amsgrad": True, **DECAY}),
    "adam-decoupled": (optim.Adam, {"lr": 1e-2, "decoupled_weight_decay": True, **DECAY}),
    "sgd": (optim.SGD, {"lr": 0.1}),
    "sgd-momentum": (optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, **DECAY}),
    "sgd-nesterov": (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, **DECAY}),
    "sgd-foreach": (optim.SGD, {"lr": 0.1, "momentum": 0.9, "foreach": True, **DECAY}),
    "sgd-fused": (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "fused": True, **DECAY}),
    "sgd-maximize": (optim.SGD, {"lr": 0.01, "momentum": 0.9, "maximize": True}),
    "rmsprop": (optim.RMSprop, {"lr": 1e-3, **DECAY}),
    "rmsprop-centered": (optim.RMSprop, {"lr": 1e-3, "centered": True, "momentum": 0.9, **DECAY}),
    "rmsprop-foreach": (optim.RMSprop, {"lr": 1e-3, "foreach": True, "momentum": 0.9, **DECAY}),
    "adagrad": (optim.Adagrad, {"lr": 1e-2, "lr_decay": 0.1, "initial_accumulator_value": 0.2, **DECAY}),
    "adagrad-foreach": (optim.Adagrad, {"lr": 1e-2, "foreach": True, **DECAY}),
    "adagrad-fused": (optim.Adagrad, {"lr": 1e-2, "fused": True, **DECAY}),
    "nadam": (optim.NAdam, {"lr": 1e-2, **DECAY}),
    "nadam-decoupled": (optim.NAdam, {"lr": 1e-2, "decoupled_weight_decay": True, "foreach": True, **DECAY}),
    "radam": (optim.RAdam, {"lr": 1e-2, **DECAY}),
    "radam-decoupled": (optim.RAdam, {"lr": 1e-2, "decoupled_weight_decay": True, "foreach": True, **DECAY}),
    "adamax": (optim.Adamax, {"lr": 1e-2, **DECAY}),
    "adamax-foreach": (optim.Adamax, {"lr": 1e-2, "foreach": True, "maximize": True, **DECAY}),
    "adadelta": (optim.Adadelta, {"lr": 1.0, **DECAY}),
    "adadelta-foreach": (optim.Adadelta, {"lr": 1.0, "foreach": True, **DECAY}),
    "asgd": (optim.ASGD, {"lr": 1e-2, "t0": 4, **DECAY}),
    "asgd-foreach": (optim.ASGD, {"lr": 1e-2, "foreach": True, **DECAY}),
    "rprop": (optim.Rprop, {"lr": 1e-2}),
    "rprop-foreach": (optim.Rprop, {"lr": 1e-2, "foreach": True, "maximize": True}),
}


SLOW = ("adamw-maximize", "adamw-fused-tensor-lr", "sgd", "sgd-maximize", "rmsprop", "nadam", "radam", "rprop-foreach")


def test_every_class_of_the_list_is_compared() -> None:
    assert {cls for cls, _ in VARIANTS.values()} == set(ELEMENT_WISE)
    assert {VARIANTS[name][0] for name in VARIANTS if name not in SLOW} == set(ELEMENT_WISE)


@pytest.mark.parametrize("clip", [0.1, pytest.param(None, marks=pytest.mark.slow)], ids=["clip", "as-it-is"])
@pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in VARIANTS]
)
def test_packed_is_dense_training_bit_for_bit(variant: str, clip: float | None) -> None:
    cls, hyper = VARIANTS[variant]
    compared(cls, hyper, clip=clip)


@pytest.mark.parametrize("variant", ["adamw", "adamw-fused", "sgd-nesterov", "adagrad", "nadam"])
def test_packed_is_dense_training_in_half_precision(variant: str) -> None:
    cls, hyper = VARIANTS[variant]
    compared(cls, hyper, clip=0.1, dtype=torch.bfloat16)


@pytest.mark.parametrize("variant", ["adamw", "sgd-momentum", "rmsprop-centered"])
def test_gradients_add_up_over_micro_batches(variant: str) -> None:
    cls, hyper = VARIANTS[variant]
    compared(cls, hyper, clip=0.1, accumulate=3)


def test_a_gradient_that_is_divided_by_keep_is_so_here_too() -> None:
    divided = Recipe(Scope(("*",), whole=("head.*",)), Top(Random(), 0.3), (MaskGradient(True), HoldUnselected()))
    compared(optim.SGD, {"lr": 0.1, "momentum": 0.9, "recipe": divided}, clip=0.5)


def test_the_order_of_a_release_that_clips_first() -> None:
    first = Recipe(Scope(("*",)), Top(Random(), 0.3), (MaskGradient(clip_first=True), HoldUnselected()))
    compared(optim.AdamW, {"lr": 1e-2, "recipe": first, **DECAY}, clip=0.05)


# -- schedules and groups ---------------------------------------------------------------------------------------------

Schedule = Callable[[optim.Optimizer], Any]


def sequence(optimizer: optim.Optimizer) -> Any:
    warm = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4)
    return lr_scheduler.SequentialLR(optimizer, [warm, lr_scheduler.ExponentialLR(optimizer, 0.7)], [4])


SCHEDULES: dict[str, tuple[Any, dict[str, Any], Schedule]] = {
    "lambda": (optim.AdamW, {"lr": 1e-2}, lambda o: lr_scheduler.LambdaLR(o, lambda step: step / STEPS)),
    "one-cycle": (optim.AdamW, {"lr": 1e-2}, lambda o: lr_scheduler.OneCycleLR(o, 0.05, total_steps=STEPS + 1)),
    "cyclic": (
        optim.SGD,
        {"lr": 1e-2, "momentum": 0.9},
        lambda o: lr_scheduler.CyclicLR(o, 1e-3, 0.1, step_size_up=3, cycle_momentum=True),
    ),
    "cosine": (optim.AdamW, {"lr": torch.tensor(1e-2)}, lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS)),
    "sequential": (optim.RMSprop, {"lr": 1e-2}, sequence),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_drive_it_like_any_optimizer(name: str) -> None:
    cls, hyper, schedule = SCHEDULES[name]
    compared(cls, {**hyper, **DECAY}, clip=0.1, schedule=schedule)


def in_two(tuning: Tuning) -> list[dict[str, Any]]:
    """Groups as a user makes them: other rates and decays for vectors, in an order that is not the model's."""
    pairs = [(n, p) for n, p in tuning.model.named_parameters() if p.requires_grad][::-1]
    return [
        {"params": [p for _, p in pairs if p.dim() > 1], "param_names": [n for n, p in pairs if p.dim() > 1]},
        {
            "params": [p for _, p in pairs if p.dim() <= 1],
            "param_names": [n for n, p in pairs if p.dim() <= 1],
            "lr": 3e-3,
            "weight_decay": 0.0,
            "betas": (0.8, 0.99),
            "amsgrad": True,
        },
    ]


def of_two_rates(tuning: Tuning) -> list[dict[str, Any]]:
    """As `in_two`, without what the fused engine has not."""
    groups = in_two(tuning)
    return [groups[0], {**groups[1], "amsgrad": False}]


def without_names(tuning: Tuning) -> list[dict[str, Any]]:
    return [{k: v for k, v in group.items() if k != "param_names"} for group in in_two(tuning)]


@pytest.mark.parametrize("groups", [in_two, without_names])
def test_groups_have_their_own_rates(groups: Any) -> None:
    compared(optim.AdamW, {"lr": 1e-2, **DECAY}, clip=0.1, groups=groups)


@pytest.mark.parametrize("engine", ["packed", "fused"])
def test_groups_that_hold_other_tensors_are_refused(engine: str) -> None:
    def fewer(tuning: Tuning) -> list[dict[str, Any]]:
        groups = without_names(tuning)
        return [{**groups[0], "params": groups[0]["params"][1:]}, {**groups[1], "amsgrad": False}]

    with pytest.raises(UsageError, match=r"groups.*do not hold.*'head.weight'"):
        bound(optim.AdamW, engine, groups=fewer, lr=1e-2)

    def foreign(tuning: Tuning) -> list[dict[str, Any]]:
        return [*without_names(tuning)[:1], {"params": [nn.Parameter(torch.ones(2))]}]

    with pytest.raises(UsageError, match="groups hold a tensor that does not train"):
        bound(optim.AdamW, engine, groups=foreign, lr=1e-2)

    def misnamed(tuning: Tuning) -> list[dict[str, Any]]:
        groups = in_two(tuning)
        names = groups[0]["param_names"]
        return [{**groups[0], "param_names": [names[1], names[0], *names[2:]]}, {**groups[1], "amsgrad": False}]

    with pytest.raises(UsageError, match="param_names"):
        bound(optim.AdamW, engine, groups=misnamed, lr=1e-2)


def test_a_group_may_not_ask_the_fused_engine_for_what_it_has_not() -> None:
    with pytest.raises(UsageError, match="amsgrad"):
        bound(optim.AdamW, "fused", groups=in_two, lr=1e-2)


# -- what the list leaves out -----------------------------------------------------------------------------------------


class Own(optim.AdamW):
    """A user's optimizer, of which nobody knows what it does."""


OUTSIDE: dict[str, tuple[Any, dict[str, Any]]] = {
    "adafactor": (optim.Adafactor, {"lr": 1e-2}),
    "own": (Own, {"lr": 1e-2}),
    "factory": (lambda groups, **hyper: optim.AdamW(groups, **hyper), {"lr": 1e-2}),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_other_optimizers_get_the_reference_engine_and_are_told_why(name: str) -> None:
    cls, hyper = OUTSIDE[name]
    _, tuning, optimizer = bound(cls, "auto", **hyper)
    assert tuning.engine.startswith("reference: not packed: ")
    assert "not among the optimizers known to treat every entry by itself" in tuning.engine
    assert type(optimizer) is (cls if isinstance(cls, type) else optim.AdamW)
    with pytest.raises(UsageError, match='engine="packed" cannot serve this run: .*every entry by itself'):
        bound(cls, "packed", **hyper)
    with pytest.raises(UsageError, match='engine="fused" cannot serve this run: fused is AdamW'):
        bound(cls, "fused", **hyper)


def test_muon_wants_matrices_and_gets_the_reference_engine() -> None:
    matrices = Recipe(Scope(("inner.weight",)), Top(Random(), 0.3), HELD)
    _, tuning, optimizer = bound(optim.Muon, "auto", lr=1e-2, recipe=matrices)
    assert tuning.engine.startswith("reference: not packed: Muon is not among")
    assert type(optimizer) is optim.Muon
    with pytest.raises(UsageError, match="Muon is not among"):
        bound(optim.Muon, "packed", lr=1e-2, recipe=matrices)


# -- loss scaling, skipped steps, unusual loops -----------------------------------------------------------------------


def scaled_run(cls: Any, hyper: dict[str, Any], engine: str, clears: str) -> list[dict[str, Tensor]]:
    """Twelve steps under a GradScaler with clipping, every fourth of which overflows."""
    model, tuning, optimizer = bound(cls, engine, **hyper)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    after, happened = [], []
    for index, batch in enumerate(data()):
        scaler.scale(tuning.forward(batch).loss).backward()
        if index % 4 == 2:
            model.inner.weight.grad.view(-1)[index] = float("inf")
        scaler.unscale_(optimizer)
        tuning.clip(0.05)
        happened.append(tuning.step(optimizer, scaler=scaler))
        if clears == "optimizer":
            optimizer.zero_grad()
        else:
            model.zero_grad(set_to_none=clears == "none")
        after.append(bits(model))
    assert happened == [index % 4 != 2 for index in range(STEPS)]
    assert tuning.index == 9
    return after


@pytest.mark.parametrize("clears", ["optimizer", "none", "zero"])
@pytest.mark.parametrize("variant", ["adamw", "adamw-fused"])
def test_an_overflow_is_no_step_and_leaves_nothing_behind(variant: str, clears: str) -> None:
    """Also where the gradients are cleared past the optimizer, so that it never hears of it."""
    cls, hyper = VARIANTS[variant]
    assert_equal([scaled_run(cls, hyper, engine, clears) for engine in ("reference", "packed")])


def test_clipping_twice_is_clipping_to_the_smaller_norm() -> None:
    runs, norms = [], []
    for engine in ("reference", "packed"):
        _, tuning, optimizer = bound(optim.SGD, engine, lr=0.1)
        after, seen = [], []
        for batch in data(4):
            tuning.forward(batch).loss.backward()
            seen += [float(tuning.clip(0.2)), float(tuning.clip(0.05))]
            tuning.step(optimizer)
            optimizer.zero_grad()
            after.append(bits(tuning.model))
        runs.append(after)
        norms.append(seen)
    torch.testing.assert_close(norms[1], norms[0], rtol=1e-6, atol=0.0)
    for wanted, got in zip(*runs, strict=True):  # the two factors are multiplied first: a rounding apart
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("engine", ["packed", "fused"])
def test_a_gradient_that_grows_after_clipping_is_an_error(engine: str) -> None:
    _, tuning, optimizer = bound(optim.AdamW, engine, lr=1e-2)
    first, second = data(2)
    tuning.forward(first).loss.backward()
    tuning.clip(1e-3)
    tuning.forward(second).loss.backward()
    with pytest.raises(UsageError, match="clip once, after the last backward pass"):
        tuning.clip(1e-3)
    optimizer.zero_grad()
    tuning.forward(second).loss.backward()
    tuning.clip(1e-3)
    assert tuning.step(optimizer)


@pytest.mark.parametrize("engine", ["reference", "packed", "fused"])
def test_an_optimizer_of_a_closed_tuning_does_not_step(engine: str) -> None:
    model, tuning, optimizer = bound(optim.AdamW, engine, lr=1e-2)
    tuning.forward(data(1)[0]).loss.backward()
    tuning.close()
    before = bits(model)
    with pytest.raises(LifeCycleError, match="closed"):
        optimizer.step()
    assert differing(before, bits(model)) == []


def shortened(groups: list[dict[str, Any]]) -> None:
    groups[0]["params"].pop()


def exchanged(groups: list[dict[str, Any]]) -> None:
    groups[0]["params"][0] = nn.Parameter(torch.ones(2))


def renamed(groups: list[dict[str, Any]]) -> None:
    groups[0]["param_names"] = groups[0]["param_names"][::-1]


@pytest.mark.parametrize("engine", ["packed", "fused"])
@pytest.mark.parametrize("change", [shortened, exchanged, renamed, list.pop])
def test_a_group_whose_parameters_were_changed_is_refused(engine: str, change: Any) -> None:
    """The recipe says what trains, so such a change would have no effect; learning rates may change."""
    model, tuning, optimizer = bound(optim.AdamW, engine, groups=of_two_rates, lr=1e-2)
    tuning.forward(data(1)[0]).loss.backward()
    optimizer.param_groups[0]["lr"] = 5e-3
    tuning.step(optimizer)
    change(optimizer.param_groups)
    before = bits(model)
    for call in (optimizer.step, optimizer.zero_grad):
        with pytest.raises(UsageError, match="what trains follows from the recipe"):
            call()
    assert differing(before, bits(model)) == []


def test_a_tensor_that_never_trained_may_change_its_shape_and_costs_no_other_its_state() -> None:
    ends = []
    for exchanges in (False, True):
        own = Recipe(Scope(("inner.*", "outer.*"), whole=("spare.*", "head.*")), Top(Random(), 0.3), HELD)
        model, tuning, optimizer = bound(optim.AdamW, "packed", lr=1e-2, recipe=own)
        for index, batch in enumerate(data(4)):
            if exchanges and index == 2:
                model.spare.weight = nn.Parameter(torch.zeros(9, 3))
            tuning.forward({**batch, "extra": False}).loss.backward()
            tuning.step(optimizer)
            optimizer.zero_grad()
        ends.append({name: value for name, value in bits(model).items() if not name.startswith("spare")})
    assert differing(*ends) == []


@pytest.mark.parametrize("gradients", ["dense", "lean"])
def test_gradients_that_are_set_to_zero_are_stepped_with(gradients: str) -> None:
    """Where a tensor takes no part in a step, its decay and momentum go on; with lean gradients as well."""
    ends = []
    for engine, kept in (("reference", "dense"), ("packed", gradients)):
        model, tuning, optimizer = bound(optim.AdamW, engine, lr=1e-2, weight_decay=0.1, gradients=kept)
        for batch in data(5):
            tuning.forward(batch).loss.backward()
            tuning.step(optimizer)
            optimizer.zero_grad(set_to_none=False)
        ends.append(bits(model))
    assert differing(*ends) == []
