"""The conformance table: one row a method. A contributor adds ONE row to `ROWS`; every property then runs on it.

A row names the preset and its options, the options that make it select everything, and, in words that share nothing
with the library (a predicate over parameter names), what must train then. Models are tiny and random, but for one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import shared_folder
from subnetune.core.recipe import Recipe, Selector
from subnetune.core.types import Batch
from subnetune.experiment.recipes import add_pieces
from subnetune.methods import METHODS
from subnetune.prepare.prime import Prime
from subnetune.tuning import Tuning
from tiny import batches, bits, tiny, without_dropout

Trains = Callable[[str, Tensor], bool]


def head(name: str, p: Tensor) -> bool:
    """The classifier of a sequence classification model (BERT's, Llama's)."""
    return name.startswith(("classifier.", "score."))


def embedding(name: str, p: Tensor) -> bool:
    """Tables, their norm, and the output embedding, by the names that our test models give them."""
    return any(part in name for part in (".embeddings.", "embed_tokens", "shared.", "lm_head"))


def everything(name: str, p: Tensor) -> bool:
    return True


def no_embedding(name: str, p: Tensor) -> bool:
    return not embedding(name, p)


def no_norm(name: str, p: Tensor) -> bool:
    return "norm" not in name.lower()


def bias_or_head(name: str, p: Tensor) -> bool:
    return name.endswith("bias") or head(name, p)


def last_layer_and_above(name: str, p: Tensor) -> bool:
    return no_embedding(name, p) and ".layer.0." not in name and ".layers.0." not in name


def lines(name: str, p: Tensor) -> bool:
    """Matrices, the weights of norms, the head: what random rows and columns may choose from."""
    return no_embedding(name, p) and (head(name, p) or not name.endswith("bias"))


def adapter_or_head(name: str, p: Tensor) -> bool:
    return ".lora_" in name or ".ia3_" in name or head(name, p)


def adapter(**fields: Any) -> Callable[[nn.Module], None]:
    """Put PEFT's layers into the plain model, drawn from the seed that `Case.tuning` gives."""

    def inject(model: nn.Module) -> None:
        peft = pytest.importorskip("peft")
        with torch.random.fork_rng():
            torch.manual_seed(3)
            peft.inject_adapter_in_model(peft.get_peft_config(fields), model)

    return inject


@dataclass(frozen=True, eq=False)  # one object a row: hashed by identity, whatever its options hold
class Row:
    """One method in one setting, or with pieces added to it.

    options, all: keyword arguments of the preset, for a partial selection and for the one that selects everything.
    pieces, neutral: texts of added pieces as on the command line, and those under which they change nothing.
    trains: what trains when everything is selected, from a parameter's name. leaks: unselected entries do move, as the
    card says. refuses: models on which binding is a UsageError. extra: models beside BERT and Llama, or beside BERT
    where there are pieces. by_hand: makes the recipe's lasting change of the modules in the plain model. priming:
    fields of a `Prime` for the method itself, which has a rate of zero where everything is selected.
    """

    id: str
    method: str
    trains: Trains
    options: dict[str, Any] = field(default_factory=dict)
    all: dict[str, Any] = field(default_factory=dict)
    leaks: bool = False
    refuses: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    pieces: tuple[str, ...] = ()
    neutral: tuple[str, ...] = ()
    by_hand: Callable[[nn.Module], None] = lambda model: None
    priming: dict[str, Any] | None = None

    @property
    def models(self) -> tuple[str, ...]:
        return ("bert", *(() if self.pieces or self.priming else ("llama",)), *self.extra)

    def recipe(self) -> Recipe:
        return self._primed(add_pieces(METHODS[self.method].preset(**self.options), self.pieces, self.method))

    def selecting_everything(self) -> Recipe:
        whole = METHODS[self.method].preset(**{**self.options, **self.all})
        return self._primed(add_pieces(whole, self.neutral, self.method), lr=0.0)

    def _primed(self, recipe: Recipe, **changes: Any) -> Recipe:
        if self.priming is None:
            return recipe
        piece = Prime(("a", "b"), recipe, **{**SHORT, **self.priming, **changes})
        return replace(recipe, prepare=(*recipe.prepare, piece))


