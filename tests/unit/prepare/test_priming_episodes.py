"""Episodes and heads of priming: whose turn it is, which batches, and which classes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from priming_cases import ALL, BIASES, Two, bert, outer, plain, points, prime, primed, two_tasks, weights
from subnetune import Scope, UsageError
from subnetune.core.errors import DataError, LifeCycleError
from subnetune.core.types import Batch, Output
from subnetune.prepare.priming.episodes import Episode, Episodes
from subnetune.prepare.priming.primer import Primer
from tiny import batches, bits, differing

NAMES = ("a", "b", "c")


def numbered(name: str, count: int = 3) -> Any:
    """Passes over batches that say where they are from."""
    return lambda: [{"x": torch.tensor([ord(name), i])} for i in range(count)]


def stream(seed: int = 0, **changes: Any) -> Episodes:
    piece = prime(**{"tasks": NAMES, "support": 2, "query": 1, **changes})
    return Episodes(piece, {name: numbered(name) for name in NAMES}, seed)


def take(episodes: Episodes, count: int) -> list[Episode]:
    return [episodes.next() for _ in range(count)]


def test_every_task_has_its_turn_in_each_lap_in_an_order_of_the_seed() -> None:
    turns = [[one.task for one in take(stream(seed), 30)] for seed in (0, 0, 1)]
    assert turns[0] == turns[1] != turns[2]
    assert all(Counter(turns[0][at : at + 3]) == Counter(NAMES) for at in range(0, 30, 3))
    assert len({tuple(turns[0][at : at + 3]) for at in range(0, 30, 3)}) > 1, "laps have orders of their own"


def test_a_task_goes_through_its_batches_in_turn() -> None:
    found = [one for one in take(stream(), 12) if one.task == "b"]
    assert [len(one.support) for one in found] == [2] * 4
    taken = [batch["x"].tolist() for one in found for batch in (*one.support, *one.query)]
    assert taken == [[ord("b"), i] for i in (0, 1, 2)] * 4


def test_the_support_is_a_batch_for_each_inner_step_unless_it_is_said() -> None:
    assert len(stream(support=None, inner_steps=5).next().support) == 5
    assert len(stream(support=None, inner_steps=0).next().support) == 0, "joint training wastes no batch"
    assert len(stream(support=1, inner_steps=5, query=3).next().query) == 3


def shuffled(size: int = 12) -> Any:
    """Passes in an order that is drawn from global random states, as by a data loader without a generator."""

    def fresh() -> Iterator[Batch]:
        order = torch.randperm(size).tolist()
        for i in order:
            yield {"x": torch.tensor([i, random.randrange(10**6)])}

    return fresh


def listed(episodes: list[Episode]) -> list[Any]:
    return [[one.task, *(batch["x"].tolist() for batch in (*one.support, *one.query))] for one in episodes]


@pytest.mark.parametrize("count", [1, 5, 13])
def test_leaving_episodes_out_is_taking_and_dropping_them(count: int) -> None:
    piece = prime(tasks=NAMES, support=2)
    tasks = {name: shuffled() for name in NAMES}
    whole, later = Episodes(piece, tasks, 3), Episodes(piece, tasks, 3)
    wanted = listed(take(whole, count + 6))[count:]
    torch.manual_seed(count)
    later.skip(count)
    assert listed(take(later, 6)) == wanted
    with pytest.raises(LifeCycleError, match="anew"):
        later.skip(1)


def test_a_data_loader_without_a_generator_is_shuffled_by_the_seed() -> None:
    data = torch.utils.data.DataLoader([{"x": torch.tensor([i])} for i in range(50)], batch_size=2, shuffle=True)
    piece = prime(tasks=("a",))
    orders = []
    for state, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(state)
        orders.append(listed(take(Episodes(piece, {"a": lambda: data}, seed), 16)))
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][:8] != orders[0][8:], "another pass has another order"


def test_a_task_that_is_missing_or_empty_is_an_error() -> None:
    piece = prime(tasks=("a", "z"))
    with pytest.raises(UsageError, match="no batches for task 'z'; the Tuning's tasks are 'a', 'b'"):
        Primer(piece, primed(piece, Two(), two_tasks()))
    with pytest.raises(DataError, match="'a' has no batches"):
        Episodes(prime(tasks=("a",)), {"a": list}, 0).next()


# -- heads -------------------------------------------------------------------------------------------------------------


def head_of(model: torch.nn.Module) -> list[float]:
    return model.get_parameter("classifier.weight").detach().flatten().tolist()


def test_a_fresh_head_is_drawn_for_each_task_from_its_own_values_and_left() -> None:
    seen: list[list[float]] = []
    model = bert()
    own = bits(model)
    piece = prime(head="fresh", inner=ALL, inner_steps=1, inner_lr=0.0, steps=2)
    place = primed(piece, model)

    def watched(m: torch.nn.Module, batch: Batch) -> Output:
        seen.append(head_of(m))
        out = m(**batch)
        return Output(out.loss, out.logits)

    with Primer(piece, place._replace(forward=watched)) as primer:
        assert not any(name.startswith("classifier.") for name in primer.learner.parent)
        for _ in range(2):
            primer.step()
            assert head_of(model) == own["classifier.weight"].flatten().tolist(), "between steps it is as it was"
    drawn = {tuple(head) for head in seen}
    assert len(seen) == 8
    assert len(drawn) == 4, "one head for each of four episodes"
    assert all(sorted(head) == sorted(head_of(model)) for head in drawn)
    assert tuple(head_of(model)) not in drawn
    moved = differing(own, bits(model))
    assert moved
    assert not any(name.startswith("classifier.") for name in moved)


@pytest.mark.parametrize("seed", [0, 4])
def test_fresh_heads_are_a_function_of_the_seed(seed: int) -> None:
    ends = []
    for asked in (0, seed):
        model, piece = bert(hidden_dropout_prob=0.0), prime(head="fresh", inner=ALL, inner_lr=0.01)
        piece(primed(piece, model, seed=asked))
        ends.append(bits(model))
    assert (differing(*ends) == []) == (seed == 0)


def test_a_shared_head_moves_with_the_parent() -> None:
    model, piece = bert(), prime(inner=ALL, inner_lr=0.01)
    before = bits(model)
    piece(primed(piece, model))
    assert "classifier.weight" in differing(before, bits(model))


def own_classes(classes: tuple[tuple[int, ...], ...]) -> dict[str, Any]:
    return {
        name: lambda seed=seed, ids=ids: [points(5, seed + i, ids) for i in range(6)]
        for name, seed, ids in zip(("a", "b"), (100, 200), classes, strict=True)
    }


def over(classes: dict[str, tuple[int, ...]]) -> Any:
    """The loss over a task's own classes, written anew: the features say whose batch it is."""

    def forward(model: torch.nn.Module, batch: Batch) -> Output:
        out = model(**batch)
        labels = batch["labels"].tolist()
        ids = next(own for own in classes.values() if set(labels) <= set(own))
        logits = out.logits[:, sorted(ids)]
        where = torch.tensor([sorted(ids).index(label) for label in labels])
        return Output(torch.nn.functional.cross_entropy(logits, where), logits)

    return forward


