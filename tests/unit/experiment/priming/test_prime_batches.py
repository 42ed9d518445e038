"""A priming's examples: passes in changing orders, and labels under the names that all tasks share."""

from __future__ import annotations

import pytest
import torch

from subnetune.core.errors import DataError
from subnetune.core.recipe import Recipe
from subnetune.experiment.data import Encoded
from subnetune.experiment.parts import with_loss
from subnetune.experiment.priming.batches import Passes, renamed
from subnetune.prepare.prime import Prime
from subnetune.prepare.priming.episodes import Episodes
from subnetune.tasks.types import Split, Task


def numbers(passes: Passes) -> list[list[int]]:
    return [batch["at"].tolist() for batch in passes()]


def passes() -> Passes:
    def collate(encoded: Encoded, indices: list[int]) -> dict[str, torch.Tensor]:
        return {"at": torch.tensor(indices)}

    return Passes(Encoded([{"input_ids": [1]}] * 10, None), collate, 4)  # type: ignore[arg-type]


def test_a_pass_has_every_example_once_and_the_next_another_order() -> None:
    rte = passes()
    first, second = numbers(rte), numbers(rte)
    assert [len(batch) for batch in first] == [4, 4, 2]
    for found in (first, second):
        assert sorted(i for batch in found for i in batch) == list(range(10))
    assert first != second


def test_episodes_are_a_function_of_seed_and_task_whatever_was_read_before() -> None:
    def taken(seed: int, names: tuple[str, ...] = ("rte", "mrpc"), before: int = 0) -> list[list[int]]:
        shared = passes()
        for _ in range(before):
            numbers(shared)
        torch.rand(3)
        prime = Prime(names, Recipe(), inner_steps=2)
        episodes = Episodes(prime, dict.fromkeys(names, shared), seed)
        episodes.skip(before)
        found = [episodes.next() for _ in range(6 - before)]
        return [batch["at"].tolist() for episode in found for batch in (*episode.support, *episode.query)]

    assert taken(1) == taken(1)
    assert taken(1, before=2) == taken(1)[2 * 3 :]
    assert taken(2) != taken(1)
    of_rte, of_mrpc = taken(1, ("rte",)), taken(1, ("mrpc",))
    assert of_rte != of_mrpc


def task(*labels: str, kind: str = "classification") -> Task:
    return Task("t", kind, labels, ("accuracy",), False)  # type: ignore[arg-type]


def test_labels_get_their_ids_among_all() -> None:
    split = Split(["a", "b", "c"], labels=[0, 1, 1], name="train")
    assert renamed(split, task("no", "yes"), task("yes", "maybe", "no")).labels == [2, 0, 0]
    assert renamed(split, task("no", "yes"), task("no", "yes", "maybe")) is split
    scores = Split(["a"], labels=[0.5])
    assert renamed(scores, task(kind="regression"), task(kind="regression")) is scores
    words = Split(["a b"], labels=[[0, 1]], words=[["a", "b"]])
    assert renamed(words, task("O", "B-X", kind="tokens"), task("B-X", "B-Y", "O", kind="tokens")).labels == [[2, 0]]
    with pytest.raises(DataError, match="the split 'test' has no labels"):
        renamed(Split(["a"], name="test"), task("no"), task("no"))


def test_examples_without_a_loss_are_left_out_and_counted() -> None:
    said: list[str] = []
    rows = ({"input_ids": [1], "labels": [2]}, {"input_ids": [2], "labels": [-100]}, {"input_ids": [3], "labels": [0]})
    some = Encoded(list(rows), None, [[0], [], [0]])
    assert [e["input_ids"] for e in with_loss(some, "mine", said.append).examples] == [[1], [3]]
    assert said == ["1 examples have no word that the tokenizer knows: left out"]
    with pytest.raises(DataError, match="mine: the tokenizer makes no sub-word of any word"):
        with_loss(some.select([1]), "mine", said.append)