ALL = {"keep": 1.0}
F, D = "child-tuning-f", "child-tuning-d"
PLAIN_SHARE = {"k": 100.0, "t0": 0}  # RecAdam's share of the task is exactly 1 from the first step on
ROWS = (
    Row("full", "full", everything, extra=("llama-lm", "t5")),
    Row("head-only", "head-only", head),
    Row("top-k-layers", "top-k-layers", last_layer_and_above, {"k": 1}),
    Row("bitfit", "bitfit", bias_or_head, refuses=("llama",)),
    Row(
        "bitfit-terms",
        "bitfit",
        lambda name, p: head(name, p) or name.endswith(("query.bias", "intermediate.dense.bias")),
        {"terms": ("query", "intermediate")},
        refuses=("llama",),
    ),
    Row("f", F, everything, {"keep": 0.3}, ALL, leaks=True, extra=("llama-lm", "stories", "t5")),
    Row("f-exact", F, everything, {"keep": 0.3, "exact": True}, ALL),
    Row("f-rows", F, everything, {"keep": 0.3, "unit": "row", "exact": True, "mask_gradient": False}, ALL),
    Row("f-blocks", F, everything, {"keep": 0.3, "unit": "block", "block": 8, "exact": True}, ALL),
    Row("d", D, no_embedding, {"keep": 0.2}, ALL, extra=("llama-lm", "stories", "t5")),
    Row("d-rows", D, no_embedding, {"keep": 0.2, "unit": "row"}, ALL),
    Row("d-columns", D, no_embedding, {"keep": 0.2, "unit": "column", "per": "tensor"}, ALL),
    Row("d-blocks", D, no_embedding, {"keep": 0.2, "unit": "block", "block": 8}, ALL),
    Row("d-whole", D, everything, {"keep": 0.2, "embeddings": "whole"}, ALL),
    Row("d-selected", D, everything, {"keep": 0.2, "embeddings": "selected", "per": "tensor"}, ALL),
    Row("d-samples", D, no_embedding, {"keep": 0.2, "estimator": "per-sample", "labels": "sampled", "samples": 6}, ALL),
    Row("d-release", D, everything, {"keep": 0.2, "release": True}, ALL, leaks=True),
    Row("fish", "fish", everything, {"keep": 0.05, "samples": 7}, ALL),
    Row("fish-sampled", "fish", everything, {"count": 300, "labels": "sampled"}, {"count": None, **ALL}),
    Row("lt-sft", "lt-sft", no_norm, {"keep": 0.1, "steps": 4, "dense_lr": 1e-3}, ALL),
    Row(
        "lt-sft-norms",
        "lt-sft",
        everything,
        {"count": 500, "dense_lr": 1e-3, "freeze_norms": False},
        {"count": None, "steps": 1, **ALL},
    ),
    Row("random-subset", "random-subset", no_embedding, {"keep": 0.01}, ALL),
    Row("random-count", "random-subset", no_embedding, {"count": 500}, {"count": None, "keep": 1.0}),
    Row(
        "random-release",
        "random-subset",
        no_embedding,
        {"count": 2000, "release": True},
        {"count": None, "keep": 1.0, "release": False},
    ),
    Row(
        "bitfit-release",
        "bitfit",
        lambda name, p: head(name, p) or name.endswith(("output.dense.bias", "pooler.dense.bias")),
        {"terms": ("output",), "release": True},
        refuses=("llama",),
    ),
    Row("random-rows-columns", "random-rows-columns", lines, {"count": 2}, {"count": 10**6}),
    Row("recadam", "recadam", everything, {"gamma": 20.0}, PLAIN_SHARE, extra=("llama-lm", "t5")),
    Row("recadam-release", "recadam", everything, {"k": 0.5, "t0": 4, "gamma": 20.0, "release": True}, PLAIN_SHARE),
    Row("recadam-linear", "recadam", everything, {"gamma": 20.0, "anneal": "linear"}, PLAIN_SHARE),
    Row("weight-decay", "weight-decay", everything, {"rate": 2.0}, {"rate": 0.0, "plain": True}, extra=("llama-lm",)),
    Row("weight-decay-plain", "weight-decay", everything, {"rate": 2.0, "plain": True}, {"rate": 0.0}),
    Row("noisy-tune", "noisy-tune", everything, {"strength": 0.15}, {"strength": 0.0}, extra=("llama-lm", "t5")),
    Row("noisy-matrices", "noisy-tune", everything, {"tensors": "matrices"}, {"strength": 0.0}),
    Row("dps-dense", "dps-dense", everything, {"keep": 0.7}, ALL, leaks=True, extra=("llama-lm",)),
    Row("dps-dense-exact", "dps-dense", everything, {"keep": 0.3, "cycle": 0.2, "per": "model", "exact": True}, ALL),
    Row("dps-mix", "dps-mix", everything, {"keep": 0.7}, ALL, leaks=True, extra=("llama-lm",)),
    Row("dps-mix-release", "dps-mix", everything, {"keep": 0.5, "cycle": 0.2, "release": True}, ALL, leaks=True),
    Row(
        "dps-mix-exact",
        "dps-mix",
        everything,
        {"keep": 0.5, "cycle": 0.4, "explore": 0.3, "frequency_penalty": True, "dropout": None, "exact": True},
        ALL,
    ),
    Row(
        "lora",
        "lora",
        adapter_or_head,
        {"r": 4},
        extra=("llama-lm", "t5"),
        by_hand=adapter(peft_type="LORA", r=4, lora_alpha=16),
    ),
    Row(
        "lora-ia3",
        "lora",
        adapter_or_head,
        {"peft_config": {"peft_type": "IA3"}},
        by_hand=adapter(peft_type="IA3"),
    ),
    Row("r-drop", "r-drop", everything, {"weight": 0.7}, {"weight": 0.0}, extra=("t5",)),
    Row("r-drop-release", "r-drop", everything, {"release": True}, {"weight": 0.0}),
    Row("r3f", "r3f", everything, {"sigma": 0.1}, {"weight": 0.0}, extra=("llama-lm", "t5")),
    Row("r3f-normal", "r3f", everything, {"sigma": 0.1, "noise": "normal", "weight": 0.5}, {"sigma": 0.0}),
    Row("l2-sp", "l2-sp", everything, {"weight": 0.1}, {"weight": 0.0}, extra=("llama-lm", "t5")),
    Row("hype", "hype", everything, {"sigma": 0.1}, {"sigma": 0.0}, extra=("llama-lm", "t5")),
    Row("hype-dropout", "hype", everything, {"noise": "normal", "dropout": None}, {"sigma": 0.0}),
    Row(
        "gradual-unfreezing",
        "gradual-unfreezing",
        everything,
        {"within": 0.3},
        {"within": 0.0},
        extra=("llama-lm", "stories", "t5"),
    ),
    Row(
        "gradual-unfreezing-rates",
        "gradual-unfreezing",
        everything,
        {"every": 0.1, "per_layer": 2.0},
        {"every": None, "within": 0.0, "per_layer": 1.0},
    ),
    Row(
        "ulmfit",
        "ulmfit",
        everything,
        {"within": 0.3, "hidden": 8},
        {"unfreeze": False, "within": None, "pooling": False, "per_layer": 1.0},
    ),
    Row(
        "ulmfit-rates",
        "ulmfit",
        everything,
        {"unfreeze": False, "pooling": False},
        {"per_layer": 1.0},
        extra=("t5",),
    ),
    Row("mixout", "mixout", everything, {"keep": 0.7}, ALL, leaks=True, extra=("llama-lm", "t5")),
    Row("mixout-entry", "mixout", everything, {"keep": 0.6, "unit": "entry", "tensors": "all"}, ALL, leaks=True),
    Row("mixout-release", "mixout", everything, {"keep": 0.7, "release": True}, ALL, leaks=True),
)
COMBINATIONS = (
    Row("d+r-drop", D, no_embedding, {"keep": 0.2}, ALL, pieces=("r-drop:weight=0.7",), neutral=("r-drop:weight=0",)),
    Row(
        "f+l2-sp",
        F,
        everything,
        {"keep": 0.3},
        ALL,
        leaks=True,
        extra=("llama",),
        pieces=("l2-sp:weight=0.1",),
        neutral=("l2-sp:weight=0",),
    ),
    Row(
        "f+mixout",
        F,
        everything,
        {"keep": 0.5, "mask_gradient": False, "exact": True},
        ALL,
        pieces=("mixout",),
        neutral=("mixout",),
    ),
    Row("bitfit+r3f", "bitfit", bias_or_head, pieces=("r3f:sigma=0.1",), neutral=("r3f:sigma=0",)),
    Row(
        "full+recadam+r-drop",
        "full",
        everything,
        pieces=("recadam:gamma=20.0", "r-drop"),
        neutral=("recadam:k=100.0,t0=0", "r-drop:weight=0"),
        extra=("llama",),
    ),
    Row(
        "top-k+noisy-tune",
        "top-k-layers",
        last_layer_and_above,
        {"k": 1},
        pieces=("noisy-tune:where=selected",),
        neutral=("noisy-tune:strength=0",),
    ),
    Row(
        "d+recadam+l2-sp+set-dropout",  # what moves values stands inside what holds them
        D,
        no_embedding,
        {"keep": 0.2},
        ALL,
        pieces=("recadam:gamma=20.0", "l2-sp:weight=0.1", "set-dropout:p=0.2"),
        neutral=("recadam:k=100.0,t0=0", "l2-sp:weight=0"),
    ),
    Row(
        "random+weight-decay+hype+r-drop",
        "random-subset",
        no_embedding,
        {"keep": 0.1},
        ALL,
        pieces=("weight-decay:rate=2.0", "hype:sigma=0.1", "r-drop"),
        neutral=("weight-decay:rate=0,plain=true", "hype:sigma=0", "r-drop:weight=0"),
    ),
    Row(
        "dps-dense+r3f",
        "dps-dense",
        everything,
        {"keep": 0.5, "cycle": 0.2},
        ALL,
        leaks=True,
        pieces=("r3f:sigma=0.1", "l2-sp:weight=0.1"),
        neutral=("r3f:weight=0", "l2-sp:weight=0"),
    ),
)
SHORT = {"steps": 2, "task_batch": 1, "inner_steps": 1, "inner_lr": 0.05, "lr": 1e-3}
PRIMED = (  # for what they then do
    Row("prime+bitfit", "bitfit", bias_or_head, priming={"inner_rates": "learned"}),
    Row("prime+d", D, no_embedding, {"keep": 0.2}, ALL, priming={"dropout": True, "head": "fresh"}),
    Row(
        "prime+lora",
        "lora",
        adapter_or_head,
        {"r": 4},
        by_hand=adapter(peft_type="LORA", r=4, lora_alpha=16),
        priming={"algorithm": "reptile", "weight_decay": 0.1},
    ),
)
ROWS = (*ROWS, *COMBINATIONS, *PRIMED)

