"""What a run changed against its base, as new values: moved entries, tensors that the base lacks, changed buffers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, final

import numpy as np
import torch
from torch import Tensor, nn

from subnetune.core.bits import bits_of, equal_bits
from subnetune.core.errors import CheckpointError, UsageError, nearest
from subnetune.core.fingerprint import Fingerprint, named_buffers, named_parameters, parameter_aliases, whole_tensor
from subnetune.core.fingerprint import fingerprint as fingerprint_of
from subnetune.core.parallel import each, on_cpu
from subnetune.core.recipe import Structural
from subnetune.core.types import canonical_name, unwrap
from subnetune.delta.about import about
from subnetune.delta.codec import Index, encode_mask
from subnetune.delta.held import check_held
from subnetune.select.fixed import without_folder

if TYPE_CHECKING:
    from subnetune.delta.apply import Handle
    from subnetune.tuning import Tuning

FORMAT_VERSION = 1
Tokenizer: TypeAlias = Mapping[str, Any] | str | None


@final
@dataclass(frozen=True)
class DeltaInfo:
    """What a reader of the file should know.

    `base` is the fingerprint of the whole base model, `tuned` that of base and delta together ("" where not known, as
    after a merge); `tied`: the base's output embedding was its input embedding. `trained` of `total` entries were meant
    to train; `mask` is the mask's digest. `preparations` are (name, plain arguments) of structural changes.
    """

    base: str
    tuned: str = ""
    tied: bool = False
    dtype: str = "float32"
    recipe: str = ""
    trained: int = 0
    total: int = 0
    task_class: str = ""
    labels: Mapping[int, str] | None = None
    problem_type: str | None = None
    base_name: str = ""
    tokenizer: Tokenizer = None
    versions: Mapping[str, str] = field(default_factory=dict)
    mask: str | None = None
    preparations: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    format_version: int = FORMAT_VERSION

    @property
    def keep(self) -> float:
        """The achieved share of entries that trained."""
        return self.trained / self.total if self.total else 0.0


@final
@dataclass(frozen=True, eq=False)
class Entries:
    """The moved entries of one tensor of `shape`: where (`index`), new values (moved,), the base's fingerprint."""

    shape: tuple[int, ...]
    index: Index
    values: Tensor
    base: str


@final
@dataclass(frozen=True, eq=False)
class Whole:
    """One tensor stored whole, because that is smaller: its new values in their shape, the base's fingerprint."""

    values: Tensor
    base: str


