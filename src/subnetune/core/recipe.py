"""A fine-tuning method as a value: which tensors, which entries, what happens to the others, and what the loss adds.

After `from subnetune import *`, `eval(repr(recipe)) == recipe` holds for every recipe whose pieces are frozen
dataclasses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import nn

from subnetune.core.combinations import check_combination
from subnetune.core.errors import UsageError
from subnetune.core.types import ForwardRule, Mask, Params, Preparation, Setting, State, Step, UpdateRule


@dataclass(frozen=True)
class Scope:
    """Which tensors are *selected* (subject to the selector), *whole* (trained fully) or *frozen* (all others).

    Patterns are globs over canonical names (`encoder.layer.0.*`), or roles (`@layers`, `@layers[-4:]`,
    `@embeddings`, `@head`, `@bias`, `@norm`, `@linear`, `@adapter`); `*` means whatever no other pattern claims.
    Globs joined by `|` count as one pattern: it matches what any of them matches.
    A role with a question mark (`@head?`) may be empty; any other pattern that matches nothing is an error.
    Where a scope names `@head`, the other roles (`@bias`, `@norm`, `@linear`) mean what lies outside it.
    `exclude` freezes what it matches, whatever the other patterns say.
    """

    selected: tuple[str, ...] = ("*",)
    whole: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, tuple) or not all(isinstance(p, str) and p for p in value):
                raise UsageError(f"Scope.{field.name} must be a tuple of non-empty patterns, got {value!r}")


@dataclass(frozen=True)
class Group:
    """Tensors with their own rates: `lr_scale` multiplies the learning rate, `weight_decay` replaces the decay.

    `per_layer` divides the rate once for every layer from the topmost down to a tensor's own, and for the embeddings
    once more (discriminative rates, see `core.depth`): what lies above the layers, such as the head, keeps its rate.
    Groups that match the same tensor combine: their scales multiply, and their weight decays must agree.
    """

    pattern: str
    lr_scale: float = 1.0
    weight_decay: float | None = None
    per_layer: float = 1.0

    def __repr__(self) -> str:
        shown = f"pattern={self.pattern!r}, lr_scale={self.lr_scale!r}, weight_decay={self.weight_decay!r}"
        # Left out where it changes nothing: runs that were saved before it existed name their groups without it.
        return f"Group({shown})" if self.per_layer == 1.0 else f"Group({shown}, per_layer={self.per_layer!r})"

    def __post_init__(self) -> None:
        if not 0.0 < self.per_layer < float("inf"):
            raise UsageError(f"Group({self.pattern!r}): per_layer must be a finite number > 0, got {self.per_layer!r}")
        if not 0.0 <= self.lr_scale < float("inf"):
            raise UsageError(f"Group({self.pattern!r}): lr_scale must be a finite number >= 0, got {self.lr_scale!r}")
        if self.weight_decay is not None and not 0.0 <= self.weight_decay < float("inf"):
            raise UsageError(
                f"Group({self.pattern!r}): weight_decay must be finite and >= 0, got {self.weight_decay!r}"
            )


class Selector(ABC):
    """Which entries of the selected tensors train, and when. Holds hyper-parameters only; its state is data.

    A subclass is a frozen dataclass. `needs` names what it cannot do without before step 0 ("batches", "steps").
    """

    static: ClassVar[bool]  # True: one mask for the whole run
    confines_clip: ClassVar[bool] = False  # True: clipping sees the masked gradient although the mask changes
    state_keys: ClassVar[tuple[str, ...]] = ()  # what a saved state must hold to go on from it

    @property
    def needs(self) -> tuple[str, ...]:
        """What must be given to the Tuning: a subset of ("batches", "steps", "tasks")."""
        return ()

    @abstractmethod
    def init(self, setting: Setting) -> State:
        """Return the state before step 0. Runs once, inside a forked random state."""

    @abstractmethod
    def mask(self, state: State, params: Params, step: Step) -> Mask | None:
        """Return the mask of this step (None = all entries). Called once per step, before the forward pass."""

    def observe(self, state: State, params: Params, mask: Mask | None, step: Step) -> None:
        """See the gradients as the optimizer gets them, unscaled, and update `state`, where `watches` says so."""
        return

    def watches(self, state: State) -> bool:
        """Whether `observe` is called in this step. A selector with idle phases says so in `state["watching"]`."""
        return type(self).observe is not Selector.observe and bool(state.get("watching", True))

    def target(self, state: State) -> Params | None:
        """Return what unselected entries are mixed towards; None means the anchor."""
        return None


class Structural(ABC):
    """A preparation that changes the model's modules rather than its values, such as adding adapters.

    It happens when the Tuning is built, since scopes name what it adds, and a resumed run needs a place for its
    weights. A subclass is a frozen dataclass. A `permanent` change stays when the Tuning is closed, and a delta makes
    it again under its `name` with its `arguments`; any other is undone then, and changes nothing in evaluation.
    """

    name: ClassVar[str]
    permanent: ClassVar[bool]

    @property
    def arguments(self) -> Mapping[str, Any]:
        """What a delta file says to make the change again: JSON values by name."""
        return {}

    @abstractmethod
    def restructure(self, model: nn.Module) -> Callable[[], None]:
        """Change the model and return what undoes that. Runs inside a forked random state, seeded by the run's seed."""

    def __call__(self, setting: Setting) -> None:  # noqa: B027 - a preparation is callable; this one is done
        """Do nothing before step 0: the change was made when the Tuning was built."""


