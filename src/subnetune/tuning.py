"""Tuning: the one stateful object. It binds a recipe to a model and carries it through training.

The constructor only binds. `start()` prepares, keeps the anchor, then scores, inside a forked random state, so that
the run that follows is the one it would have been. After `load_state_dict` nothing is prepared or scored again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from subnetune.core.errors import LifeCycleError
from subnetune.core.journal import Journal
from subnetune.core.passes import Passes
from subnetune.core.randomness import forked_randomness
from subnetune.core.recipe import Recipe
from subnetune.core.types import (
    Batch,
    Batches,
    Forward,
    Live,
    Mask,
    Output,
    Params,
    Setting,
    State,
    Step,
    default_forward,
)
from subnetune.engine.anchors import Anchors
from subnetune.engine.binding import Binding, check_arguments
from subnetune.engine.child import Child
from subnetune.engine.choice import EngineName, PrecisionName, make_engine
from subnetune.engine.facts import Facts
from subnetune.engine.lean import GradientsName
from subnetune.engine.middleware import under_rules
from subnetune.engine.precision import Precision
from subnetune.engine.reference import (
    Handle,
    ReferenceEngine,
    check_optimizer_class,
    clip_what_trains,
    innermost,
    servable,
    take_step,
)
from subnetune.engine.saving import first_mask, restore, snapshot
from subnetune.engine.views import local_mask, local_parts, local_view


class Tuning(Facts):
    """Binds `recipe` to `model` for one training run.

    `batches` is a data loader or a callable that returns an iterable of batches (for scores); `steps` the number of
    optimizer steps of the run; `tasks` further batches by name; `forward` maps (model, batch) to an `Output`; `seed`
    fixes random masks; `new` names the newly initialised parameters that loading reported, which a delta must carry
    whole (by default the head's); `journal` keeps what a long score has done. Build it after the model is on its device
    and in its dtype. Raises UsageError for a recipe that cannot work on this model, LifeCycleError for a model that
    another Tuning holds, also in part.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        *,
        batches: Batches | None = None,
        steps: int | None = None,
        tasks: Mapping[str, Batches] | None = None,
        forward: Forward = default_forward,
        seed: int = 0,
        new: Iterable[str] | None = None,
        journal: Journal | None = None,
    ) -> None:
        check_arguments(recipe, model, {"batches": batches, "steps": steps, "tasks": tasks}, steps, seed)
        self.recipe, self.seed, self._forward, self._steps = recipe, seed, forward, steps or 0
        self._source, self._tasks, self._journal = batches, dict(tasks or {}), journal
        self._binding = Binding(recipe, model, None if new is None else tuple(new), seed)
        self.new = self._binding.new
        self.model: nn.Module = self._binding.model
        self._anchor = Anchors({})
        self._unprepared: dict[str, Tensor] = {}  # base values of what the preparations changed
        self._state: State = {}
        self._passes = Passes(self.model if recipe.forward else None)  # the hooks that forward rules hang on modules
        self._mask: tuple[int, Mask | None] | None = None  # the step that it was made at, and the mask
        self._index, self._started, self._closed, self._clipped = 0, False, False, False  # clipped for the next step
        self._engine: ReferenceEngine | None = None

    # -- life cycle ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Prepare, keep the anchor, score. Called by `optimizer`, `attach` and the first `forward`; a no-op later."""
        self._check_open()
        if not self._started:
            self._start(packed=False)

    def _start(self, packed: bool) -> None:
        self._binding.check_owners()
        self._binding.check_values()
        with forked_randomness(self._source, *self._tasks.values()), self._binding.all_or_nothing():
            torch.manual_seed(self.seed)  # what is drawn in here depends on the seed, not on what was drawn before
            if self.recipe.prepare:
                self._unprepared = self._binding.prepare(self._setting)
            self._binding.freeze_the_rest()
            if not packed:
                self._pack(False)
            if self.recipe.selector is not None:
                self._state = self.recipe.selector.init(self._setting())
            self._check_ranks(self._index, self._current_mask())
        self._started = True

    def _pack(self, packed: bool) -> None:
        self._anchor = self._anchor.packed(self._binding, self._current_mask, self._unprepared, packed)

    def close(self) -> None:
        """Let the model go: hooks off, `requires_grad` as it was; its optimizer steps no more. Trained values stay."""
        if not self._closed:
            self._detach(closed=True)
            self._passes.close()
            self._binding.release()
            self._closed = True

    # -- training -----------------------------------------------------------------------------------------------

    def optimizer(
        self,
        cls: type[Optimizer] = torch.optim.AdamW,
        *,
        engine: EngineName = "auto",
        precision: PrecisionName = "same",
        gradients: GradientsName = "dense",
        groups: list[dict[str, Any]] | None = None,
        **hyper: Any,
    ) -> Optimizer:
        """Return an optimizer of class `cls` over what trains, grouped by the recipe, served by the fastest engine.

        `engine` asks for one by name (docs/engines.md says what each serves). `precision` says how bf16 and fp16
        weights take up small updates: "master" keeps float32 copies of what trains, "stochastic" rounds by chance.
        `gradients`: "lean" keeps the selected entries of each gradient alone, so that the model's parameters show none:
        clip with `clip`, discard with `optimizer.zero_grad()`, run replicas through `forward(batch, model=wrapper)`.
        `groups` replaces `param_groups(lr)`. Raises UsageError for what cannot serve this, and for an optimizer that
        evaluates closures (LBFGS).
        """
        check_optimizer_class(cls)
        self._check_unserved()
        choice = self.engine_for(cls, hyper, engine=engine, precision=precision, gradients=gradients)
        if gradients != "dense":  # memory is short: no copies of what the model itself has
            if not self._started:
                self._check_open()
                self._start(packed=True)
            self._pack(True)
        groups = self.param_groups(hyper.get("lr")) if groups is None else groups
        child, rounding = Child(self, self._binding), Precision(precision, self.seed)
        self._engine = make_engine(choice, child, cls, groups, hyper, rounding, gradients)
        return self._engine.optimizer

    def param_groups(self, lr: Any = None) -> list[dict[str, Any]]:
        """Return optimizer groups: the recipe's scales times `lr`, its weight decays, and the parameters' names."""
        self.start()
        return self._binding.param_groups(lr)

    def attach(self, optimizer: Optimizer) -> Handle:
        """Serve an optimizer that the caller built, through torch's public step hooks. Returns a handle to undo it.

        Raises UsageError when the optimizer does not hold every tensor that trains, LifeCycleError when this Tuning
        already serves another one.
        """
        self.start()
        inner = servable(optimizer, self._binding.trained())
        self._check_unserved()
        self._engine = ReferenceEngine(self, inner, "reference: the optimizer was built outside, and steps as it does")
        return Handle(self._detach)

    def forward(self, batch: Batch, *, model: nn.Module | None = None) -> Output:
        """Run the forward rules around the model (in training mode) and return loss and logits.

        `model` is the wrapped module (DDP, compiled) where there is one; in eval mode nothing is changed.
        """
        self.start()
        module = self.model if model is None else self._binding.check_wrapper(model)
        run = self._forward
        if self.model.training:
            self._binding.check_place()
            run = under_rules(self.recipe.forward, run, self.live)
        with nullcontext() if self._engine is None else self._engine.around(module):
            return run(module, batch)

    def clip(self, max_norm: float) -> Tensor:
        """Scale the gradients of what trains down to the global norm `max_norm`; return the norm before, a scalar.

        Where a mask holds for the run or a stage, gradients of unselected entries are set to zero first (law 6), unless
        the recipe's rules copy a release that clips the dense gradient. With a GradScaler call `scaler.unscale_` before
        (or `step` raises UsageError).
        """
        self.start()
        self._clipped = True
        if self._engine is not None:
            return self._engine.clip(self._binding.trained, max_norm)
        return clip_what_trains(self.recipe, self.live(), self._binding.trained(), max_norm)

    def step(self, optimizer: Optimizer, *, scaler: torch.amp.GradScaler | None = None) -> bool:
        """Take an optimizer step with the recipe's rules; return whether it really happened.

        False means that nothing was advanced: an overflow under `scaler`, or a micro-batch inside an accumulation
        (accelerate's optimizer skips those calls). Raises LifeCycleError for an optimizer that is not attached.
        """
        inner = innermost(optimizer)
        if self._engine is None or self._engine.optimizer is not inner:
            raise LifeCycleError("this optimizer is not served by this Tuning: use tuning.optimizer() or attach()")
        before, clipped, self._clipped = self._index, self._clipped, False
        self._engine.expect(optimizer, scaler, clipped)
        take_step(optimizer, scaler, clipped)
        if self._index == before:
            self._engine.skipped()
        return self._index > before

    def before_step(self, call: Callable[[Optimizer], None]) -> None:
        """Have `call(optimizer)` run, and clip, first in each step. LifeCycleError where no optimizer is served yet."""
        if self._engine is None:
            raise LifeCycleError("no optimizer is served yet: call optimizer() or attach() first")
        self._engine.run_first(call)

    # -- what the engine, the delta and the curious read ----------------------------------------------------------

    def live(self, optimizer: Optimizer | None = None) -> Live:
        """Return all there is during a step: selected tensors (local shards), anchors, mask, state."""
        params, selector = self.selected(), self.recipe.selector
        mask, step = self._current_mask(params), Step(self._index, self._steps)  # first: it may set the target
        anchor = local_parts(self._anchor, params)
        target = None if selector is None else selector.target(self._state)
        towards = anchor if target is None else local_parts(target, params)
        return Live(params, anchor, mask, self._state, step, optimizer, towards, self._passes)

    def advance(self) -> None:
        """Count one optimizer step that happened (the engine calls it)."""
        self._index, self._clipped = self._index + 1, False
        self._passes.clear()

    # -- saving -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs beside model and optimizer: tensors, strings and numbers only."""
        self.start()
        self._current_mask()  # what a selector decides at this step is decided on the weights of this step
        return snapshot(self._identity(), self._index, self._state, self._anchor, self._unprepared)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue a run: anchors, masks and counters come from `state`; nothing is prepared or scored again.

        Raises CheckpointError when a key is missing or `state` belongs to another base, recipe, seed or run length.
        """
        self._check_open()
        self._binding.check_owners()
        like = {name: local_view(tensor) for name, tensor in self._binding.trained().items()}
        loaded = restore(state, self._identity(), like)
        first = first_mask(self.recipe, loaded.state, self.selected(), Step(loaded.index, self._steps))
        self._check_ranks(loaded.index, first)
        self._check_same_child(first)
        anchor = Anchors(loaded.anchor, loaded.entries, loaded.prints, self._binding, lambda: first)
        anchor.check()
        self._state, self._anchor, self._unprepared = loaded.state, anchor, loaded.unprepared
        self._index, self._mask, self._started, self._clipped = loaded.index, (loaded.index, first), True, False
        self._passes.clear()  # hooks of the step that was under way have its mask and its anchor
        self._binding.freeze_the_rest()

    # -- inside -------------------------------------------------------------------------------------------------

    def _check_unserved(self) -> None:
        if self._engine is not None:
            raise LifeCycleError("this Tuning already serves an optimizer: remove() attach's handle or close()")

    def _detach(self, closed: bool = False) -> None:
        self._passes.clear()
        if self._engine is not None:
            self._engine.remove(closed)
            self._engine = None

    def _setting(self) -> Setting:
        made = self._binding.setting(self._forward, self._source, self._tasks, self._steps, self.seed)
        return made._replace(journal=self._journal)

    def _current_mask(self, params: Params | None = None) -> Mask | None:
        if self.recipe.selector is None:
            return None
        params = self.selected() if params is None else params
        if self._mask is None or (self._mask[0] != self._index and not self._static()):
            now = Step(self._index, self._steps)
            self._mask = (self._index, self.recipe.selector.mask(self._state, params, now))
        return local_mask(self._mask[1], params)

    def _check_open(self) -> None:
        if self._closed:
            raise LifeCycleError("this Tuning is closed; build a new one")
        self._binding.check_place()
