"""Per-sample Fisher by hooks equals the loop over examples, or is the loop: every model, every trap."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import subnetune.score.fisher as fisher_module
import subnetune.score.owners as owners_module
from pieces import Line, call, line_batches, setting
from subnetune.core.errors import NumericError
from subnetune.core.types import Batch, Forward, Output, Setting, default_forward
from subnetune.score.by_hooks import HookedBatch
from subnetune.score.example_formulas import formula_of
from subnetune.score.fisher import Fisher
from subnetune.score.owners import owners
from subnetune.score.per_sample import PerSample
from tiny import batch, batches, tiny

Scores = dict[str, Tensor]
Both = Callable[..., tuple[Scores, Scores, PerSample]]


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Both:
    """Score by the estimator as it is, and by its loop alone; return both scores and which way the first took."""

    def run(model: nn.Module, data: list[Batch], **changes: Any) -> tuple[Scores, Scores, PerSample]:
        fields = {name: changes.pop(name) for name in ("clip", "samples", "labels", "mode") if name in changes}
        fisher, at = Fisher("per-sample", **fields), setting(model, data, **{"forward": default_forward} | changes)
        made: list[PerSample] = []

        class Watched(PerSample):
            def __init__(self, *given: Any) -> None:
                super().__init__(*given)
                made.append(self)

        class Looped(PerSample):
            def __init__(self, *given: Any) -> None:
                super().__init__(*given)
                self.reason = "the test wants the loop"

        scores = []
        for kind in (Watched, Looped):
            with monkeypatch.context() as patch:
                patch.setattr(fisher_module, "PerSample", kind)
                scores.append(dict(fisher(at)))
        return scores[0], scores[1], made[0]

    return run


def check_equal(hooks: Scores, loop: Scores) -> None:
    """Compare the gradients' root mean squares, so that 1e-5 is 2e-5 of a score.

    An entry that is the small difference of large terms is off by the rounding of these: of its tensor's, or where the
    whole tensor cancels (a key's bias) of the model's.
    """
    assert list(hooks) == list(loop)
    largest = max(float(score.max()) for score in loop.values()) ** 0.5
    for name, score in loop.items():
        wanted = score.sqrt()
        slack = 1e-6 * float(wanted.max()) + 1e-7 * largest
        torch.testing.assert_close(hooks[name].sqrt(), wanted, rtol=1e-5, atol=slack, msg=lambda m, n=name: f"{n}: {m}")


def check_looped(result: tuple[Scores, Scores, PerSample], reason: str) -> None:
    hooks, loop, way = result
    assert way.hooked == 0
    assert way.looped > 0
    assert reason in way.reason
    assert list(hooks) == list(loop)
    assert all(torch.equal(hooks[name], loop[name]) for name in loop)


def uneven(task: str, count: int = 2) -> list[Batch]:
    """Batches of token labels, of which the examples have different numbers."""
    data = batches(count, task)
    for given in data:
        given["labels"] = given["labels"].clone()
        given["labels"][0, 3:] = -100
        given["labels"][2, :2] = -100
    return data


class Pooled(nn.Module):
    """Embeddings, a block, a mean over positions, a classifier; the loss is the mean over examples."""

    def __init__(self, block: nn.Module | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.words = nn.Embedding(11, 6, padding_idx=0)
            self.places = nn.Embedding(8, 6)
            self.block = block if block is not None else nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.LayerNorm(6))
            self.head = nn.Linear(6, 3)

    def logits(self, ids: Tensor) -> Tensor:
        hidden = self.words(ids) + self.places(torch.arange(ids.shape[1])[None])
        return self.head(self.block(hidden).mean(1))  # type: ignore[no-any-return]

    def forward(self, ids: Tensor, labels: Tensor) -> Output:
        logits = self.logits(ids)
        return Output(functional.cross_entropy(logits, labels), logits)


def pooled_batches(*labels: list[int], columns: int = 5) -> list[Batch]:
    """One batch for each list of labels; tokens repeat within an example, and the padding token is among them."""
    random = torch.Generator().manual_seed(0)
    return [
        {"ids": torch.randint(0, 4, (len(row), columns), generator=random), "labels": torch.tensor(row)}
        for row in labels
    ]


MIXED = ([0, 1, 2, 1], [2, 2, 0], [1])


QUICK = (("bert", "eager"), ("bert", "sdpa"), ("distilbert", "sdpa"), ("gpt2", "sdpa"), ("llama", "sdpa"))


@pytest.mark.parametrize(
    ("kind", "attention"),
    [
        pytest.param(kind, attention, marks=() if (kind, attention) in QUICK else pytest.mark.slow)
        for kind in ("bert", "roberta", "electra", "distilbert", "gpt2", "llama", "qwen2")
        for attention in ("eager", "sdpa")
    ],
)
def test_every_kind_of_model_gets_the_scores_of_the_loop(both: Both, kind: str, attention: str) -> None:
    model = tiny(kind)
    model.set_attn_implementation(attention)
    data = batches(2)
    data[1]["attention_mask"][1, :3] = 0  # padded on the left
    hooks, loop, way = both(model, data)
    assert (way.hooked, way.looped, way.reason) == (8, 0, "")
    check_equal(hooks, loop)
    tables = [name for name in loop if any(part in name for part in ("embed", "wte", "wpe")) and "Norm" not in name]
    assert len(tables) == {"bert": 3, "roberta": 3, "electra": 5, "distilbert": 2, "gpt2": 2}.get(kind, 1)
    assert all(float(hooks[name].max()) > 0 for name in tables)


@pytest.mark.parametrize("kind", ["llama", pytest.param("qwen2", marks=pytest.mark.slow)])
def test_a_mean_over_the_tokens_of_all_examples_is_taken_apart(both: Both, kind: str) -> None:
    hooks, loop, way = both(tiny(kind, "CausalLM"), uneven("CausalLM"))
    assert (way.hooked, way.looped, way.reason) == (8, 0, "")
    check_equal(hooks, loop)


@pytest.mark.parametrize(
    ("kind", "task"), [("bert", "MaskedLM"), pytest.param("t5", "Seq2SeqLM", marks=pytest.mark.slow)]
)
def test_the_layers_alone_of_a_model_whose_embeddings_are_tied(both: Both, kind: str, task: str) -> None:
    model = tiny(kind, task)
    names = [n for n, _ in model.named_parameters() if (".layer." in n or "block" in n) and "relative" not in n]
    hooks, loop, way = both(model, uneven(task), names=names)
    assert (way.hooked, way.looped, way.reason) == (8, 0, "")
    check_equal(hooks, loop)


@pytest.mark.parametrize(
    ("kind", "task", "reason"),
    [
        ("bert", "MaskedLM", "word_embeddings.weight' is used 2 times"),  # tied
        pytest.param("gpt2", "CausalLM", "wte.weight' is used 2 times", marks=pytest.mark.slow),
        ("albert", "SequenceClassification", "is used 4 times"),  # one layer, four times
        pytest.param("t5", "Seq2SeqLM", "shared.weight' is used 3 times", marks=pytest.mark.slow),
        pytest.param(
            "deberta-v2",
            "SequenceClassification",
            "pos_key_proj.weight' is used where no module has one row",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_is_used_more_than_once_or_for_all_examples_goes_to_the_loop(
    both: Both, kind: str, task: str, reason: str
) -> None:
    check_looped(both(tiny(kind, task), [batch(task)]), reason)


@pytest.mark.slow
def test_relative_positions_that_no_example_owns_go_to_the_loop(both: Both) -> None:
    model = tiny("t5", "Seq2SeqLM")
    name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    check_looped(both(model, [batch("Seq2SeqLM")], names=[name]), "is used where no module has one row")


def test_training_mode_goes_to_the_loop_as_its_dropout_is_each_examples_own(both: Both) -> None:
    check_looped(both(tiny("bert"), [batch()], mode="train"), "own dropout")


def test_tensors_of_unknown_modules_go_to_the_loop(both: Both) -> None:
    check_looped(both(Line(), line_batches((2, 3)), forward=call), "'weight' lies in a module of type Line")


@pytest.mark.parametrize("clip", [None, 1e-2, 0.3])
def test_small_modules_repeated_tokens_padding_and_clipping(both: Both, clip: float | None) -> None:
    hooks, loop, way = both(Pooled(), pooled_batches(*MIXED), forward=call, clip=clip)
    assert (way.hooked, way.looped, way.reason) == (7, 1, "")
    check_equal(hooks, loop)
    assert float(hooks["words.weight"][0].max()) == 0  # the padding token has no gradient
    assert float(hooks["places.weight"][:5].min()) > 0


@pytest.mark.parametrize(
    "block",
    [
        nn.Sequential(nn.Linear(6, 6), nn.RMSNorm(6)),
        nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU(inplace=True), nn.LayerNorm(6, bias=False)),
        nn.LayerNorm((5, 6)),
        nn.Sequential(nn.Linear(6, 70), nn.Linear(70, 6)),
    ],
    ids=["rms", "in-place", "two-axes", "wide"],
)
def test_norms_and_changes_in_place(both: Both, block: nn.Module) -> None:
    for index, p in enumerate(block.parameters()):
        torch.nn.init.normal_(p, std=0.5, generator=torch.Generator().manual_seed(index))
    hooks, loop, way = both(Pooled(block), pooled_batches(*MIXED[:2]), forward=call)
    assert (way.hooked, way.looped, way.reason) == (7, 0, "")
    check_equal(hooks, loop)


@pytest.mark.parametrize("way", [{"BLOCK": 13}, {"LOOPED": (), "MANY": 80}], ids=["two rows", "two examples"])
def test_matrices_are_taken_in_parts(both: Both, monkeypatch: pytest.MonkeyPatch, way: dict[str, object]) -> None:
    for name, value in way.items():
        monkeypatch.setattr(f"subnetune.score.example_sums.{name}", value)
    hooks, loop, way = both(Pooled(), pooled_batches(*MIXED[:2]), forward=call)
    assert way.reason == ""
    check_equal(hooks, loop)


@pytest.mark.parametrize(
    "names",
    [["words.weight"], ["places.weight"], ["block.0.weight"], ["block.0.bias", "head.bias"], ["block.2.weight"]],
    ids=lambda names: names[0],
)
def test_a_part_of_the_tensors(both: Both, names: list[str]) -> None:
    hooks, loop, way = both(Pooled(), pooled_batches(*MIXED[:2]), forward=call, names=names)
    assert (way.hooked, way.looped) == (7, 0)
    assert list(hooks) == names
    check_equal(hooks, loop)


def test_what_the_loss_does_not_use_has_no_score(both: Both) -> None:
    model = Pooled()
    model.spare = nn.Linear(3, 3)
    hooks, loop, way = both(model, pooled_batches(*MIXED[:2]), forward=call)
    assert way.hooked == 7
    assert "spare.weight" not in hooks
    check_equal(hooks, loop)


def test_the_budget_and_examples_without_a_label(both: Both) -> None:
    model = Pooled()
    data = pooled_batches([0, -100, 1, 2], [-100, 1, -100], [1, 2, 0])
    for samples, counted in ((None, 7), (3, 2), (7, 4)):
        hooks, loop, way = both(model, data, forward=call, samples=samples)
        assert way.hooked + way.looped == counted
        assert way.hooked > 0
        check_equal(hooks, loop)


@pytest.mark.parametrize("labels", ["classes", pytest.param("numbers", marks=pytest.mark.slow)])
def test_sampled_labels_are_those_of_the_loop(both: Both, labels: str) -> None:
    model = tiny("bert", num_labels=1 if labels == "numbers" else 3, num_hidden_layers=1)
    data = batches(3)
    if labels == "numbers":
        data = [{**given, "labels": given["labels"].float()} for given in data]
    hooks, loop, way = both(model, data, labels="sampled", samples=10)
    assert (way.hooked, way.looped) == (10, 0)
    check_equal(hooks, loop)
    true = both(model, data, samples=10)[0]
    assert not torch.allclose(true["classifier.weight"], hooks["classifier.weight"], rtol=1e-3)


def test_sampled_labels_do_not_depend_on_how_examples_are_batched() -> None:
    model, data = Pooled(), pooled_batches([0, -100, 1, 2, 0, 1])
    single = [{key: value[i : i + 1] for key, value in data[0].items()} for i in range(6)]
    fisher = Fisher("per-sample", "sampled")
    check_equal(*(dict(fisher(setting(model, given))) for given in (data, single)))


def test_low_precision_weights_are_summed_in_single_precision(both: Both) -> None:
    model = tiny("bert", num_hidden_layers=2).to(torch.bfloat16)
    exact = tiny("bert", num_hidden_layers=2)
    with torch.no_grad():
        for p, q in zip(exact.parameters(), model.parameters(), strict=True):
            p.copy_(q)
    data = batches(4)
    hooks, loop, way = both(model, data)
    assert (way.hooked, way.reason) == (16, "")
    wanted = Fisher("per-sample")(setting(exact, data, forward=default_forward))
    for name in ("classifier.weight", "bert.embeddings.word_embeddings.weight"):
        assert hooks[name].dtype == torch.float32
        torch.testing.assert_close(hooks[name].sum(), wanted[name].sum(), rtol=0.02, atol=0)
        torch.testing.assert_close(hooks[name].sum(), loop[name].sum(), rtol=0.02, atol=0)


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant, self.calls = inner, reentrant, 0

    def counted(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(hidden)  # type: ignore[no-any-return]

    def forward(self, hidden: Tensor) -> Tensor:
        return checkpoint(self.counted, hidden, use_reentrant=self.reentrant)  # type: ignore[no-any-return]


def test_activation_checkpointing_computes_its_part_again_and_changes_nothing(both: Both) -> None:
    wrapped = Checkpointed(nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.LayerNorm(6)), reentrant=False)
    model, data = Pooled(wrapped), pooled_batches(*MIXED[:2])
    hooks, loop, way = both(model, data, forward=call)
    assert (way.hooked, way.looped, way.reason) == (7, 0, "")
    check_equal(hooks, loop)
    wrapped.calls = 0
    Fisher("per-sample")(setting(model, data))
    # Each batch and the first two examples: forward, probe, again for the backward pass. The example alone:
    # twice. An example of each class, once in all.
    assert wrapped.calls == 3 * 3 + 2 + 3


def test_reentrant_checkpointing_is_refused_by_torch_as_in_the_loop(both: Both) -> None:
    model = Pooled(Checkpointed(nn.Linear(6, 6), reentrant=True))
    with pytest.raises(RuntimeError, match="use_reentrant"):
        both(model, pooled_batches(*MIXED), forward=call)


@pytest.mark.slow
def test_checkpointing_of_transformers_is_off_while_scoring(both: Both) -> None:
    model = tiny("bert")
    plain, _, _ = both(model, [batch()])
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert model.is_gradient_checkpointing
    hooks, _, way = both(model, [batch()])
    assert way.hooked == 4
    assert all(torch.equal(hooks[name], plain[name]) for name in plain)


def weighted(model: Pooled, given: Batch) -> Output:
    """The mean of torch's weighted loss: alone, an example's weight cancels."""
    logits = model.logits(given["ids"])
    return Output(functional.cross_entropy(logits, given["labels"], weight=torch.tensor([1.0, 2.0, 5.0])), logits)


def summed(model: Pooled, given: Batch) -> Output:
    logits = model.logits(given["ids"])
    return Output(functional.cross_entropy(logits, given["labels"], reduction="sum"), logits)


def contrasted(model: Pooled, given: Batch) -> Output:
    logits = model.logits(given["ids"])
    return Output(functional.cross_entropy(logits - logits.mean(0), given["labels"]), logits)


def coupled(model: Pooled, given: Batch) -> Output:
    """Examples meet far below the loss."""
    hidden = model.words(given["ids"])
    logits = model.head(model.block(hidden - hidden.mean(0) / 2).mean(1))
    return Output(functional.cross_entropy(logits, given["labels"]), logits)


def coupled_backward(model: Pooled, given: Batch) -> Output:
    """Examples meet in the backward pass alone, where the check at the top of the model does not see it."""
    hidden = model.words(given["ids"])
    middle = hidden.mean(0) / 2
    logits = model.head(model.block(hidden - middle + middle.detach()).mean(1))
    return Output(functional.cross_entropy(logits, given["labels"]), logits)


def twice(model: Pooled, given: Batch) -> Output:
    logits = functional.linear(model.logits(given["ids"]), model.head.weight.T[:3] @ model.head.weight.T[3:].T)
    return Output(functional.cross_entropy(logits, given["labels"]), logits)


def functionally(model: Pooled, given: Batch) -> Output:
    logits = functional.linear(model.block(model.words(given["ids"])).mean(1), model.head.weight, model.head.bias)
    return Output(functional.cross_entropy(logits, given["labels"]), logits)


def sequence_first(model: Pooled, given: Batch) -> Output:
    logits = model.head(model.block(model.words(given["ids"].T)).mean(0))
    return Output(functional.cross_entropy(logits, given["labels"]), logits)


def in_secret(model: Pooled, given: Batch) -> Output:
    """The module is called once and its weight read once, but not by the module."""
    with torch.no_grad():
        model.block(model.words(given["ids"]))
    hidden = functional.linear(model.words(given["ids"]), model.block[0].weight)
    logits = model.head(hidden.mean(1))
    return Output(functional.cross_entropy(logits, given["labels"]), logits)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (weighted, "is not its part of the batch's"),
        (summed, "is not its part of the batch's"),
        (contrasted, "is not its part of the batch's"),
        (coupled, "is not its part of the batch's"),
        (coupled_backward, "hooks and loop differ at 'words.weight'"),
        (twice, "'head.weight' is used 3 times"),
        (functionally, "'head.weight' is used where no module has one row"),
        (sequence_first, "is used where no module has one row"),
        (in_secret, "is used where no module has one row"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_where_an_example_is_no_part_of_its_batch_the_loop_is_taken(both: Both, forward: Forward, reason: str) -> None:
    result = both(Pooled(), pooled_batches([0, 2, 1, 1], [1, 2, 2, 0, 0]), forward=forward)
    check_looped(result, reason)


def test_a_batch_that_hooks_cannot_serve_ends_them_and_keeps_what_they_had(
    both: Both, caplog: pytest.LogCaptureFixture
) -> None:
    """Classes of one weight hide that the loss weighs them; the first batch in which they differ shows it."""
    with caplog.at_level(logging.INFO, logger="subnetune"):
        hooks, loop, way = both(Pooled(), pooled_batches([1, 1, 1], [1, 1], [0, 2, 1], [2, 2]), forward=weighted)
    assert (way.hooked, way.looped) == (5, 5)
    check_equal(hooks, loop)
    assert "one backward pass for each example, since an example's own gradient is not" in caplog.text


def graded(model: Pooled, given: Batch) -> Output:
    """Classes weigh 1, 2 and 3, and an example of the middle one has the largest gradient of its batch."""
    logits = model.logits(given["ids"]) * torch.tensor([1.0, 4.0, 1.0])[given["labels"]][:, None]
    return Output(functional.cross_entropy(logits, given["labels"], weight=torch.tensor([1.0, 2.0, 3.0])), logits)


def test_an_example_of_the_mean_weight_does_not_speak_for_the_others(both: Both) -> None:
    check_looped(both(Pooled(), pooled_batches([1, 1, 0, 2], [1, 0, 2]), forward=graded), "an example of class")


def test_a_first_example_without_gradient_shows_nothing(both: Both) -> None:
    def forward(model: Pooled, given: Batch) -> Output:
        logits = model.logits(given["ids"])
        losses = functional.cross_entropy(logits, given["labels"], reduction="none")
        return Output((losses * (given["labels"] > 0)).mean(), logits)

    check_looped(both(Pooled(), pooled_batches([0, 1, 2], [1, 0, 2]), forward=forward), "no gradient at all")


@pytest.mark.parametrize("reduction", ["all tokens", "tokens, then examples", "next tokens"])
def test_the_weight_of_an_example_is_found_from_its_labels(both: Both, reduction: str) -> None:
    class Tagger(Pooled):
        def forward(self, ids: Tensor, labels: Tensor) -> Output:
            logits = self.head(self.block(self.words(ids)))
            if reduction == "next tokens":
                logits, labels = logits[:, :-1], labels[:, 1:]
            loss = functional.cross_entropy(logits.mT, labels, reduction="none")
            counted = (labels != -100).float()
            if reduction == "tokens, then examples":
                return Output((loss.sum(1) / counted.sum(1)).mean(), logits)
            return Output(loss.sum() / counted.sum(), logits)

    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 4, (5, 6), generator=random)
    labels = torch.randint(0, 3, (5, 6), generator=random)
    labels[0, 2:] = labels[1, :5] = labels[3, 4] = -100
    even = torch.randint(0, 3, (3, 6), generator=random)  # a batch in which the ways to weigh give the same
    data: list[Batch] = [{"ids": ids[:3], "labels": even}, {"ids": ids, "labels": labels}]
    hooks, loop, way = both(Tagger(), data, forward=call)
    assert (way.hooked, way.looped, way.reason) == (8, 0, "")
    check_equal(hooks, loop)


def test_a_module_that_only_a_later_batch_uses_is_not_trusted(both: Both) -> None:
    class Routed(Pooled):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(6, 3)

        def forward(self, ids: Tensor, labels: Tensor) -> Output:
            hidden = self.block(self.words(ids)).mean(1)
            logits = (self.other if int(labels.sum()) > 3 else self.head)(hidden)
            return Output(functional.cross_entropy(logits, labels), logits)

    hooks, loop, way = both(Routed(), pooled_batches([0, 1, 0], [2, 2, 2]), forward=call)
    assert (way.hooked, way.looped) == (3, 3)
    assert "did not in the first batch" in way.reason
    check_equal(hooks, loop)


class ChannelNorm(nn.Module):
    """Scales the middle axis: its gradient has not the form that its name suggests."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, size))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight[:, None] * x


class GatedNorm(ChannelNorm):
    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        return self.weight * x if gate is None else self.weight * x * gate


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = GatedNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x, gate=x.sigmoid())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (ChannelNorm(5), "of other shapes"),
        (nn.Sequential(nn.Linear(6, 5), ChannelNorm(5), nn.Linear(5, 6)), "differ at '"),  # square, so of one shape
        (Gated(), "'block.norm.weight' is used where no module has one row"),
    ],
    ids=["axis", "square", "gated"],
)
def test_norms_in_name_alone_go_to_the_loop(both: Both, block: nn.Module, reason: str) -> None:
    check_looped(both(Pooled(block), pooled_batches(*MIXED), forward=call), reason)