@dataclass(frozen=True)
class Recipe:
    """A method is five answers and learning-rate groups: printable, hashable, comparable.

    `update` and `forward` rules nest: the first is outermost. So a forward rule that runs two passes stands before
    one that changes what a pass sees, and `HoldUnselected` before rules that move values (it has the last word).
    Pieces that make no sense together raise UsageError.
    """

    scope: Scope = Scope()
    selector: Selector | None = None
    update: tuple[UpdateRule, ...] = ()
    forward: tuple[ForwardRule, ...] = ()
    prepare: tuple[Preparation, ...] = ()
    groups: tuple[Group, ...] = ()

    def __post_init__(self) -> None:
        for name in ("update", "forward", "prepare", "groups"):
            value = getattr(self, name)
            if not isinstance(value, tuple):
                raise UsageError(f"Recipe.{name} must be a tuple, got {value!r}; write ({value!r},)")
            for piece in value:
                kind = Group if name == "groups" else None
                if (kind and not isinstance(piece, kind)) or (not kind and not callable(piece)):
                    raise UsageError(f"Recipe.{name} cannot hold {piece!r}")
        if not isinstance(self.scope, Scope):
            raise UsageError(f"Recipe.scope must be a Scope, got {self.scope!r}")
        if self.selector is not None and not isinstance(self.selector, Selector):
            raise UsageError(f"Recipe.selector must be a Selector or None, got {self.selector!r}")
        check_combination(self)

    @property
    def pieces(self) -> tuple[object, ...]:
        """Every piece that may need batches, steps or tasks."""
        return (*self.prepare, *((self.selector,) if self.selector else ()), *self.update, *self.forward)

    @property
    def needs(self) -> frozenset[str]:
        """What the pieces cannot do without: any of "batches", "steps", "tasks"."""
        return frozenset(need for piece in self.pieces for need in getattr(piece, "needs", ()))


def check_fraction(owner: str, name: str, value: float) -> None:
    """Raise unless `value` is a number in (0, 1], the range of every fraction that is kept."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value <= 1.0:
        raise UsageError(f"{owner}: {name} must be a fraction in (0, 1], got {value!r}")


def check_choice(owner: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise unless `value` is one of `choices`."""
    if value not in choices:
        raise UsageError(f"{owner}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_amount(owner: str, name: str, value: float) -> None:
    """Raise unless `value` is a finite number >= 0, the range of weights and noise sizes."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < float("inf"):
        raise UsageError(f"{owner}: {name} must be a finite number >= 0, got {value!r}")
