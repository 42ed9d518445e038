"""Write a delta into a model, all or nothing, and take it out again with the base's exact bits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from subnetune.core.errors import CheckpointError, UsageError, nearest
from subnetune.core.fingerprint import (
    Fingerprint,
    embedding_ends,
    fingerprint,
    named_buffers,
    named_parameters,
    parameter_aliases,
)
from subnetune.core.randomness import forked_randomness
from subnetune.core.types import unwrap
from subnetune.delta.adapters import replay_adapter
from subnetune.delta.delta import Delta, Entries, Whole
from subnetune.delta.writing import Write, misses, write_all
from subnetune.prepare.add_adapter import AddAdapter
from subnetune.prepare.concat_pooling import ConcatPooling

log = logging.getLogger(__name__)

# Structural changes that a delta may ask for, by name: a closed table, so that reading a file never runs code from it.
# Each changes the model that lacks its change, and returns what undoes that.
PREPARATIONS: Mapping[str, Callable[[nn.Module, Mapping[str, Any]], Callable[[], None]]] = {
    AddAdapter.name: replay_adapter,
    ConcatPooling.name: lambda model, arguments: ConcatPooling(**arguments).restructure(unwrap(model)),
}


@final
class Handle:
    """An applied delta: it holds the values that were there before, and `remove` puts them back.

    `applied` is False where the model already was base and delta together: then nothing was written, and `remove` does
    nothing. Removing twice is removing once.
    """

    def __init__(self, delta: Delta, writes: list[Write], old: list[Tensor], undo: ExitStack) -> None:
        self.delta = delta
        self.applied = bool(writes)
        self._writes, self._old, self._undo = writes, old, undo

    def remove(self) -> None:
        """Restore the old values, bit for bit, in tensors, new tensors and buffers; undo structural changes.

        Raises CheckpointError, and changes nothing, where the model no longer holds the delta's values (it was trained
        on, or another delta was applied over this one: remove that one first). Buffers are restored in any case, since
        a forward pass may move them.
        """
        if not self.applied:
            self._undo.close()  # modules may have changed where no value did
            return
        moved = misses([w for w in self._writes if w.name not in self.delta.buffers])
        if moved:
            raise CheckpointError(
                f"not removed: {_listed(moved)} no longer hold the delta's values; undo what was done after apply, "
                "or load the base again"
            )
        write_all([w._replace(values=old) for w, old in zip(self._writes, self._old, strict=True)])
        self.applied = False
        self._writes, self._old = [], []
        self._undo.close()


def apply(delta: Delta, model: nn.Module, *, force: bool = False) -> Handle:
    """Write the delta's values into `model` and return the handle that takes them out again.

    Everything is checked before the first write, and all problems are named together; should a write fail, what was
    written is restored, and so is a structural change. A model that already is base and delta together is left as it
    is (see `Handle.applied`).
    `force` writes into another base than the delta's, and says so in the log; names, shapes and dtypes must still fit.
    Raises CheckpointError where the delta does not fit the model, UsageError for a sharded model.
    """
    with restructured(delta, model) as undo:  # whatever is refused from here on takes the structural changes back
        writes = _checked(delta, model, force)
        return Handle(delta, writes, write_all(writes), undo.pop_all())


def restructured(delta: Delta, model: nn.Module) -> ExitStack:
    """Make the delta's structural changes in a model that lacks them; closing what is returned takes them back.

    Raises CheckpointError for a change that this version does not know, or that the model has in another form.
    """
    if unknown := [name for name, _ in delta.info.preparations if name not in PREPARATIONS]:
        raise CheckpointError(
            f"the delta asks for structural changes that this version does not know: {_listed([*map(repr, unknown)])}"
        )
    with ExitStack() as undo, forked_randomness():  # what a change draws, the delta's values replace
        for name, arguments in delta.info.preparations:
            try:
                undo.callback(PREPARATIONS[name](model, arguments))
            except TypeError as error:
                raise CheckpointError(f"the delta's structural change {name!r} is damaged: {error}") from error
        return undo.pop_all()


def _checked(delta: Delta, model: nn.Module, force: bool) -> list[Write]:
    """Return what is to be written, none where the model already is base and delta together."""
    parameters, buffers = targets(delta, model)
    found = Fingerprint.of(model, exclude=list(delta.new))
    writes = list(_writes(delta, parameters, buffers))
    if found.base == delta.info.tuned:  # also the base, where the delta brings new tensors alone
        missed = misses(writes)
        return [write for write in writes if write.name in missed]  # at most new tensors or a buffer that moved
    if found.base == delta.info.base:
        return writes
    if not force:
        raise CheckpointError(_wrong_base(delta, found))
    log.warning("applied by force: %s", _wrong_base(delta, found))
    return writes


def remove(delta: Delta, model: nn.Module, base: Mapping[str, Tensor]) -> None:
    """Take the delta out of `model` with the base's values: `base` has each tensor and buffer that the delta changed.

    A model that is the base already is left as it is. Tensors that the base lacks stay. Raises CheckpointError, before
    anything is written, unless the model is base and delta together and `base` holds the base's values.
    """
    if delta.info.preparations:  # the base's modules are not among its values
        changes = _listed([name for name, _ in delta.info.preparations])
        raise CheckpointError(
            f"{changes} cannot be taken off by values: use the handle of apply, or load the base again"
        )
    parameters, buffers = targets(delta, model)
    found = Fingerprint.of(model, exclude=list(delta.new))
    aliases = parameter_aliases(model)
    base = {aliases.get(name, name): value for name, value in base.items()}
    touched = {} if found.base == delta.info.base else {aliases.get(n, n): part for n, part in delta.touched.items()}
    problems = [f"{name!r} is missing" for name in (*touched, *delta.buffers) if name not in base]
    for name in sorted(base.keys() & touched.keys()):
        if fingerprint(base[name]) != touched[name].base or base[name].dtype != named_parameters(model)[name].dtype:
            problems.append(f"{name!r} is not the base's")
    for name in sorted(base.keys() & buffers.keys()):
        problems += _misfits(name, buffers[name], tuple(base[name].shape), base[name].dtype)
    if problems:
        raise CheckpointError(f"the base values given do not fit: {_listed(problems)}; give those the run started from")
    writes = [w for w in _writes(delta, parameters, buffers) if aliases.get(w.name, w.name) in (*touched, *buffers)]
    strange = misses([w for w in writes if w.name not in buffers])
    if strange or (touched and delta.info.tuned and found.base != delta.info.tuned):
        where = _listed(strange) if strange else "a tensor that the delta does not change"
        raise CheckpointError(f"not removed: the model is not base and delta together: {where} differs")
    write_all([Write(w.name, w.target, None, base[aliases.get(w.name, w.name)].detach()) for w in writes])


def targets(delta: Delta, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the model's parameters and buffers for each of the delta's names.

    Raises CheckpointError with all problems where some do not fit, UsageError for a sharded model.
    """
    named: dict[str, Tensor] = dict(named_parameters(model))
    aliases = parameter_aliases(model)
    own_buffers = named_buffers(model)
    parameters: dict[str, Tensor] = {}
    problems: list[str] = []
    wanted: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        **{name: (entries.shape, entries.values.dtype) for name, entries in delta.entries.items()},
        **{name: (tuple(whole.values.shape), whole.values.dtype) for name, whole in delta.whole.items()},
        **{name: (tuple(tensor.shape), tensor.dtype) for name, tensor in delta.new.items()},
    }
    for name, (shape, dtype) in wanted.items():
        own = aliases.get(name, name)
        if own != name and own in wanted:
            problems.append(f"{name!r} and {own!r} are one tied tensor here; the delta has them as two")
        elif own not in named:
            hint = " (a head of this task is missing)" if name in delta.new else nearest(name, named)
            problems.append(f"the model has no parameter {name!r}{hint}")
        else:
            parameters[name] = named[own]
            problems += _misfits(name, named[own], shape, dtype)
    for name, tensor in delta.buffers.items():
        if name not in own_buffers:
            problems.append(f"the model has no buffer {name!r}{nearest(name, own_buffers)}")
        else:
            problems += _misfits(name, own_buffers[name], tuple(tensor.shape), tensor.dtype)
    problems += _tie_problems(delta, model, aliases)
    if problems:
        own = type(unwrap(model)).__name__
        raise CheckpointError(f"the delta ({delta.info.task_class}) does not fit this {own}: {'; '.join(problems)}")
    return parameters, {name: own_buffers[name] for name in delta.buffers}


