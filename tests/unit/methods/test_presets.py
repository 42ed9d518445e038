"""Presets: what they select on real architectures, what they refuse, and cards that say all there is to say."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch
from torch import nn

from pieces import recipe_namespace
from subnetune import methods
from subnetune.core.errors import UsageError
from subnetune.core.recipe import Recipe, Structural
from subnetune.core.scope import resolve
from subnetune.core.structure import Structure
from subnetune.methods.bias_terms import TERMS
from subnetune.methods.card import DEFAULT_ANSWERS, Card, Defaults
from subnetune.score.fisher import Fisher
from subnetune.select.bernoulli import Bernoulli
from subnetune.select.top import Top
from subnetune.tuning import Tuning
from subnetune.update.hold_unselected import HoldUnselected
from subnetune.update.mask_gradient import MaskGradient
from tiny import KINDS, batches, tiny

CARDS = [method.card for method in methods.METHODS.values()]


def scope(recipe: Recipe, model: nn.Module) -> tuple[set[str], set[str], set[str]]:
    for piece in recipe.prepare:
        if isinstance(piece, Structural):
            piece.restructure(model)
    found = resolve(recipe.scope, Structure(model))
    return set(found.selected), set(found.whole), set(found.frozen)


def trained_names(model: nn.Module, recipe: Recipe) -> set[str]:
    selected, whole, _ = scope(recipe, model)
    return selected | whole


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_preset_is_a_value_and_its_function_is_exported(name: str) -> None:
    method = methods.get(name)
    recipe = method.preset()
    assert eval(repr(recipe), recipe_namespace()) == recipe
    assert hash(recipe) == hash(method.preset())
    assert getattr(methods, name.replace("-", "_")) is method.preset
    assert name.replace("-", "_") in methods.__all__
    assert method.options == tuple(inspect.signature(method.preset).parameters)
    assert all(p.default is not inspect.Parameter.empty for p in inspect.signature(method.preset).parameters.values())


# Architectures of other names and other kinds of layers; the default run leaves out those that are BERT's in these.
UNLIKE = ("bert", "deberta-v2", "albert", "gpt2", "llama", "t5")


@pytest.mark.parametrize("name", methods.METHODS)
@pytest.mark.parametrize("kind", [pytest.param(k, marks=() if k in UNLIKE else pytest.mark.slow) for k in KINDS])
def test_every_preset_binds_to_every_architecture_or_says_why_not(kind: str, name: str) -> None:
    model = tiny(kind)
    if name == "bitfit" and kind in ("llama", "t5"):  # T5 has biases in its new head alone
        with pytest.raises(UsageError, match="no bias parameters"):
            trained_names(model, methods.bitfit())
        return
    if name == "top-k-layers" and kind == "albert":
        with pytest.raises(UsageError, match="this model's 1 layers"):  # one block, used in every layer
            trained_names(model, methods.top_k_layers())
        return
    if name == "ulmfit" and kind == "t5":
        with pytest.raises(UsageError, match="ConcatPooling"):  # whose head is no one layer
            trained_names(model, methods.ulmfit())
        return
    assert trained_names(model, methods.get(name).preset())


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_cards_say_all_there_is_to_say(card: Card) -> None:
    assert methods.METHODS[card.name].card is card
    text = card.text(width=90)
    assert max(map(len, text.splitlines())) <= 90
    for part in (card.name, card.title, f"{card.defaults.lr:g}", "leaks", "formula", "source", "scope"):
        assert part in text
    labels = [line[:12].strip() for line in text.splitlines()]
    for part in (*DEFAULT_ANSWERS, "published", "differs", "found", "cost", "defaults"):
        assert part in labels, f"{part} is not printed"
    assert card.differs_from_release
    assert card.arxiv is None or card.arxiv in " ".join(text.split())
    assert (card.leaks is None) == ("keeps its bits" in " ".join(text.split()).split("leaks")[1].split("differs")[0])


def test_a_card_that_leaks_nothing_holds_what_it_does_not_select() -> None:
    for name, method in methods.METHODS.items():
        recipe = method.preset()
        held = recipe.selector is None or HoldUnselected() in recipe.update
        assert held == (method.card.leaks is None), name


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'child-tuning-d'"):
        methods.get("child_tuning_d")
    with pytest.raises(UsageError, match="methods are full, head-only"):
        methods.get("???")


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"lr": 1e-3, "warmup": 1.0}, {"lr": 1e-3, "schedule": "cosine"}])
def test_wrong_defaults_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Defaults(**wrong)  # type: ignore[arg-type]


def test_full_and_head_only() -> None:
    model = tiny("bert")
    everything = {name for name, _ in model.named_parameters()}
    head = {"classifier.weight", "classifier.bias"}
    assert scope(methods.full(), model) == (everything - head, head, set())
    assert scope(methods.head_only(), model) == (set(), head, everything - head)
    assert trained_names(tiny("gpt2", "CausalLM"), methods.full()) == set(Structure(tiny("gpt2", "CausalLM")).names)


def test_no_decay_on_biases_and_norms() -> None:
    optimizer = Tuning(methods.full(), tiny("bert")).optimizer(torch.optim.AdamW, lr=1e-3, weight_decay=0.1)
    decay = {name: g["weight_decay"] for g in optimizer.param_groups for name in g["param_names"]}
    for name, value in decay.items():
        assert value == (0.0 if name.endswith("bias") or "LayerNorm" in name else 0.1), name


@pytest.mark.parametrize("k", [1, 3, 4])
def test_top_k_layers(k: int) -> None:
    model = tiny("bert")  # four layers
    trained = trained_names(model, methods.top_k_layers(k))
    layers = {n.split(".layer.")[1].split(".")[0] for n in trained if ".layer." in n}
    assert layers == {str(i) for i in range(4 - k, 4)}
    assert "bert.pooler.dense.weight" in trained
    assert "classifier.weight" in trained
    assert not any("embeddings" in name for name in trained)


def test_top_k_layers_refuses_what_cannot_be() -> None:
    with pytest.raises(UsageError, match="this model's 4 layers"):
        trained_names(tiny("bert"), methods.top_k_layers(5))
    for k in (0, -1, 2.0, True):
        with pytest.raises(UsageError, match="k must be a whole number"):
            methods.top_k_layers(k)  # type: ignore[arg-type]


def test_child_tuning_f_selects_every_parameter() -> None:
    model = tiny("bert")
    selected, whole, frozen = scope(methods.child_tuning_f(), model)
    assert selected == {name for name, _ in model.named_parameters()}
    assert not whole
    assert not frozen


@pytest.mark.parametrize(
    ("options", "update"),
    [
        ({}, (MaskGradient(rescale=True),)),
        ({"rescale": False}, (MaskGradient(),)),
        ({"exact": True}, (MaskGradient(rescale=True), HoldUnselected())),
        ({"exact": True, "mask_gradient": False}, (HoldUnselected(),)),
    ],
)
def test_child_tuning_f_variants(options: dict[str, bool], update: tuple[object, ...]) -> None:
    recipe = methods.child_tuning_f(0.2, unit="row", **options)  # type: ignore[arg-type]
    assert recipe.update == update
    assert recipe.selector == Bernoulli(0.2, unit="row")


def test_child_tuning_f_that_masks_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="masks nothing unless exact=True"):
        methods.child_tuning_f(mask_gradient=False)


@pytest.mark.parametrize(
    ("embeddings", "where"), [(None, "frozen"), ("frozen", "frozen"), ("whole", "whole"), ("selected", "selected")]
)
def test_child_tuning_d_embeddings(embeddings: str | None, where: str) -> None:
    model = tiny("bert")
    parts = dict(
        zip(("selected", "whole", "frozen"), scope(methods.child_tuning_d(embeddings=embeddings), model), strict=True)
    )
    tables = {name for name, _ in model.named_parameters() if name.startswith("bert.embeddings")}
    assert tables <= parts[where]
    assert {name for name, _ in model.named_parameters() if ".layer." in name} <= parts["selected"]
    assert {"bert.pooler.dense.weight", "classifier.bias"} <= parts["whole"]
    with pytest.raises(UsageError, match="embeddings must be one of"):
        methods.child_tuning_d(embeddings="some")


def test_child_tuning_d_release_fields() -> None:
    recipe = methods.child_tuning_d(0.2, release=True)
    assert recipe.selector == Top(Fisher("batch", "true", "train", 1.0), 0.2)
    assert recipe.update == (MaskGradient(clip_first=True),)
    assert recipe.scope == methods.child_tuning_d(embeddings="whole").scope
    changed = methods.child_tuning_d(
        0.2, release=True, embeddings="frozen", mode="eval", fisher_clip=0.5, exact=True, estimator="per-sample"
    )
    assert changed.selector == Top(Fisher("per-sample", "true", "eval", 0.5), 0.2)
    assert changed.update == (MaskGradient(clip_first=True), HoldUnselected())
    assert changed.scope == methods.child_tuning_d().scope


def test_child_tuning_d_holds_every_unselected_entry_through_decay_and_clipping() -> None:
    model, data = tiny("bert"), batches(20)
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    tuning = Tuning(methods.child_tuning_d(keep=0.3), model, batches=data[:4])
    optimizer = tuning.optimizer(torch.optim.AdamW, lr=1e-3, weight_decay=0.1)
    for batch in data:
        tuning.forward(batch).loss.backward()
        tuning.clip(1.0)
        assert tuning.step(optimizer)
        optimizer.zero_grad()
    mask, (selected, whole, frozen) = tuning.mask, scope(tuning.recipe, model)
    assert mask is not None
    moved = {name: (p.detach() != base[name]) for name, p in model.named_parameters()}
    assert not any(moved[name].any() for name in frozen)
    assert not any((moved[name] & ~mask[name]).any() for name in selected)
    assert sum(int(moved[name].sum()) for name in selected) > 0.25 * sum(base[name].numel() for name in selected)
    assert all(moved[name].any() for name in whole)


_FOUR = dict.fromkeys(("query", "key", "value", "attention-output", "intermediate", "output"), 4)
BITFIT_TERMS = {  # kind -> the terms that it has, with the number of biases outside the head that each means
    "bert": {**_FOUR, "norms": 9, "pooler": 1},
    "roberta": {**_FOUR, "norms": 9},
    "electra": {**_FOUR, "norms": 9},
    "deberta-v2": {**_FOUR, "norms": 9, "pooler": 0},  # its pooler belongs to the head
    "distilbert": {**_FOUR, "norms": 9},
    "albert": {**dict.fromkeys(_FOUR, 1), "norms": 3, "pooler": 1},  # one block, used four times
    "gpt2": {"attention-output": 4, "intermediate": 4, "output": 4, "norms": 9},
    "qwen2": {"query": 4, "key": 4, "value": 4},
}


@pytest.mark.parametrize("kind", BITFIT_TERMS)
def test_bitfit_terms_mean_one_bias_each_and_never_leak(kind: str) -> None:
    model = tiny(kind)
    head = scope(methods.head_only(), model)[1]
    seen: dict[str, str] = {}
    for term, count in BITFIT_TERMS[kind].items():
        names = trained_names(model, methods.bitfit((term,))) - head
        assert len(names) == count, (term, sorted(names))
        for name in names:
            assert name.endswith("bias")
            assert seen.setdefault(name, term) == term, f"{name} is both {seen[name]} and {term}"


@pytest.mark.parametrize(
    ("kind", "term"), [("gpt2", "query"), ("qwen2", "output"), ("llama", "norms"), ("t5", "query")]
)
def test_a_term_that_the_model_does_not_have_is_refused(kind: str, term: str) -> None:
    with pytest.raises(UsageError, match="matches no parameter|no bias parameters"):
        trained_names(tiny(kind), methods.bitfit((term,)))


def test_bitfit_trains_biases_and_head_only() -> None:
    model = tiny("bert")
    trained = trained_names(model, methods.bitfit())
    assert trained == {name for name, _ in model.named_parameters() if name.endswith("bias")} | {"classifier.weight"}
    assert len(trained_names(model, methods.bitfit(("query", "intermediate")))) == 8 + 2


@pytest.mark.parametrize("terms", [(), ["query"], "query"])
def test_bitfit_terms_are_a_tuple(terms: object) -> None:
    with pytest.raises(UsageError, match="non-empty tuple"):
        methods.bitfit(terms)  # type: ignore[arg-type]


def test_an_unknown_term_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'query'"):
        methods.bitfit(("querry",))
    assert set(TERMS) == {"query", "key", "value", "attention-output", "intermediate", "output", "norms", "pooler"}


def trained_entries(recipe: Recipe, model: nn.Module) -> int:
    tuning = Tuning(recipe, model)
    tuning.start()
    total = tuning.describe().trained
    head = sum(p.numel() for name, p in model.named_parameters() if name.startswith("classifier"))
    tuning.close()
    return total - head


def test_random_subset_counts() -> None:
    model = tiny("bert")
    body = {n: p.numel() for n, p in model.named_parameters() if "embeddings" not in n and "classifier" not in n}
    assert trained_entries(methods.random_subset(count=1234), model) == 1234
    assert trained_entries(methods.random_subset(keep=0.1), model) == sum(max(1, n // 10) for n in body.values())
    assert trained_entries(methods.random_subset(), model) >= len(body)
    with pytest.raises(UsageError, match="keep or count, not both"):
        methods.random_subset(keep=0.1, count=5)


def test_random_rows_columns_trains_lines_norms_and_head() -> None:
    model = tiny("bert")
    tuning = Tuning(methods.random_rows_columns(2), model)
    mask = tuning.mask
    assert mask is not None
    for name, m in mask.items():
        p = dict(model.named_parameters())[name]
        full = m.expand(p.shape)
        if p.dim() == 2:
            assert int(full.sum()) in (2 * p.shape[0], 2 * p.shape[1])
        else:
            assert bool(full.all()) == ("LayerNorm.weight" in name)
            assert bool(full.any()) == ("LayerNorm.weight" in name)
    assert not any("embeddings" in name for name in mask)


def test_presets_warn_of_nothing_on_a_sound_model() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, method in methods.METHODS.items():
            tuning = Tuning(method.preset(), tiny("bert"), batches=batches(2), steps=20)
            tuning.start()
            assert tuning.describe().trained > 0, name
