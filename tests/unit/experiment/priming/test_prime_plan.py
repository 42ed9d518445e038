"""What a priming's options come to before anything is loaded: its tasks, labels, recipe and piece."""

from __future__ import annotations

from typing import Any

import pytest

from subnetune import methods
from subnetune.core.errors import UsageError
from subnetune.core.recipe import Recipe, Scope
from subnetune.experiment.priming import PrimeConfig
from subnetune.experiment.priming.plan import gradient_evaluations, make_plan
from subnetune.prepare.prime import Prime

GIVEN = {"tasks": "ner:en,ner:de", "for": "bitfit", "output": "primed"}


def plan_of(**changed: Any) -> Any:
    return make_plan(PrimeConfig.from_values({**GIVEN, **changed}))


def test_the_piece_is_what_the_options_say() -> None:
    plan = plan_of(
        outer="@layers",
        freeze="@bias",
        clip=0,
        algorithm="reptile",
        steps=7,
        support=2,
        keep=0.3,
        **{"for": "child-tuning-d"},
    )
    assert plan.recipe == methods.child_tuning_d(keep=0.3)
    assert plan.prime == Prime(
        ("ner:en", "ner:de"),
        methods.child_tuning_d(keep=0.3),
        outer=Scope(("@layers",), exclude=("@bias",)),
        algorithm="reptile",
        steps=7,
        clip=None,
        support=2,
    )
    assert plan.task.kind == "tokens"
    assert set(plan.task.labels) == {"O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG"}


def test_matched_heads_have_all_labels_in_the_order_of_their_first_appearance() -> None:
    plan = plan_of(tasks="mnli,rte", head="matched")
    assert plan.task.labels == ("entailment", "neutral", "contradiction", "not_entailment")
    assert plan.prime.classes == ((0, 1, 2), (0, 3))
    assert plan_of(tasks="mnli,rte", head="matched").prime.head == "matched"


def test_names_are_the_tasks_own() -> None:
    assert plan_of(tasks="SST-2").prime.tasks == ("sst2",)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tasks": None}, "needs tasks: give --tasks"),
        ({"for": None}, "needs for: give --for METHOD"),
        ({"output": None}, "needs output: give --output"),
        ({"tasks": "rte,nothing"}, "unknown task 'nothing'"),
        ({"tasks": "sst2,sst-2"}, "a task is named twice"),
        ({"for": "bitfitt"}, "unknown method 'bitfitt'.*bitfit"),
        ({"keep": 0.3}, "method 'bitfit' has no option 'keep'"),
        ({"peft_config": "x.json"}, "--peft-config describes an adapter, and method 'bitfit' adds none"),
        ({"tasks": "rte,ner:en"}, "of one kind: rte is classification, ner:en is tokens"),
        ({"tasks": "rte,stsb"}, "of one kind: rte is classification, stsb is regression"),
        ({"tasks": "rte,sst2"}, "rte has the labels entailment, .*cannot be shared.*--head matched"),
        ({"tasks": "rte,mnli", "head": "fresh"}, "a fresh head is drawn for one set of labels.*--head matched"),
        ({"tasks": "stsb", "head": "matched"}, "--head matched is for classes, and stsb has scores"),
        ({"algorithm": "maml", "inner_steps": 0}, "without any, fomaml is joint training"),
        ({"for": "dps-dense"}, "Staged.*chooses by the gradients of a whole run"),
        ({"for": "mixout", "algorithm": "maml"}, "differentiates the inner steps"),
        ({"algorithm": "reptile", "inner_rates": "learned"}, "reptile has no gradient for inner.rates"),
    ],
    ids=lambda value: "-".join(f"{k}-{v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_refused_before_anything_is_loaded(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_plan(PrimeConfig.from_values({name: v for name, v in {**GIVEN, **changed}.items() if v is not None}))


@pytest.mark.parametrize(
    ("algorithm", "inner_steps", "query", "support", "count"),
    [
        ("fomaml", 5, 1, None, 6),
        ("fomaml", 0, 2, None, 2),
        ("reptile", 5, 1, None, 5),
        ("maml", 5, 1, None, 11),
        ("imaml", 5, 1, 2, 20),
    ],
)
def test_gradient_evaluations(algorithm: str, inner_steps: int, query: int, support: int | None, count: int) -> None:
    prime = Prime(("a",), Recipe(), algorithm=algorithm, inner_steps=inner_steps, query=query, support=support)
    assert gradient_evaluations(prime) == 4 * count
