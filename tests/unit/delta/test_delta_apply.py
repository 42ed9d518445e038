"""All or nothing, in and out again, with the exact bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import subnetune.delta.apply as applying
from delta_cases import bits, case, net, tune, values_of
from subnetune.core.errors import CheckpointError
from subnetune.core.fingerprint import Fingerprint
from subnetune.delta import Delta, codec
from subnetune.delta import format as form
from subnetune.delta.codec import Index


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("fail_at", [0, 1, 4, 9])
def test_a_write_that_fails_in_the_middle_leaves_the_model_as_it_was(monkeypatch, threads, fail_at, count) -> None:
    base, _, delta = case()
    before, real, seen = bits(base), Index.pieces, []
    threads(count)
    monkeypatch.setattr(codec, "_DECODED", 8)  # many pieces: it fails inside of a tensor too

    def failing(index: Index) -> Iterator[torch.Tensor]:
        for piece in real(index):
            seen.append(piece)
            if len(seen) == fail_at + 1:
                raise MemoryError("no room")
            yield piece

    monkeypatch.setattr(Index, "pieces", failing)
    with pytest.raises(MemoryError):
        delta.apply(base)
    assert len(seen) > fail_at
    assert bits(base) == before


def test_values_that_are_not_as_many_as_their_positions_are_refused_before_they_are_written() -> None:
    base, _, delta = case()
    before = bits(base)
    name, part = sorted(delta.entries.items())[-1]
    broken = replace(delta, entries={**delta.entries, name: replace(part, values=part.values[:-1])})
    with pytest.raises(CheckpointError, match=f"{name}.* has {part.index.moved - 1} values for {part.index.moved}"):
        broken.apply(base)
    assert bits(base) == before


def test_an_index_of_another_number_of_entries_is_refused_before_anything_is_written() -> None:
    base, _, delta = case()
    before = bits(base)
    name, part = sorted(delta.entries.items())[-1]
    longer = replace(part.index, entries=part.index.entries + 8)  # its positions are all in range still
    broken = replace(delta, entries={**delta.entries, name: replace(part, index=longer)})
    with pytest.raises(CheckpointError, match=f"{name}.* its index {longer.entries}"):
        broken.apply(base)
    assert bits(base) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_several_threads_write_what_one_does(dtype: torch.dtype, threads, tmp_path: Path, monkeypatch) -> None:
    written = {}
    for count in (1, 3):
        threads(count)
        base, tuned, delta = case(dtype=dtype)
        before = bits(base)
        monkeypatch.setattr(form, "_SMALL", 0)
        delta.save(tmp_path / str(count))
        with torch.inference_mode():  # a mode that belongs to a thread
            handle = Delta.load(tmp_path / str(count)).apply(base)
            assert bits(base) == bits(tuned)
            written[count] = (tmp_path / str(count)).read_bytes(), Fingerprint.of(base).tensors
            handle.remove()
        assert bits(base) == before
    assert written[1] == written[3]


def test_a_model_made_in_inference_mode_is_written_to_in_it(threads) -> None:
    threads(3)
    _, tuned, delta = case()
    with torch.inference_mode():
        base = net()
        delta.apply(base)
        assert bits(base) == bits(tuned)


def test_writes_go_into_the_parameters_in_place() -> None:
    base, _, delta = case()
    before = [(id(p), p.data_ptr(), p.requires_grad) for p in base.parameters()]
    delta.apply(base)
    assert [(id(p), p.data_ptr(), p.requires_grad) for p in base.parameters()] == before
    assert base.lm_head.weight is base.embed.weight


def test_remove_with_the_bases_values() -> None:
    base, _, delta = case()
    before, values, head = bits(base), values_of(base), base.head.weight.detach().clone()
    buffers = {name: buffer.clone() for name, buffer in base.named_buffers()}
    delta.apply(base)
    with pytest.raises(CheckpointError, match="'seen' is missing"):
        delta.remove(base, values)
    with pytest.raises(CheckpointError, match=r"'layers.0.bias' is not the base's"):
        delta.remove(base, {**values, **buffers, "layers.0.bias": torch.zeros(8)})
    delta.remove(base, {**values, **buffers})
    after = bits(base)
    assert {n for n in after if after[n] != before[n]} == {"head.weight", "head.bias"}  # the base has no head
    assert not torch.equal(base.head.weight, head)
    delta.remove(base, {**values, **buffers})  # once more changes nothing
    assert bits(base) == after


def test_a_model_trained_after_apply_is_not_removed_from() -> None:
    base, _, delta = case()
    handle = delta.apply(base)
    with torch.no_grad():
        base.layers[0].weight.add_(1)
    trained = bits(base)
    with pytest.raises(CheckpointError, match=r"layers.0.weight no longer hold"):
        handle.remove()
    assert bits(base) == trained


def test_buffers_may_move_between_apply_and_remove() -> None:
    base, _, delta = case()
    before = bits(base)
    handle = delta.apply(base)
    base.seen.add_(5)
    handle.remove()
    assert bits(base) == before


def test_a_new_head_alone_is_put_back_by_a_second_apply() -> None:
    base, tuned, delta = case()
    delta.apply(base)
    with torch.no_grad():
        base.head.bias.zero_()
    again = delta.apply(base)
    assert again.applied
    assert bits(base) == bits(tuned)
    again.remove()
    assert torch.equal(base.head.bias, torch.zeros(3))


def test_unknown_structural_changes_are_refused() -> None:
    from dataclasses import replace

    base, _, delta = case()
    asking = replace(delta, info=replace(delta.info, preparations=(("AddEverything", {"size": 3}),)))
    before = bits(base)
    with pytest.raises(CheckpointError, match="'AddEverything'"):
        asking.apply(base)
    assert bits(base) == before


def test_two_parameters_of_the_delta_that_are_one_here_are_refused() -> None:
    base = net(tie=False)
    tuned = tune(base)
    from delta_cases import delta_of

    delta = delta_of(base, tuned)
    tied = net(tie=True)
    before = bits(tied)
    with pytest.raises(CheckpointError, match="are one tied tensor here"):
        delta.apply(tied, force=True)
    assert bits(tied) == before


def test_modules_of_one_parameter() -> None:
    from subnetune.core.fingerprint import Fingerprint
    from subnetune.delta import Delta

    base = nn.Linear(1, 1, bias=False)
    tuned = tune(base, keep=1.0)
    delta = Delta.between(values_of(base), tuned, fingerprint=Fingerprint.of(base))
    assert not delta.entries  # a tensor that small is cheaper whole
    delta.apply(base)
    assert torch.equal(base.weight, tuned.weight)


def widen(model: nn.Module, arguments: Mapping[str, Any]) -> Callable[[], None]:
    """A structural change, as a table's row would be: one attribute more."""
    model.wide = arguments["by"]
    return lambda: delattr(model, "wide")


def prepared_by(delta: Delta, *names: str) -> Delta:
    return replace(delta, info=replace(delta.info, preparations=tuple((name, {"by": 2}) for name in names)))


def test_an_unknown_structural_change_is_refused_before_any_is_made(monkeypatch) -> None:
    monkeypatch.setattr(applying, "PREPARATIONS", {"widen": widen})
    base, _, delta = case()
    before = bits(base)
    with pytest.raises(CheckpointError, match="does not know: 'deepen'"):
        prepared_by(delta, "widen", "deepen").apply(base)
    assert not hasattr(base, "wide")
    assert bits(base) == before


def test_structural_changes_are_taken_back_with_the_delta_and_where_it_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(applying, "PREPARATIONS", {"widen": widen})
    base, tuned, delta = case()
    delta = prepared_by(delta, "widen")
    other = net(seed=9)
    with pytest.raises(CheckpointError, match="wrong base"):
        delta.apply(other)
    assert not hasattr(other, "wide")
    before = bits(base)
    handle = delta.apply(base)
    assert base.wide == 2
    assert bits(base) == bits(tuned)
    handle.remove()
    assert not hasattr(base, "wide")
    assert bits(base) == before