@final
@dataclass(frozen=True, eq=False)
class Delta:
    """A run's result against its base, by canonical parameter name; equal inputs give an equal file.

    `entries` and `whole` replace values of the base; `new` are tensors that the base lacks (a new head); `buffers` are
    changed buffers.
    """

    info: DeltaInfo
    entries: Mapping[str, Entries] = field(default_factory=dict)
    whole: Mapping[str, Whole] = field(default_factory=dict)
    new: Mapping[str, Tensor] = field(default_factory=dict)
    buffers: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def touched(self) -> dict[str, Entries | Whole]:
        """The tensors of the base that moved."""
        return {**self.entries, **self.whole}

    @property
    def stored(self) -> int:
        """How many values the delta holds."""
        own = sum(e.values.numel() for e in self.entries.values()) + sum(w.values.numel() for w in self.whole.values())
        return own + sum(t.numel() for t in (*self.new.values(), *self.buffers.values()))

    def __repr__(self) -> str:
        moved = f"{len(self.entries)} tensors in part, {len(self.whole)} whole, {len(self.new)} new"
        return f"Delta({self.stored} values: {moved}, {len(self.buffers)} buffers; base {self.info.base[:12]})"

    @staticmethod
    def between(
        base_values: Mapping[str, Tensor],
        model: nn.Module,
        *,
        fingerprint: Fingerprint,
        new: Collection[str] = (),
        base_buffers: Mapping[str, Tensor] | None = None,
        recipe: str = "",
        trained: int = 0,
        total: int = 0,
        base_name: str | None = None,
        tokenizer: Tokenizer = None,
        mask: str | None = None,
        preparations: tuple[tuple[str, Mapping[str, Any]], ...] = (),
    ) -> Delta:
        """Return what moved in `model` against `base_values`, bit by bit (0.0 and -0.0 differ, NaN equals itself).

        `base_values` has every base tensor that may have moved; all others are hashed and must still be the base's.
        `new` names the tensors that the base lacks. Raises CheckpointError where a tensor moved that must not, or where
        `base_values` are not those of `fingerprint`; UsageError where names or shapes do not fit.
        """
        aliases = parameter_aliases(model)
        base_values = {aliases.get(name, name): value for name, value in base_values.items()}
        fresh = {aliases.get(name, name) for name in new}
        parameters = named_parameters(model)
        for name in (*base_values, *fresh):
            if name not in parameters:
                raise UsageError(f"the model has no parameter {name!r}{nearest(name, parameters)}")
        kept = [name for name in parameters if name not in fresh]

        def changed(name: str) -> tuple[Entries | Whole, str] | None:
            if name not in fingerprint.tensors:
                raise UsageError(f"{name!r} is neither in the base's fingerprint nor among the new tensors")
            return _changed(name, base_values.get(name), parameters[name], fingerprint.tensors[name])

        side_by_side = on_cpu([*parameters.values(), *base_values.values()])  # shards are gathered one at a time
        changes = dict(zip(kept, each(changed, kept) if side_by_side else map(changed, kept), strict=True))
        found = {name: change for name, change in changes.items() if change is not None}
        tuned = {**fingerprint.tensors, **{name: after for name, (_, after) in found.items()}}
        info = DeltaInfo(
            base=fingerprint.base,
            tuned=Fingerprint.over(model, tuned).base,
            tied=fingerprint.tied,
            recipe=recipe,
            trained=trained,
            total=total,
            tokenizer=tokenizer,
            mask=mask,
            preparations=preparations,
            **about(model, base_name),
        )
        stored_new = {name: whole_tensor(parameters[name]).cpu().clone() for name in parameters if name in fresh}
        entries = {name: part for name, (part, _) in found.items() if isinstance(part, Entries)}
        whole = {name: part for name, (part, _) in found.items() if isinstance(part, Whole)}
        return Delta(info, entries, whole, stored_new, _moved_buffers(model, base_buffers))

    @staticmethod
    def of(tuning: Tuning, *, base_name: str | None = None, tokenizer: Tokenizer = None) -> Delta:
        """Return what a tuning changed against its base (see `between`).

        Raises CheckpointError too where entries moved that an exact recipe's mask leaves out.
        """
        check_held(tuning)
        description = tuning.describe()
        return Delta.between(
            tuning.base_values(),
            tuning.model,
            fingerprint=tuning.fingerprint,
            new=tuning.new,
            base_buffers=tuning.base_buffers(),
            recipe=repr(without_folder(tuning.recipe)),
            trained=description.trained,
            total=description.total,
            base_name=base_name,
            tokenizer=tokenizer,
            mask=tuning.mask_digest(),
            preparations=tuple(
                (piece.name, dict(piece.arguments))
                for piece in tuning.recipe.prepare
                if isinstance(piece, Structural) and piece.permanent
            ),
        )

    def save(self, path: str | Path, *, allow_nonfinite: bool = False) -> None:
        """Write the delta, whole or not at all. Raises NumericError on NaN or infinite values unless allowed."""
        from subnetune.delta.format import save

        save(self, Path(path), allow_nonfinite=allow_nonfinite)

    @staticmethod
    def load(path: str | Path, allow_nonfinite: bool = False) -> Delta:
        """Read a delta from a file, or from a run directory that holds `delta.safetensors`; everything is checked.

        Raises CheckpointError, naming file and fault; NaN and infinite values are refused unless allowed.
        """
        from subnetune.delta.format import load

        return load(Path(path), allow_nonfinite=allow_nonfinite)

    def apply(self, model: nn.Module, *, force: bool = False) -> Handle:
        """Write the delta into `model`, all or nothing (see `subnetune.delta.apply.apply`)."""
        from subnetune.delta.apply import apply

        return apply(self, model, force=force)

    def remove(self, model: nn.Module, base: Mapping[str, Tensor]) -> None:
        """Take the delta out of `model` with the base's values (see `subnetune.delta.apply.remove`)."""
        from subnetune.delta.apply import remove

        remove(self, model, base)


def pack_entries(shape: tuple[int, ...], moved: Tensor, values: Tensor, base: str) -> Entries | Whole:
    """Return the smaller form of the entries where `moved`, (numel,), is True in `values`, a whole tensor (CPU)."""
    index = encode_mask(moved)
    chosen = torch.from_numpy(np.compress(moved.numpy(), bits_of(values).numpy())).view(values.dtype)
    if chosen.numel() * chosen.element_size() + index.data.numel() < values.numel() * values.element_size():
        return Entries(shape, index, chosen, base)
    return Whole(values.detach().clone(), base)


def _changed(name: str, before: Tensor | None, after: Tensor, base: str) -> tuple[Entries | Whole, str] | None:
    """Return what moved in a tensor whose fingerprint was `base`, and its fingerprint now; None where nothing did."""
    after = whole_tensor(after)
    if before is None:
        if fingerprint_of(after) != base:
            raise CheckpointError(f"{name!r} was frozen, yet its values are not the base's; it must not move")
        return None
    before = _same_kind(name, whole_tensor(before), after)
    if fingerprint_of(before) != base:
        raise CheckpointError(f"the base values given for {name!r} are not those of the base's fingerprint")
    after = after.cpu()
    moved = np.not_equal(bits_of(before).numpy(), bits_of(after).numpy())
    if not moved.any():
        return None
    return pack_entries(tuple(after.shape), torch.from_numpy(moved), after, base), fingerprint_of(after)


def _same_kind(name: str, before: Tensor, after: Tensor) -> Tensor:
    if before.shape != after.shape or before.dtype != after.dtype:
        raise UsageError(
            f"{name!r} was {tuple(before.shape)} of {before.dtype} in the base and is {tuple(after.shape)} of "
            f"{after.dtype} now; a delta needs both alike"
        )
    return before.cpu()


def _moved_buffers(model: nn.Module, base: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    if base is None:
        return {}
    buffers = {name: whole_tensor(buffer).cpu() for name, buffer in named_buffers(model).items()}
    if gone := sorted(set(base) - set(buffers)):
        raise UsageError(f"the model has no buffer {', '.join(gone)}; the base had")
    saved = {canonical_name(name) for name in unwrap(model).state_dict()}  # the others are rebuilt by the model's class
    added = {name for name in buffers if name not in base and name in saved}
    return {n: b.clone() for n, b in buffers.items() if n in added or (n in base and not equal_bits(b, base[n]))}
