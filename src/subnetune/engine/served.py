"""What the packed and the fused engine share: an optimizer whose groups list the model's parameters by name.

Learning-rate schedulers, GradScaler, accelerate and users see an ordinary `torch.optim.Optimizer`. Its states are as
large as what is selected, and its state dict is keyed by parameter names.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from subnetune.core.errors import CheckpointError, LifeCycleError, UsageError
from subnetune.core.masks import mask_digest
from subnetune.core.types import placement
from subnetune.engine.child import Child
from subnetune.engine.clipped import Clipped
from subnetune.engine.lean import LeanGradients
from subnetune.engine.named import Elsewhere, checked_state, named_groups
from subnetune.engine.norms import check_max_norm, clip_factor, packed, total_norm
from subnetune.engine.place import Place
from subnetune.select.fixed import without_folder

FORMAT = 1
_CHANGED = (
    "the gradients changed since they were clipped: clip once, after the last backward pass of a step and after "
    "whatever else works on gradients; what is not stepped with is discarded by optimizer.zero_grad()"
)
_FIXED = "what trains follows from the recipe: change its scope, and build another Tuning"


class ServedOptimizer(Optimizer):
    """An optimizer that applies a recipe's update rules itself. Made by `Tuning.optimizer`.

    `kind` is the class whose arithmetic it has; `probe` an instance of it over the same groups, whose hyper-parameters
    (checked and filled in by that class) become this optimizer's own.
    """

    engine: str  # the engine's name

    def __init__(self, probe: Optimizer, child: Child) -> None:
        self.kind = type(probe)
        self.child = child
        self.scale: Tensor | None = None  # what the gradients of the step to come are multiplied by, from clipping
        self._clipped: Clipped | None = None  # what was measured, where `scale` is set
        self._digest: str | None = None  # of a static mask
        self.lean: LeanGradients | None = None
        self._closed = False
        self._built = False
        groups = named_groups(probe.param_groups, {name: child.parameter(name) for name in child.names})
        super().__init__(groups, dict(probe.defaults))
        self._listed = [(list(group["param_names"]), list(group["params"])) for group in self.param_groups]
        self._built = True

    @property
    def state(self) -> defaultdict[Any, Any]:
        """Nothing: states are kept by name, see `state_dict`."""
        return Elsewhere(dict)

    @state.setter
    def state(self, value: Any) -> None:
        """Ignore what torch's constructor sets. UsageError for anything later: it would have no effect."""
        if self._built:
            Elsewhere(dict).clear()

    def close(self) -> None:
        """Take no further step: the Tuning has let the model go."""
        self._closed = True

    def use(self, lean: LeanGradients) -> None:
        """Read packed gradients from now on: the groups list their leaves in the place of tensors with a mask."""
        self.lean = lean
        self._reread()

    # -- what the two engines do differently -------------------------------------------------------------------------

    @abstractmethod
    def update(self) -> None:
        """Update every tensor that has a gradient."""

    @abstractmethod
    def states(self) -> dict[str, dict[str, Any]]:
        """Return the state of each tensor that has one, by name: tensors (`expected` shape or scalars) and numbers."""

    @abstractmethod
    def put_states(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Replace every state by copies of these, which `load_state_dict` has checked."""

    @abstractmethod
    def expected(self, name: str) -> tuple[int, ...]:
        """Return the shape of a state tensor of `name` that has one number for each entry that trains."""

    # -- a step ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take a step. A closure raises UsageError: gradients would come after the mask was applied."""
        if closure is not None:
            raise UsageError("this optimizer takes no closure; compute the gradients first, then call step()")
        if self._closed:
            raise LifeCycleError("the Tuning of this optimizer is closed: build a new one, and its optimizer")
        self._reread()
        if self.lean is not None:
            self.lean.ready()
        self.update()
        self._forget()
        if self.lean is not None:  # a loop that calls `model.zero_grad()` does not reach them
            self.lean.drop()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of everything that trains, and what `clip` has asked for."""
        self._reread()
        super().zero_grad(set_to_none)
        if self.lean is not None:
            self.lean.clear(leaves=set_to_none)
        self._forget()

    def _forget(self) -> None:
        self.scale = self._clipped = None

    def _reread(self) -> None:
        """List the parameters that the model holds now: sharding exchanges them. UsageError for anyone else's lists."""
        if len(self.param_groups) != len(self._listed):
            raise UsageError(f"{len(self._listed)} groups were made, now there are {len(self.param_groups)}; {_FIXED}")
        for group, (names, before) in zip(self.param_groups, self._listed, strict=True):
            now = [self.holder(name) for name in names]
            if list(group["param_names"]) != names or len(group["params"]) != len(names):
                raise UsageError(f"a group's list of parameters was changed; {_FIXED}")
            for name, listed, *known in zip(names, group["params"], before, now, strict=True):
                if all(listed is not tensor for tensor in known):
                    raise UsageError(f"a group lists another tensor in the place of {name!r}; {_FIXED}")
            group["params"] = now
            before[:] = now

    def holder(self, name: str) -> Tensor:
        """Return what carries the gradient of a tensor: the parameter, or the leaf of lean gradients."""
        leaf = None if self.lean is None else self.lean.leaves.get(name)
        return self.child.parameter(name) if leaf is None else leaf

    def slots(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Yield each name that trains with its group."""
        for group in self.param_groups:
            for name in group["param_names"]:
                yield group, name

    def gradient(self, name: str, local: Tensor, place: Place | None) -> Tensor | None:
        """Return the gradient of a tensor: dense, in its local shape, or packed, (count,); None where it has none."""
        return local.grad if self.lean is None or name not in self.lean.leaves else self.lean.gradient(name)

    @torch.no_grad()
    def clip(self, max_norm: float, masked: bool, at_once: bool) -> Tensor:
        """Let the next step scale its gradients to the norm `max_norm`; return the norm before, a scalar.

        `masked` counts selected entries alone. Gradients are left as they are, unless they shall be scaled `at_once`.
        """
        check_max_norm(max_norm)
        if self.lean is not None:
            self.lean.ready()
        found, norm = self._measured(masked)
        if self.scale is not None and self._clipped is not None:
            before = self._clipped.norm
            if self._clipped.gone() or not bool(torch.isfinite(before)):
                self.scale = None  # of a step that was never taken
            elif not torch.equal(before, norm):
                raise UsageError(_CHANGED)
            else:
                self.settle()
                found, norm = self._measured(masked)
        scale = clip_factor(norm, max_norm)
        if at_once:
            for gradient in found.values():
                gradient.mul_(scale)
        elif scale.device.type != "cpu" or scale != 1.0:  # what changes no bit needs no pass over the gradients
            self.scale, self._clipped = scale, Clipped(norm, found, self.holder)
        return norm

    def _measured(self, masked: bool) -> tuple[dict[str, Tensor], Tensor]:
        """Return the gradients by name, and the norm of what is to be clipped of them."""
        live = self.child.host.live(self) if masked and not self.child.static else None
        parts, found = [], {}
        for name in self.child.names:  # the model's order, whatever the groups are: sums depend on it
            local = self.child.local(name)
            place = self.child.place(name, local, live) if masked else None
            gradient = self.gradient(name, local, place)
            if gradient is not None:
                found[name] = gradient
                dense = place is None or gradient.numel() == place.size
                parts.append((local, packed(gradient, place) if dense else gradient))
        return found, total_norm(parts)

    def check_clipped(self) -> None:
        """Raise UsageError where the gradients are not those that were clipped: the factor would be none of theirs."""
        if self.scale is None or self._clipped is None:
            return
        if self._clipped.gone() or self._clipped.changed():
            if bool(torch.isfinite(self._clipped.norm)):
                raise UsageError(_CHANGED)
            self._forget()  # of an overflow, for which no step was taken

    @torch.no_grad()
    def settle(self) -> None:
        """Scale the gradients now as the next step would have."""
        if self.scale is None:
            return
        for name in self.child.names:
            local = self.child.local(name)
            gradient = self.gradient(name, local, None)
            if gradient is not None:
                gradient.mul_(self.scale)
        self._forget()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Raise UsageError: the recipe says what trains."""
        if self._built:
            raise UsageError(_FIXED)
        super().add_param_group(param_group)

    # -- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return states by parameter name, groups with names for parameters, tensors as copies.

        Safe to load with `weights_only=True`. Raises CheckpointError for sharded parameters: each rank holds a slice,
        and a file of one rank's slices would look whole.
        """
        shell: dict[str, Any] = super().state_dict()  # `self.state` is always empty; torch's hooks run in here
        states = self.states()
        for name in states:
            if placement(self.child.local(name)).sharded:
                raise CheckpointError(
                    f"the optimizer state of {name!r} is sharded, each rank holding a slice: it cannot be saved or "
                    'gathered yet; build the optimizer with engine="reference" for torch\'s own distributed checkpoints'
                )
        groups = [{**group, "params": list(group["param_names"])} for group in shell["param_groups"]]
        return {**shell, "about": self.about(bool(states)), "state": states, "param_groups": groups}

    def about(self, full: bool) -> dict[str, Any]:
        """Return what must agree between a saved state and this optimizer; recipe and mask only where `full`."""
        here = {"format": FORMAT, "engine": self.engine, "class": self.kind.__name__}
        if full:
            here["recipe"] = repr(without_folder(self.child.host.recipe))
            if self._digest is None and self.child.static:
                live = self.child.host.live()
                self._digest = mask_digest(live.mask, live.params)
            here["mask"] = self._digest
        return here

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Replace states and hyper-parameters by those of `state_dict()`; nothing is cast. An empty state is fine.

        Raises CheckpointError, with nothing changed, for the state of another engine, optimizer class or recipe.
        """
        here = self.about(bool(state_dict.get("state")))
        states, groups = checked_state(
            state_dict, here, [list(group["param_names"]) for group in self.param_groups], self.expected
        )
        self.check_states(states)
        numbers = {name: index for index, (_, name) in enumerate(self.slots())}
        numbered = [{**group, "params": [numbers[name] for name in group["params"]]} for group in groups]
        shell = {key: value for key, value in state_dict.items() if key != "about"}
        super().load_state_dict({**shell, "state": {}, "param_groups": numbered})
        self._forget()
        self.put_states(states)

    def check_states(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Raise CheckpointError where a state lacks what this engine needs."""

    def __getstate__(self) -> dict[str, Any]:
        """Raise UsageError: a copy would step for the same Tuning, on the same model."""
        raise UsageError(
            "this optimizer belongs to its Tuning and model, and cannot be copied or pickled: keep its state_dict(), "
            "and load it into the optimizer of another Tuning"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Raise UsageError, as pickling does."""
        return self.__getstate__()


def check_same_shape(name: str, before: tuple[int, ...], now: tuple[int, ...]) -> None:
    """Raise LifeCycleError where a tensor that has a state was sharded or exchanged since."""
    if before != now:
        raise LifeCycleError(
            f"{name!r} had the local shape {before} when its optimizer state was made and has {now} now: shard the "
            "model before the first step"
        )