_SMALL = {"num_hidden_layers": 2}
MODELS: dict[str, tuple[str, Callable[[], nn.Module]]] = {  # name -> (task, a fresh model in training mode)
    "bert": ("SequenceClassification", lambda: tiny("bert", **_SMALL)),
    "llama": ("SequenceClassification", lambda: tiny("llama", **_SMALL, attention_dropout=0.1)),
    "llama-lm": ("CausalLM", lambda: tiny("llama", "CausalLM", **_SMALL, tie_word_embeddings=True)),
    "t5": ("Seq2SeqLM", lambda: tiny("t5", "Seq2SeqLM", num_layers=2, num_decoder_layers=2)),
    "stories": ("CausalLM", lambda: stories()),
}


def stories() -> nn.Module:
    """A real, tiny decoder, in training mode; the test skips where it is absent."""
    from transformers import AutoModelForCausalLM

    folder = shared_folder("models", "stories260K-llama")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()


def still(model: nn.Module) -> nn.Module:
    """Switch every dropout of the model off, in place; some attentions keep their rate as a plain number."""
    for module in without_dropout(model).modules():
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


@dataclass(frozen=True)
class Case:
    """A row on a model."""

    row: Row
    model: str

    @property
    def id(self) -> str:
        return f"{self.row.id}-{self.model}"

    def build(self, dropout: bool = True) -> nn.Module:
        model = MODELS[self.model][1]()
        return model if dropout else still(model)

    def batches(self, count: int = 3, seed: int = 0) -> list[dict[str, Tensor]]:
        return batches(count, MODELS[self.model][0], seed=seed)

    def tuning(self, model: nn.Module, recipe: Recipe | None = None, **options: Any) -> Tuning:
        given: dict[str, Any] = {"batches": self.batches(), "steps": 20, "seed": 3, **options}
        if self.row.priming is not None:
            given["tasks"] = {"a": self.batches(3, seed=20), "b": self.batches(3, seed=21)}
        return Tuning(self.row.recipe() if recipe is None else recipe, model, **given)


