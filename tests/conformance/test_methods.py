"""What every method must do, whatever it does: the properties of one process (two ranks: tests/distributed)."""

from __future__ import annotations

import io
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import subnetune
from conformance.table import (
    BERT_CASES,
    CASES,
    FIRST,
    REFUSED,
    ROWS,
    Case,
    Row,
    chosen,
    each_method_once,
    each_row_once,
    finished,
    ids,
    learns,
    mask_now,
    train,
)
from subnetune import methods
from subnetune.core.errors import UsageError
from subnetune.core.recipe import Structural
from subnetune.delta import Delta
from subnetune.methods import METHODS
from tiny import bits, differing

each_case = pytest.mark.parametrize("case", chosen(CASES, each_row_once))
each_method = pytest.mark.parametrize("case", chosen(CASES, each_method_once))
bert_case = pytest.mark.parametrize("case", chosen(BERT_CASES, each_method_once))
each_row = pytest.mark.parametrize("row", ROWS, ids=[row.id for row in ROWS])


def test_every_method_has_a_row_and_every_row_is_its_own() -> None:
    assert {row.method for row in ROWS} == set(METHODS)
    assert len({row.id for row in ROWS}) == len(ROWS)
    assert len({row.recipe() for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("case", REFUSED, ids=ids(REFUSED))
def test_a_model_without_what_the_method_trains_is_refused(case: Case) -> None:
    with pytest.raises(UsageError, match="matches no"):
        case.tuning(case.build())


# -- 1: everything selected is plain training -------------------------------------------------------------------------


def plain_loop(model: nn.Module, case: Case, data: list[dict[str, Tensor]]) -> None:
    """Fine-tuning as anybody writes it, on what the row says trains; nothing of the library."""
    for name, p in model.named_parameters():
        p.requires_grad_(case.row.trains(name, p))
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},  # biases and norms
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    for batch in data:
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()


@each_method
def test_selecting_everything_is_plain_training_bit_for_bit(case: Case) -> None:
    data = case.batches(4, seed=2)
    plain, tuned = case.build(dropout=False), case.build(dropout=False)
    case.row.by_hand(plain)
    start = bits(plain)
    plain_loop(plain, case, data)
    tuning = case.tuning(tuned, case.row.selecting_everything())
    optimizer = tuning.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
    train(tuning, optimizer, data)
    assert differing(bits(plain), bits(tuned)) == []
    assert differing(start, bits(tuned)), "nothing was trained, so nothing was compared"


# -- 2: resuming ------------------------------------------------------------------------------------------------------


def resumed_everywhere(case: Case) -> bool:
    """Whether the default run has it: each method on BERT, and one on each model."""
    return case.row in FIRST and (case.model == "bert" or case.row.id == "d")


OTHERS = [case for case in BERT_CASES if case.row not in FIRST]


def saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def loaded(data: bytes) -> dict[str, object]:
    result: dict[str, object] = torch.load(io.BytesIO(data), weights_only=True)
    return result


@pytest.mark.parametrize("case", chosen(CASES, resumed_everywhere))
def test_a_resumed_run_is_the_one_that_never_stopped_at_every_step(case: Case) -> None:
    resumed_at(range(4), case)


@pytest.mark.parametrize("case", OTHERS, ids=ids(OTHERS))
def test_a_resumed_run_is_the_one_that_never_stopped_in_the_middle(case: Case) -> None:
    resumed_at((1,), case)


def resumed_at(steps: Collection[int], case: Case) -> None:
    """Stop a run of three steps before each of `steps`, and go on in a model of its own."""
    data = case.batches(3, seed=3)
    torch.manual_seed(5)
    model = case.build()
    tuning = case.tuning(model)
    optimizer = tuning.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
    stops = []
    for index in range(len(data) + 1):
        parts = (model.state_dict(), tuning.state_dict(), optimizer.state_dict(), torch.get_rng_state())
        stops.append([saved(part) for part in parts])
        train(tuning, optimizer, data[index : index + 1])
    for index in steps:
        weights, of_tuning, of_optimizer, random = stops[index]
        again = case.build()
        resumed = case.tuning(again)
        again.load_state_dict(loaded(weights))
        resumed.load_state_dict(loaded(of_tuning))
        optimizer = resumed.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
        optimizer.load_state_dict(loaded(of_optimizer))
        torch.set_rng_state(torch.load(io.BytesIO(random), weights_only=True))
        assert resumed.index == index
        train(resumed, optimizer, data[index:])
        assert differing(bits(model), bits(again)) == [], f"stopped before step {index}"
        assert resumed.mask_digest() == tuning.mask_digest()
        base, base_again = tuning.base_values(), resumed.base_values()
        assert list(base) == list(base_again)
        assert differing(base, base_again) == []


# -- 4 and 6: what training leaves alone ------------------------------------------------------------------------------


@bert_case
def test_evaluation_is_that_of_the_raw_model(case: Case) -> None:
    raw, model = case.build().eval(), case.build()
    tuning = case.tuning(model)
    tuning.start()
    lasting = [p for p in tuning.recipe.prepare if not isinstance(p, Structural) or p.permanent]
    for piece in lasting:
        if isinstance(piece, Structural):
            piece.restructure(raw)
    if lasting:
        raw.load_state_dict(model.state_dict())  # the raw model is the prepared one
    model.eval()
    raw.eval()
    batch = case.batches(1, seed=4)[0]
    state = torch.get_rng_state()
    with torch.no_grad():
        wanted, got = raw(**batch), tuning.forward(batch)
    assert torch.equal(wanted.logits, got.logits)
    assert torch.equal(wanted.loss, got.loss)
    assert torch.equal(torch.get_rng_state(), state)
    assert tuning.index == 0


@each_case
def test_training_leaves_the_keys_of_the_state_dict_and_all_that_is_frozen(case: Case) -> None:
    run = finished(case)
    assert list(run.model.state_dict()) == run.keys
    now = bits(run.model)
    frozen = run.tuning.scope.frozen
    assert differing({n: run.prepared[n] for n in frozen}, now) == []
    assert set(frozen) == set(now) - set(run.tuning.scope.trained)
    bound = case.build()
    case.tuning(bound)
    start = bits(bound)  # with what a structural change has added
    assert any(not torch.equal(start[n], now[n]) for n in run.tuning.scope.trained)


# -- 5: a recipe is a value -------------------------------------------------------------------------------------------


class PublicNames(dict[str, object]):
    """The package's own names, each loaded when it is used."""

    def __missing__(self, name: str) -> object:
        return getattr(subnetune, name)


@each_row
def test_a_recipe_is_what_it_prints(row: Row) -> None:
    recipe = row.recipe()
    again = eval(repr(recipe), {}, PublicNames())
    assert again == recipe
    assert hash(again) == hash(recipe)
    assert again == row.recipe()
    assert recipe != methods.child_tuning_d(keep=0.123)


# -- 8: what is not selected keeps its bits ---------------------------------------------------------------------------


@each_case
def test_unselected_entries_keep_their_bits_or_the_card_says_that_they_leak(case: Case) -> None:
    """A static mask over the whole run; of a dynamic one the entries that no step selected (without a mask all are)."""
    run = finished(case)
    now = bits(run.model)
    never = moved = 0
    for name in run.masks[0] if all(run.masks) else ():
        ever = torch.stack([mask[name] for mask in run.masks]).any(0)
        never += int((~ever).sum())
        raw = [t[~ever].view(torch.int32) for t in (run.prepared[name], now[name])]
        moved += int((raw[0] != raw[1]).sum())
    if case.row.leaks:
        assert moved > 0 or not never, "the row says that this method leaks, and it does not"
        label = METHODS[case.row.method].card
        assert label.leaks or any("release=True" in text for text in label.differs_from_release)
    else:
        assert moved == 0


@bert_case
def test_across_each_step_unselected_entries_keep_their_bits_or_leak(case: Case) -> None:
    model = case.build()
    tuning = case.tuning(model)
    optimizer = tuning.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
    moved = 0
    for batch in case.batches(4, seed=5):
        before, mask = bits(model), mask_now(tuning)
        train(tuning, optimizer, [batch])
        now = bits(model)
        moved += sum(int((before[n] != now[n])[~chosen].sum()) for n, chosen in mask.items())
        assert any(bool((before[n] != now[n])[chosen].any()) for n, chosen in mask.items()) or not mask
    assert (moved > 0) == case.row.leaks


# -- 9: what is no optimizer step draws nothing and counts nothing ---------------------------------------------------


@bert_case
def test_more_forwards_than_steps_change_neither_draw_nor_count(case: Case) -> None:
    """Two forwards a step, two micro-batches a step, forwards in train mode without gradients: masks as ever.

    A selector that learns from the run's gradients sees other ones here: as many entries at every step, as ever.
    """
    wanted = finished(case)
    model = case.build()
    tuning = case.tuning(model)
    optimizer = tuning.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
    data = case.batches(6, seed=6)
    for index in range(3):
        with torch.no_grad():
            tuning.forward(data[0])
        for batch in data[2 * index : 2 * index + 2]:
            loss = tuning.forward(batch).loss + tuning.forward(batch).loss
            assert tuning.index == index
            loss.backward()
        mask = mask_now(tuning)
        if learns(tuning.recipe):
            assert set(mask) == set(wanted.masks[index])
            assert sum(int(m.sum()) for m in mask.values()) == sum(int(m.sum()) for m in wanted.masks[index].values())
        else:
            assert differing(wanted.masks[index], mask) == []
        assert tuning.step(optimizer)
        optimizer.zero_grad()
        assert tuning.index == index + 1


def checkpointed(case: Case, reentrant: bool) -> bool:
    """Whether the default run has it: the rules of the forward pass are what recomputing could change."""
    rules, first = bool(case.row.recipe().forward), case.row in FIRST
    return (rules and first) if reentrant else (rules or first)


@pytest.mark.parametrize(
    ("case", "reentrant"),
    [
        pytest.param(*values, id=f"{case.id}-{kind}", marks=() if checkpointed(*values) else pytest.mark.slow)
        for kind in ("non-reentrant", "reentrant")
        for case in BERT_CASES
        for values in [(case, kind == "reentrant")]
    ],
)
def test_gradient_checkpointing_changes_nothing(case: Case, reentrant: bool) -> None:
    ends = []
    for checkpointing in (False, True):
        torch.manual_seed(12)  # recomputed blocks draw their dropout and noise again, the same
        model = case.build()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        tuning = case.tuning(model)
        optimizer = tuning.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
        train(tuning, optimizer, case.batches(3, seed=7))
        assert tuning.index == 3
        ends.append(bits(model))
    assert differing(*ends) == []


# -- 3: the delta -----------------------------------------------------------------------------------------------------


@each_case
def test_a_delta_gives_the_run_back_and_takes_it_away(case: Case, tmp_path: Path) -> None:
    run = finished(case)
    Delta.of(run.tuning).save(tmp_path / "d.safetensors")
    delta = Delta.load(tmp_path / "d.safetensors")
    model = case.build()
    assert differing(run.before, bits(model)) == [], "the base is not the one that the run started from"
    handle = delta.apply(model)
    assert differing(bits(run.model), bits(model)) == []
    delta.apply(model)
    assert differing(bits(run.model), bits(model)) == []
    handle.remove()
    assert differing(run.before, bits(model)) == []
    batch = case.batches(1, seed=8)[0]
    with torch.no_grad():
        assert torch.equal(model.eval()(**batch).logits, case.build().eval()(**batch).logits)
