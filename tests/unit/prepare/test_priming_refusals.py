"""What a priming refuses, by the field's name, before anything runs; and gradient checkpointing, served or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from priming_cases import ALL, BIASES, Tasks, Two, bert, outer, prime, primed, two_tasks
from subnetune import (
    Bernoulli,
    HoldUnselected,
    MaskGradient,
    NoisyStart,
    Prime,
    Random,
    Recipe,
    Scope,
    Top,
    UsageError,
    methods,
)
from subnetune.core.types import Output
from subnetune.prepare.priming.primer import Primer
from tiny import bits, differing

HOLDING = (MaskGradient(), HoldUnselected())
MATCHED = {"head": "matched"}
VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "no-tasks": ({"tasks": ()}, "tasks must be a tuple of names"),
    "tasks-in-a-list": ({"tasks": ["a"]}, "tasks must be a tuple"),
    "an-empty-name": ({"tasks": ("a", "")}, "tasks must be"),
    "a-task-twice": ({"tasks": ("a", "b", "a")}, "named twice in tasks"),
    "inner-no-recipe": ({"inner": "bitfit"}, "inner must be a Recipe"),
    "outer-no-scope": ({"outer": ("*",)}, "outer must be a Scope"),
    "algorithm": ({"algorithm": "sgd"}, "algorithm must be one of 'fomaml', 'maml', 'reptile', 'imaml'"),
    "head": ({"head": "old"}, "head must be one of"),
    "schedule": ({"schedule": "cosine"}, "schedule must be one of"),
    "inner-rates": ({"inner_rates": "free"}, "inner_rates must be one of"),
    "steps": ({"steps": 0}, "steps must be a whole number >= 1"),
    "steps-bool": ({"steps": True}, "steps must be a whole number"),
    "task-batch": ({"task_batch": 1.5}, "task_batch must be a whole number"),
    "inner-steps": ({"inner_steps": -1}, "inner_steps must be a whole number >= 0"),
    "query": ({"query": 0}, "query must be"),
    "lr": ({"lr": -1.0}, "lr must be a finite number >= 0"),
    "inner-lr": ({"inner_lr": float("nan")}, "inner_lr must be a finite"),
    "rates-lr": ({"rates_lr": float("inf")}, "rates_lr must be a finite"),
    "decay": ({"weight_decay": -0.1}, "weight_decay must be"),
    "pull": ({"pull": "much"}, "pull must be"),
    "support": ({"support": 0}, "support must be a number of batches"),
    "support-bool": ({"support": True}, "support must be"),
    "clip": ({"clip": 0.0}, "clip must be a norm > 0"),
    "clip-nan": ({"clip": float("nan")}, "clip must be"),
    "clip-text": ({"clip": "1"}, "clip must be"),
    "dropout": ({"dropout": 0.1}, "dropout must be True or False"),
    **{
        f"no-steps-{name}": ({"algorithm": name, "inner_steps": 0}, f"{name} needs inner_steps")
        for name in ("maml", "reptile", "imaml")
    },
    "imaml-without-pull": ({"algorithm": "imaml", "pull": 0.0}, "pull > 0"),
    "imaml-and-masks-that-change": (
        {"algorithm": "imaml", "inner": Recipe(Scope(("*weight",)), Bernoulli(0.5), HOLDING)},
        r"imaml needs a mask that stays.*Bernoulli",
    ),
    **{
        f"rates-{name}": ({"algorithm": name, "inner_rates": "learned"}, f"{name} has no gradient for inner_rates")
        for name in ("reptile", "imaml")
    },
    "classes-of-shared-heads": ({"classes": ((0,), (1,))}, "classes belong to head='matched'"),
    "no-classes": (MATCHED, "needs as classes for each of 2 tasks"),
    "few-classes": ({**MATCHED, "classes": ((0, 1),)}, "classes"),
    "a-class-twice": ({**MATCHED, "classes": ((0, 0), (1,))}, "each id once"),
    "a-task-without-classes": ({**MATCHED, "classes": ((), (1,))}, "classes"),
    "classes-in-lists": ({**MATCHED, "classes": ([0], [1])}, "a tuple of the ids"),
    "classes-flat": ({**MATCHED, "classes": (0, 1)}, "a tuple of the ids"),
    "negative-classes": ({**MATCHED, "classes": ((0, -1), (1,))}, "ids"),
    "observing": ({"inner": methods.dps_dense()}, "chooses by the gradients of a whole run"),
    "recall": ({"inner": methods.recadam()}, "inner steps cannot simulate Recall"),
    "noise": ({"inner": Recipe(prepare=(NoisyStart(0.1),))}, "cannot prepare the model by NoisyStart"),
    "itself": (
        {"inner": Recipe(prepare=(Prime(tasks=("a",), inner=BIASES),))},
        "cannot prepare the model by Prime",
    ),
    **{
        f"rules-{name}": ({"algorithm": name, "inner": methods.r_drop()}, f"{name} differentiates.*RDrop")
        for name in ("maml", "imaml")
    },
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_that_cannot_be_meant_is_refused_by_name(name: str) -> None:
    changes, words = VALUES[name]
    with pytest.raises(UsageError, match=f"^Prime: .*{words}" if words[0] != "^" else words):
        prime(**changes)


@pytest.mark.parametrize(
    "changes",
    [{"inner_lr": 0.0}, {"lr": 0}, {"clip": 1}, {"clip": None}, {"inner": methods.child_tuning_f(keep=0.3)}],
    ids=["inner-lr-0", "lr-0", "clip-int", "no-clip", "f"],
)
def test_what_can_be_meant_is_not_refused(changes: dict[str, Any]) -> None:
    assert prime(**changes).tasks == ("a", "b")


def refused(piece: Prime, model: nn.Module, words: str) -> None:
    before, flags = bits(model), [p.requires_grad for p in model.parameters()]
    with pytest.raises(UsageError, match=words):
        Primer(piece, primed(piece, model))
    assert differing(before, bits(model)) == []
    assert [p.requires_grad for p in model.parameters()] == flags


def test_reptile_needs_a_common_tensor() -> None:
    refused(prime(algorithm="reptile", outer=Scope(("*weight",))), Two(), "reptile.*no tensor in common.*fomaml")


def test_a_pattern_that_matches_nothing_is_named() -> None:
    refused(prime(outer=Scope(("thrid.*",))), Two(), "'thrid.*' matches no parameter.*third")
    refused(prime(inner=Recipe(Scope(("*gamma",)))), Two(), r"'\*gamma' matches no parameter")
    refused(prime(outer=Scope(exclude=("first.*", "second.*", "third.*"))), Two(), "nothing to move")


def test_a_loss_that_does_not_depend_on_a_loop_is_named() -> None:
    class Spare(Two):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Parameter(torch.ones(2, dtype=torch.float64))

    spare = Recipe(Scope(("spare",)))
    for algorithm in ("fomaml", "maml", "reptile", "imaml"):
        with pytest.raises(UsageError, match="tensor that the inner loop may touch"):
            outer(prime(algorithm=algorithm, inner=spare), Spare(), two_tasks())
    with pytest.raises(UsageError, match="tensor that the outer loop may touch"):
        outer(prime(outer=Scope(("spare",))), Spare(), two_tasks())
    for changes in ({"algorithm": "maml"}, {"algorithm": "imaml"}, {"inner_rates": "learned"}):
        piece = prime(outer=Scope(("spare",)), **changes)
        with pytest.raises(UsageError, match="tensor that the outer loop may touch"):
            piece(primed(piece, Spare(), two_tasks()))


def test_a_sharded_model_is_refused(tmp_path: Any) -> None:
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        model = Two()
        fully_shard(model, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (1,)))
        with pytest.raises(UsageError, match=r"sharded; call Tuning.start\(\) before"):
            Primer(prime(), primed(prime(), model))
    finally:
        dist.destroy_process_group()


# -- gradient checkpointing --------------------------------------------------------------------------------------------


def checkpointed(reentrant: bool = False) -> nn.Module:
    model = bert(num_hidden_layers=2)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return model


@pytest.mark.parametrize("algorithm", ["maml", "imaml"])
def test_second_derivatives_refuse_gradient_checkpointing(algorithm: str) -> None:
    refused(prime(algorithm=algorithm), checkpointed(), "graph that gradient checkpointing gives up")


@pytest.mark.parametrize(
    ("algorithm", "reentrant"),
    [
        pytest.param("fomaml", False, id="fomaml"),
        pytest.param("reptile", False, id="reptile", marks=pytest.mark.slow),
        pytest.param("fomaml", True, id="fomaml-reentrant", marks=pytest.mark.slow),
        pytest.param("reptile", True, id="reptile-reentrant", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "inner",
    [
        pytest.param(methods.bitfit(), id="bitfit", marks=pytest.mark.slow),
        pytest.param(Recipe(Scope(("*",)), Top(Random(), 0.5), HOLDING), id="masked"),
        pytest.param(methods.hype(), id="hype", marks=pytest.mark.slow),
        pytest.param(methods.mixout(keep=0.7), id="mixout"),
    ],
)
def test_gradient_checkpointing_changes_no_bit(algorithm: str, reentrant: bool, inner: Recipe) -> None:
    ends = []
    for model in (bert(num_hidden_layers=2), checkpointed(reentrant)):
        piece = prime(algorithm=algorithm, inner=inner, inner_lr=0.05, dropout=True, steps=2)
        before = bits(model)
        piece(primed(piece, model))
        assert differing(before, bits(model))
        ends.append(bits(model))
    assert differing(*ends) == []


class Shared(Two):
    """One layer three times, as in ALBERT: its weights must wait until the last of its passes is walked back."""

    recompute = reentrant = False

    def forward(self, x: Tensor, labels: Tensor) -> Output:
        for _ in range(3):
            x = checkpoint(self._block, x, use_reentrant=self.reentrant) if self.recompute else self._block(x)
        logits = self.third(x)
        return Output(nn.functional.cross_entropy(logits, labels), logits)

    def _block(self, x: Tensor) -> Tensor:
        return torch.tanh(self.second(torch.tanh(self.first(x))))


def test_layers_that_share_their_weights_are_recomputed_before_they_move() -> None:
    ends = []
    for recompute in (False, True):
        model, piece = Shared(), prime(inner=ALL, steps=2)
        model.recompute = recompute
        piece(primed(piece, model))
        ends.append(bits(model))
    assert differing(*ends) == []
    assert differing(bits(Shared()), ends[0])


def test_reentrant_checkpointing_of_shared_layers_is_refused_by_name() -> None:
    model = Shared()
    model.recompute = model.reentrant = True
    before = bits(model)
    piece = prime(inner=ALL)
    with pytest.raises(UsageError, match=r"of 'second.*' in parts, one for each layer.*\{'use_reentrant': False\}"):
        piece(primed(piece, model, in_need_of_gradients()))
    assert differing(before, bits(model)) == []


def test_two_passes_are_recomputed_without_reentrant_checkpointing_alone() -> None:
    piece, ends = prime(inner=methods.r_drop(), inner_lr=0.05, dropout=True, steps=2), []
    for model in (bert(num_hidden_layers=2), checkpointed()):
        piece(primed(piece, model))
        ends.append(bits(model))
    assert differing(*ends) == []
    model = checkpointed(reentrant=True)
    with pytest.raises(UsageError, match="in parts, one for each layer or pass"):
        piece(primed(piece, model))


def in_need_of_gradients() -> Tasks:
    """Batches whose features require gradients, without which reentrant checkpointing gives none."""
    return {
        name: lambda of=of: [{**b, "x": b["x"].clone().requires_grad_()} for b in of()]
        for name, of in two_tasks().items()
    }