@pytest.mark.parametrize("algorithm", ["fomaml", "maml"])
def test_matched_heads_see_their_own_classes_alone(algorithm: str) -> None:
    tasks, ids = own_classes(((2, 0), (1,))), {"a": (0, 2), "b": (1,)}
    piece = prime(algorithm=algorithm, inner=BIASES, head="matched", classes=((2, 0), (1,)))
    model = Two()
    got = outer(piece, model, tasks)
    assert got["third.weight"][1].abs().max() == 0.0, "a class without rivals in its task has no gradient"
    assert got["third.weight"][0].abs().max() > 0.0
    theta = {n: p.requires_grad_() for n, p in weights(model).items()}
    if algorithm == "fomaml":
        biases = [n for n in theta if n.endswith("bias")]
        rates = dict.fromkeys(biases, 0.3)
        loss, _ = plain(piece, Two(), theta, biases, rates, tasks, forward=over(ids))
        wanted = dict(zip(theta, torch.autograd.grad(loss, list(theta.values()), allow_unused=True), strict=True))
        assert all((got[n] - g).abs().max() < 1e-13 for n, g in wanted.items() if g is not None)


def test_labels_outside_of_a_tasks_classes_are_an_error() -> None:
    inside = prime(head="matched", classes=((0, 1), (0, 1, 2)))
    with pytest.raises(DataError, match=r"'a' has labels outside its classes \(0, 1\)"):
        outer(inside, Two())
    with pytest.raises(DataError, match="has class 7, the head 3 outputs"):
        outer(prime(head="matched", classes=((0, 7), (0, 7))), Two())
    with pytest.raises(DataError, match="class ids as 'labels'"):
        outer(
            prime(head="matched", classes=((0, 1), (0, 1))),
            Two(),
            {n: lambda: [{"x": torch.zeros(2, 4), "labels": torch.zeros(2)}] for n in ("a", "b")},
        )


def test_labels_that_do_not_count_are_left_out_of_matched_losses() -> None:
    from subnetune.prepare.priming.losses import Losses

    def forward(model: object, batch: Batch) -> Output:
        return Output(torch.zeros(()), batch["logits"])

    losses = Losses(prime(head="matched", classes=((3, 1), (0, 2))), forward)
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))  # tokens, as in entity recognition
    labels = torch.tensor([[3, -100, 1], [1, 3, -100]])
    got = losses.query(torch.nn.Identity(), [{"logits": logits, "labels": labels}], "a")
    flat = torch.stack([logits[..., 3], logits[..., 1]], -1)[labels >= 0]
    wanted = torch.nn.functional.cross_entropy(flat, torch.tensor([0, 1, 1, 0]))
    torch.testing.assert_close(got, wanted)


def test_heads_of_a_model_without_one() -> None:
    from tiny import tiny

    piece = prime(head="fresh", inner=ALL)
    place = primed(piece, tiny("gpt2", "CausalLM", num_hidden_layers=1), {n: lambda: batches(2) for n in ("a", "b")})
    with pytest.raises(UsageError, match="head='fresh', and nothing lies outside"):
        Primer(piece, place)
    with pytest.raises(UsageError, match="leaves the outer loop nothing to move"):
        Primer(prime(head="fresh", inner=ALL, outer=Scope(("@head",))), primed(piece, bert()))


def embeddings(model: torch.nn.Module) -> Tensor:
    return model.get_parameter("bert.embeddings.word_embeddings.weight")


def test_adapters_are_drawn_anew_for_every_task() -> None:
    pytest.importorskip("peft")
    from subnetune import methods

    seen: list[tuple[float, ...]] = []
    model, piece = bert(), prime(inner=methods.lora(r=2), inner_steps=1, inner_lr=0.0)

    def watched(m: torch.nn.Module, batch: Batch) -> Output:
        lora = next(p for name, p in m.named_parameters() if ".lora_A" in name)
        seen.append(tuple(lora.detach().flatten().tolist()))
        out = m(**batch)
        return Output(out.loss, out.logits)

    with Primer(piece, primed(piece, model)._replace(forward=watched)) as primer:
        primer.step()
    assert len(seen) == 4
    assert len(set(seen)) == 2
    assert sorted(seen[0]) == sorted(seen[2])
