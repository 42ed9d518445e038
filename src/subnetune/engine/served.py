"""What the packed and the fused engine share: an optimizer whose groups list the model's parameters by name.

Learning-rate schedulers, GradScaler, accelerate and users see an ordinary `torch.optim.Optimizer`. Its states are as
large as what is selected, and its state dict is keyed by parameter names.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from subnetune.core.errors import CheckpointError, LifeCycleError, UsageError
from subnetune.core.types import placement
from subnetune.engine.child import Child
from subnetune.engine.lean import LeanGradients
from subnetune.engine.norms import check_max_norm, clip_factor, packed, total_norm
from subnetune.engine.place import Place

FORMAT = 1


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
        self.lean: LeanGradients | None = None
        self._built = False
        super().__init__(probe.param_groups, dict(probe.defaults))
        self._built = True

    def use(self, lean: LeanGradients) -> None:
        """Read packed gradients from now on: the groups list their leaves in the place of tensors with a mask."""
        self.lean = lean
        for group in self.param_groups:
            pairs = zip(group["params"], group["param_names"], strict=True)
            group["params"] = [lean.leaves.get(name, parameter) for parameter, name in pairs]

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
        if self.lean is not None:
            self.lean.ready()
        self.update()
        self.scale = None
        if self.lean is not None:  # a loop that calls `model.zero_grad()` does not reach them
            self.lean.clear()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of everything that trains, and what `clip` has asked for."""
        super().zero_grad(set_to_none)
        if self.lean is not None:
            self.lean.clear(leaves=set_to_none)
        self.scale = None

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
        live = self.child.host.live(self) if masked else None
        parts, found = [], []
        for name in self.child.names:  # the model's order, whatever the groups are: sums depend on it
            local = self.child.local(name)
            place = None if live is None else self.child.place(name, local, live)
            gradient = self.gradient(name, local, place)
            if gradient is not None:
                found.append(gradient)
                dense = place is None or gradient.numel() == place.size
                parts.append((local, packed(gradient, place) if dense else gradient))
        norm = total_norm(parts)
        norm = norm if self.scale is None else norm * self.scale
        scale = clip_factor(norm, max_norm)
        if at_once:
            for gradient in found:
                gradient.mul_(scale)
        elif scale.device.type != "cpu" or scale != 1.0:  # what changes no bit needs no pass over the gradients
            self.scale = scale if self.scale is None else self.scale * scale
        return norm

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
        self.scale = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Raise UsageError: the recipe says what trains."""
        if self._built:
            raise UsageError("what trains follows from the recipe: change its scope, and build another Tuning")
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
        return {**shell, "about": self.about(), "state": states, "param_groups": groups}

    def about(self) -> dict[str, Any]:
        """Return what must agree between a saved state and this optimizer."""
        return {"format": FORMAT, "engine": self.engine, "class": self.kind.__name__}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Replace states and hyper-parameters by those of `state_dict()`; nothing is cast. An empty state is fine.

        Raises CheckpointError, with nothing changed, for the state of another engine, optimizer class or recipe.
        """
        states, groups = self._checked(state_dict)
        numbers = {name: index for index, (_, name) in enumerate(self.slots())}
        numbered = [{**group, "params": [numbers[name] for name in group["params"]]} for group in groups]
        shell = {key: value for key, value in state_dict.items() if key != "about"}
        super().load_state_dict({**shell, "state": {}, "param_groups": numbered})
        self.scale = None
        self.put_states(states)

    def _checked(self, saved: Mapping[str, Any]) -> tuple[Mapping[str, Mapping[str, Any]], list[dict[str, Any]]]:
        about, states, groups = saved.get("about"), saved.get("state"), saved.get("param_groups")
        if not isinstance(about, Mapping) or not isinstance(states, Mapping) or not isinstance(groups, list):
            raise CheckpointError(
                f"this is not the state of subnetune's {self.engine} engine; a state that torch's {self.kind.__name__} "
                'saved continues with tuning.optimizer(..., engine="reference")'
            )
        for key, wanted in self.about().items():
            if about.get(key) != wanted:
                raise CheckpointError(
                    f"the optimizer state was saved with {key} {about.get(key)!r}, this run has {wanted!r}: a run goes "
                    "on with what it began with, tuning.optimizer(..., engine=...)"
                )
        if [list(group["params"]) for group in groups] != [list(g["param_names"]) for g in self.param_groups]:
            raise CheckpointError("the optimizer state groups other parameters than this recipe trains")
        unknown = sorted(set(states) - set(self.child.names))
        if unknown:
            raise CheckpointError(f"the optimizer state holds {unknown[0]!r}, which this recipe does not train")
        for name, state in states.items():
            wanted_shape = self.expected(name)
            for key, value in state.items():
                if isinstance(value, Tensor) and value.dim() and tuple(value.shape) != wanted_shape:
                    raise CheckpointError(
                        f"the state {key!r} of {name!r} has shape {tuple(value.shape)}, wanted {wanted_shape}: it "
                        "belongs to another mask or model"
                    )
        return states, groups


def check_same_shape(name: str, before: tuple[int, ...], now: tuple[int, ...]) -> None:
    """Raise LifeCycleError where a tensor that has a state was sharded or exchanged since."""
    if before != now:
        raise LifeCycleError(
            f"{name!r} had the local shape {before} when its optimizer state was made and has {now} now: shard the "
            "model before the first step"
        )