CASES = [Case(row, model) for row in ROWS for model in row.models if model not in row.refuses]
REFUSED = [Case(row, model) for row in ROWS for model in row.refuses]
BERT_CASES = [case for case in CASES if case.model == "bert"]


FIRST = {row for row in ROWS if row is next(other for other in ROWS if other.method == row.method)}


def _turns() -> list[Case]:
    found: list[Case] = []
    for row in ROWS:
        if row in FIRST and (others := [case for case in CASES if case.row is row and case.model != "bert"]):
            found.append(min(others, key=lambda case: sum(case.model == one.model for one in found)))
    return found


TURNS = _turns()


def chosen(cases: Iterable[Case], quick: Callable[[Case], bool]) -> list[Any]:
    """The cases as parameters with their ids; the default run has those that are `quick`."""
    return [pytest.param(case, id=case.id, marks=() if quick(case) else pytest.mark.slow) for case in cases]


def each_row_once(case: Case) -> bool:
    """Every row on BERT, Child-Tuning-D on all models, and each other method's first row on one more, in turn."""
    return case.model == "bert" or case.row.id == "d" or case in TURNS


def each_method_once(case: Case) -> bool:
    """Of `each_row_once` what is no variant of a method that is there already: combinations are no variants."""
    return each_row_once(case) and (case.row in FIRST or case.row in COMBINATIONS)


