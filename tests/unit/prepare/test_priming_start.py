"""What priming keeps of the values that its inner loop moves: by rows, as they are overwritten."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from priming_cases import ALL, bert, bert_tasks, prime, primed
from subnetune.prepare.priming import start as module
from subnetune.prepare.priming.algorithms import gradients
from subnetune.prepare.priming.episodes import Episodes
from subnetune.prepare.priming.primer import Primer
from subnetune.prepare.priming.start import Start
from tiny import bits, differing


def table() -> Tensor:
    values = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    values[4, 1] = -0.0
    return values


def gradient(*rows: int, shape: tuple[int, ...] = (10, 3)) -> Tensor:
    found = torch.zeros(shape)
    found[list(rows)] = 1.0
    return found


def test_rows_that_do_not_move_are_not_kept() -> None:
    p, value = table(), table()
    start = Start({"p": p})
    for moving, sofar in (((7, 2), [2, 7]), ((2, 4), [2, 4, 7]), ((), [2, 4, 7])):
        rows = start.keep("p", gradient(*moving))
        assert rows is not None
        assert rows.tolist() == sorted(moving)
        p[rows] += 1.0
        held, values = start._rows["p"]
        assert sorted(held.tolist()) == sofar
        assert torch.equal(values, value[held])
        assert torch.equal(start["p"], value)
    assert not torch.equal(p, value)
    start.put_back()
    assert torch.equal(p.view(torch.int32), value.view(torch.int32))


def test_more_than_half_of_the_rows_are_kept_as_a_whole() -> None:
    p, value = table(), table()
    start = Start({"p": p})
    assert start.keep("p", gradient(0, 1, 2)) is not None
    p[:3] -= 5.0
    assert start.keep("p", gradient(2, 3, 4, 5)) is None
    p -= 7.0
    assert start.keep("p", gradient(9)) is None
    assert start._rows == {}
    assert torch.equal(start["p"], value)
    start.put_back()
    assert torch.equal(p.view(torch.int32), value.view(torch.int32))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_of_no_numbers_moves(bad: float) -> None:
    found = gradient()
    found[3, 2] = bad
    rows = Start({"p": table()}).keep("p", found)
    assert rows is not None
    assert rows.tolist() == [3]


@pytest.mark.parametrize(
    "found", [torch.zeros(10), torch.zeros(10, 3, 2), gradient(1).to_sparse()], ids=["vector", "block", "sparse"]
)
def test_what_has_no_rows_is_kept_as_a_whole(found: Tensor) -> None:
    start = Start({"p": torch.ones(found.shape)})
    assert start.keep("p", found) is None
    assert set(start._whole) == {"p"}


def test_what_is_given_out_is_no_view_of_what_is_kept() -> None:
    p = table()
    start = Start({"p": p, "q": table()})
    start.keep("p", gradient(*range(10)))
    for name in start:
        start[name].zero_()
        assert torch.equal(start[name], table())
    assert torch.equal(p, table())


def test_an_episode_keeps_the_words_of_its_support_batches_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Start] = []
    real = module.Start.put_back

    def put_back(self: Start) -> None:
        made.append(self)
        real(self)

    monkeypatch.setattr(module.Start, "put_back", put_back)
    model = bert(vocab_size=1000)
    before, words = bits(model), model.bert.embeddings.word_embeddings.weight.detach().clone()
    piece = prime(inner=ALL, inner_steps=2, task_batch=1)
    with Primer(piece, primed(piece, model)) as primer:
        gradients(primer.learner, Episodes(piece, bert_tasks(), 0), 0, primer.rates)
    assert differing(before, bits(model)) == []
    (start,) = made
    rows, values = start._rows["bert.embeddings.word_embeddings.weight"]
    assert 0 < len(rows) < 100
    assert torch.equal(values, words[rows])
