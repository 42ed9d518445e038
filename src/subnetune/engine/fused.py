"""The fused engine: AdamW in one pass over weights, gradient and moments, with the mask applied inside the loop.

A random mask of entries is a hash computed in the loop, with nothing in memory; a mask that changes is read from
packed bits beside dense moments; a static mask has packed moments. Each weight agrees with the reference engine within
4 ulp a step from the same state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from subnetune.core.errors import CheckpointError
from subnetune.core.hashing import keys, threshold
from subnetune.core.masks import kept_fraction
from subnetune.core.types import Mask, is_sharded, placement
from subnetune.engine.child import Child, flat, mask_bits
from subnetune.engine.kernels import Hashed, Job, Moments, Rates, Treatment, kernels_for
from subnetune.engine.place import Place
from subnetune.engine.served import ServedOptimizer, check_same_shape
from subnetune.select.bernoulli import Bernoulli

_WORD = 1 << 32
_MOMENTS = ("exp_avg", "exp_avg_sq")


class Treated(NamedTuple):
    """What the update rules of a recipe do: `treatment` of unselected entries, and whether gradients are rescaled."""

    treatment: Treatment
    rescale: bool


class Drawn(NamedTuple):
    """A random mask of entries, drawn at this step: an entry is selected iff its hash lies below `limit`."""

    seed: int
    step: int
    limit: int


@dataclass(slots=True)
class State:
    """AdamW's state of one tensor: the steps it took part in, and its moments, (count,) or in the local shape."""

    step: int
    moments: Moments


class FusedAdamW(ServedOptimizer):
    """AdamW under a recipe's mask. States: `step` (a number), `exp_avg`, `exp_avg_sq` (float32, as large as needed)."""

    engine = "fused"

    def __init__(self, probe: Optimizer, child: Child, treated: Treated) -> None:
        super().__init__(probe, child)
        self._treated = treated
        selector = child.host.recipe.selector
        self._random = type(selector) is Bernoulli and selector.unit == "entry"  # a hash for each entry
        self._packs = selector is not None and selector.static and treated.treatment.hold
        self._states: dict[str, State] = {}

    def update(self) -> None:
        """Update each tensor that has a gradient, all in one call of the kernels."""
        state, moment = self.child.host.stage()
        selector, treatment, jobs = self.child.host.recipe.selector, self._treated.treatment, list[Job]()
        # What is not looked at is not put together: a static mask is known as places, a random one by its hash.
        mask = None if selector is None or self._packs or self._random else self.child.host.live(self).mask
        drawn = Drawn(state["seed"], moment.index, threshold(state["keep"])) if self._random else None
        unmasked = selector is None or (mask is None and not self._packs and drawn is None)
        rescale = self._treated.rescale and not unmasked
        keep = kept_fraction("MaskGradient(rescale=True)", state) if rescale else None
        masks = not (unmasked or self._packs) and any(treatment)
        for group in self.param_groups:
            known: dict[tuple[int, bool], Rates] = {}
            for name in group["param_names"]:
                local = self.child.local(name)
                place = self._place(name, local)
                gradient = self.gradient(name, local, place)
                if gradient is None:
                    continue
                own = self._state(name, local, place)
                own.step += 1
                rescaled = keep is not None and name in self.child.selected
                kind = own.step, rescaled
                if kind not in known:
                    known[kind] = self._rates(group, own.step, keep if keep is not None and rescaled else 1.0)
                dense = gradient if gradient.is_contiguous() and not gradient.is_sparse else flat(gradient)
                if masks and name in self.child.selected:
                    job = Job(local, dense, own.moments, known[kind], None, treatment)
                    jobs += self._masked(job, name, drawn, mask)
                else:
                    jobs.append(Job(local, dense, own.moments, known[kind], place, treatment))
        if jobs:
            kernels_for(jobs[0].weights.device.type).adamw_all(jobs)

    def _masked(self, job: Job, name: str, drawn: Drawn | None, mask: Mask | None) -> list[Job]:
        """Return what is to be done for a tensor whose mask is that of this step alone, beside dense moments."""
        local, gradient, moments, rates, _, treatment = job
        sharded = is_sharded(local)
        if drawn is not None and not sharded and local.numel() < _WORD:
            words = keys(drawn.seed, drawn.step, name)
            return [Job(local, gradient, moments, rates, Hashed(*words, drawn.limit, 0), treatment)]
        if drawn is None or (sharded and tuple(local.shape[1:]) != placement(local).shape[1:]):
            mask = self.child.host.live(self).mask if mask is None else mask
            assert mask is not None
            return [Job(local, gradient, moments, rates, mask_bits(mask, name, local), treatment)]
        weights, seen, (m, v) = local.detach().view(-1), gradient.view(-1), (moment.view(-1) for moment in moments)
        return [
            Job(weights[low:high], seen[low:high], Moments(m[low:high], v[low:high]), rates, hashed, treatment)
            for low, high, hashed in _runs(name, local, drawn)
        ]

    def _rates(self, group: Mapping[str, Any], step: int, divisor: float) -> Rates:
        beta1, beta2 = map(float, group["betas"])
        decay = float(group["weight_decay"])
        return Rates(float(group["lr"]), beta1, beta2, group["eps"], decay, step, self.scale, divisor)

    def _place(self, name: str, local: Tensor) -> Place | None:
        return self.child.place(name, local) if self._packs else None

    def _state(self, name: str, local: Tensor, place: Place | None) -> State:
        shape = local.shape if place is None else (place.count,)
        state = self._states.get(name)
        if state is None:
            moments = (torch.zeros(shape, dtype=torch.float32, device=local.device) for _ in _MOMENTS)
            state = self._states[name] = State(0, Moments(*moments))
        elif state.moments.first.shape != shape:
            check_same_shape(name, tuple(state.moments.first.shape), tuple(shape))
        return state

    # -- state -------------------------------------------------------------------------------------------------------

    def states(self) -> dict[str, dict[str, Any]]:
        """Return copies of the states by name."""
        return {
            name: {"step": state.step, **{k: m.clone() for k, m in zip(_MOMENTS, state.moments, strict=True)}}
            for name, state in self._states.items()
        }

    def check_states(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Raise CheckpointError where a state is not that of AdamW."""
        for name, state in states.items():
            if set(state) != {"step", *_MOMENTS}:
                raise CheckpointError(
                    f"the state of {name!r} holds {sorted(state)}, wanted {['step', *_MOMENTS]}: it is damaged"
                )

    def put_states(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over copies of these states."""
        self._states = {}
        for name, state in states.items():
            device = self.child.local(name).device
            moments = (state[key].to(device, torch.float32, copy=True).contiguous() for key in _MOMENTS)
            self._states[name] = State(int(state["step"]), Moments(*moments))

    def expected(self, name: str) -> tuple[int, ...]:
        """Return (count,) for a tensor with a static mask, else its local shape."""
        local = self.child.local(name)
        place = self._place(name, local)
        return tuple(local.shape) if place is None else (place.count,)


def _runs(name: str, local: Tensor, drawn: Drawn) -> Iterator[tuple[int, int, Hashed]]:
    """Yield the flat range of each run of entries whose indices share their high word, with its mask."""
    where = placement(local)
    inner = local.numel() // local.shape[0] if local.dim() and local.shape[0] else 1
    begin = where.start[0] * inner if where.start else 0
    low = 0
    while low < local.numel():
        first = begin + low
        high = min(local.numel(), low + _WORD - first % _WORD)
        words = keys(drawn.seed, drawn.step, name, first // _WORD)
        yield low, high, Hashed(*words, drawn.limit, first % _WORD)
        low = high