def ids(cases: Iterable[Case]) -> list[str]:
    return [case.id for case in cases]


def train(
    tuning: Tuning,
    optimizer: torch.optim.Optimizer,
    data: Iterable[Batch],
    *,
    clip: float | None = 1.0,
    model: nn.Module | None = None,
) -> None:
    """The plain loop of a user."""
    for batch in data:
        tuning.forward(batch, model=model).loss.backward()
        if clip is not None:
            tuning.clip(clip)
        tuning.step(optimizer)
        optimizer.zero_grad()


@dataclass(frozen=True)
class Run:
    """What the first half of a run leaves behind, for several properties to look at."""

    model: nn.Module
    tuning: Tuning
    keys: list[str]  # of the bound model's state_dict, before
    before: dict[str, Tensor]  # parameters of the base, by name
    prepared: dict[str, Tensor]  # and of the model that the run began with
    masks: list[dict[str, Tensor]]  # of each step, expanded; empty without a selector


def learns(recipe: Recipe) -> bool:
    """Whether the masks follow from the gradients of the run, so that other data makes other masks."""
    return recipe.selector is not None and type(recipe.selector).observe is not Selector.observe


def mask_now(tuning: Tuning) -> dict[str, Tensor]:
    """The mask of the step that is under way, at the shapes of the parameters."""
    live = tuning.live()
    if tuning.recipe.selector is None:
        return {}
    everything = dict.fromkeys(live.params, torch.tensor(True))  # what a selector means that gives no mask
    mask = everything if live.mask is None else live.mask
    return {n: mask[n].expand(p.shape).clone() for n, p in live.params.items()}


@functools.cache
def finished(case: Case) -> Run:
    """The first ten of twenty steps of AdamW with weight decay and clipping, dropout on. Shared: do not train on."""
    torch.manual_seed(11)
    model = case.build()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    tuning = case.tuning(model)
    keys = list(model.state_dict())
    optimizer = tuning.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
    prepared, masks = bits(model), []
    data = case.batches(5, seed=1) * 2
    for batch in data:
        masks.append(mask_now(tuning))
        train(tuning, optimizer, [batch])
    return Run(model, tuning, keys, before, prepared, masks)