def test_a_loss_without_selected_tensors_is_refused_by_torch_as_in_the_loop(both: Both) -> None:
    model = Pooled()
    model.spare = nn.Linear(3, 3)
    with pytest.raises(RuntimeError, match="does not require grad"):
        both(model, pooled_batches(*MIXED), forward=call, names=["spare.weight"])


def test_the_users_own_hooks_on_a_module_count(both: Both) -> None:
    model = Pooled()
    handles = [
        model.block[0].register_forward_hook(lambda module, args, output: 3.0 * output),
        model.block[0].register_forward_pre_hook(lambda module, args: (args[0] / 2,)),
    ]
    hooks, loop, way = both(model, pooled_batches(*MIXED[:2]), forward=call)
    assert way.hooked == 7
    check_equal(hooks, loop)
    plain = both(Pooled(), pooled_batches(*MIXED[:2]), forward=call)[0]
    assert not torch.allclose(plain["block.0.weight"], hooks["block.0.weight"], rtol=0.1)
    for handle in handles:
        handle.remove()


def test_a_wrong_formula_does_not_get_past_the_first_example(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(module: nn.Module) -> Any:
        right = formula_of(module)
        if not isinstance(module, nn.LayerNorm):
            return right
        return lambda m, names, x, g, sums: right(m, names, x, 1.001 * g, sums)  # type: ignore[misc]

    monkeypatch.setattr(owners_module, "formula_of", wrong)
    check_looped(both(Pooled(), pooled_batches(*MIXED), forward=call), "hooks and loop differ at 'block.2.")


def test_a_lost_tensor_does_not_get_past_the_first_example(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(module: nn.Module) -> Any:
        return (lambda *_: None) if isinstance(module, nn.Embedding) else formula_of(module)

    monkeypatch.setattr(owners_module, "formula_of", forgetful)
    check_looped(both(Pooled(), pooled_batches(*MIXED), forward=call), "hooks see 6 tensors, the loop 8")


@pytest.mark.parametrize("where", [0, 1, 2], ids=["first", "second", "later"])
def test_what_is_not_finite_is_named_as_by_the_loop(where: int) -> None:
    model, data = Pooled(), pooled_batches([0, 1, 2], [1, 0, 2])

    def forward(module: nn.Module, given: Batch) -> Output:
        output = call(module, {"ids": given["ids"], "labels": given["labels"]})
        return Output(output.loss + 0.0 * given["bad"].log().mean(), output.logits)

    for index, given in enumerate(data):
        given["bad"] = torch.ones(3)
        if index == where // 2:
            given["bad"][where % 2] = 0.0
    with pytest.raises(NumericError, match=f"the loss of piece {(where // 2) * 3 + where % 2} "):
        Fisher("per-sample")(setting(model, data, forward=forward))


def test_a_gradient_that_is_not_finite_is_an_error() -> None:
    class Rooted(Pooled):
        def forward(self, ids: Tensor, labels: Tensor) -> Output:
            hidden = self.block(self.words(ids))
            hidden = hidden * (1.0 + 0.0 * ids.float()).sqrt()[..., None]
            flat = (hidden[..., :1] * (ids != 7)[..., None]).abs().sqrt().sum()  # slope at zero: infinite
            return Output(functional.cross_entropy(self.head(hidden.mean(1)), labels) + 0.0 * flat, hidden)

    data = pooled_batches([0, 1, 2], [1, 0, 2])
    data[1]["ids"][2, 3] = 7
    with pytest.raises(NumericError, match="not finite for"):
        Fisher("per-sample")(setting(Rooted(), data))


def hooked(model: nn.Module, data: Batch, names: list[str] | None = None) -> HookedBatch:
    at: Setting = setting(model, [data], names=names)
    return HookedBatch(at, owners(model, at.params), data)


def test_no_gradient_of_a_whole_weight_is_computed() -> None:
    class Products(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.shapes: list[tuple[str, tuple[int, ...]]] = []

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                self.shapes.append((str(function), tuple(result.shape)))
            return result

    model = Pooled(nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 6)))
    (data,) = pooled_batches([0, 1, 2, 1])
    ready = hooked(model, data)
    totals: Scores = {}
    with Products() as seen:
        ready.backward(PerSample(ready.setting, totals, None, False).sums, ready.factors(), "")
    of_weights = [name for name, shape in seen.shapes if shape in ((10, 6), (6, 10)) and "mm" in name]
    assert of_weights == ["aten.mm.out"] * 2 * 4  # one per weight and example, into a buffer; none over the batch
    assert "aten.embedding_dense_backward.default" not in {name for name, _ in seen.shapes}
    assert set(totals) == {name for name, _ in model.named_parameters()}


def test_the_backward_pass_ends_at_the_lowest_selected_module() -> None:
    model, below = Pooled(), list[Tensor]()
    (data,) = pooled_batches([0, 1, 2])
    model.words.register_forward_hook(lambda module, args, output: below.append(output))
    model.words.weight.requires_grad_(False)
    model.places.weight.requires_grad_(False)
    ready = hooked(model, data, ["head.weight"])
    ready.backward(PerSample(ready.setting, {}, None, False).sums, ready.factors(), "")
    assert len(ready.calls) == 1
    assert not any(output.requires_grad for output in below)


def test_the_model_has_no_hook_left() -> None:
    model, (data,) = Pooled(), pooled_batches([0, 1, 2])
    for forward in (call, weighted, coupled):
        Fisher("per-sample")(setting(model, [data], forward=forward))
        _, nodes = owners_module.uses(call(model, data).loss)
        assert not [node for node in nodes if "Tap" in node.name()]
        assert all(p.grad is None for p in model.parameters())