def _misfits(name: str, own: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[str]:
    if isinstance(own, DTensor):
        raise UsageError(f"{name!r} is sharded: apply the delta first, then shard the model")
    if tuple(own.shape) != shape:
        yield (
            f"{name!r} is {tuple(own.shape)} here and {shape} in the delta "
            "(another number of labels, or a resized vocabulary?)"
        )
    if own.dtype != dtype:
        wanted = str(dtype).removeprefix("torch.")
        yield f"{name!r} is {own.dtype} here and {dtype} in the delta (load the model with dtype={wanted!r})"


def _tie_problems(delta: Delta, model: nn.Module, aliases: Mapping[str, str]) -> Iterator[str]:
    """An embedding that is tied on one side only would leave its copy behind, or move it along."""
    ends = embedding_ends(model)
    touched = {aliases.get(name, name) for name in delta.touched}
    if ends is None or not touched & set(ends) or delta.info.tied == (ends[0] == ends[1]):
        return
    if delta.info.tied:
        yield f"{ends[0]!r} is the output embedding too in the delta's base, and {ends[1]!r} is untied here: tie them"
    else:
        yield f"{ends[0]!r} is tied to the output embedding here, and untied in the delta's base"


def _wrong_base(delta: Delta, found: Fingerprint) -> str:
    moved = [name for name, part in delta.touched.items() if found.tensors.get(name) != part.base]
    where = f"{_listed(moved)} differ" if moved else "a tensor that the delta does not change differs"
    name = f" ({delta.info.base_name})" if delta.info.base_name else ""
    return (
        f"wrong base: the delta belongs to {delta.info.base[:12]}{name}, this model is {found.base[:12]}: {where}; "
        "load the weights that the run started from"
    )


def _writes(delta: Delta, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> Iterator[Write]:
    """Yield what the delta writes; the new values stay on the CPU until they are written."""
    for name, part in delta.touched.items():
        if isinstance(part, Entries):
            yield Write(name, parameters[name].detach(), part.index, part.values)
        else:
            assert isinstance(part, Whole)
            yield Write(name, parameters[name].detach(), None, part.values)
    for name, values in delta.new.items():
        yield Write(name, parameters[name].detach(), None, values)
    for name, values in delta.buffers.items():
        yield Write(name, buffers[name].detach(), None, values)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
