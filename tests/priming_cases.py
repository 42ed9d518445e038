"""What the tests of priming share: small models, the outer gradients of one step, and the same by a plain loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pieces import call, setting
from subnetune import Prime, Recipe, Scope
from subnetune.core.types import Batch, Forward, Output, Setting, Step, default_forward
from subnetune.prepare.priming.algorithms import gradients
from subnetune.prepare.priming.episodes import Episode, Episodes
from subnetune.prepare.priming.primer import Primer
from tiny import batches, configuration

BIASES = Recipe(Scope(("*bias",)))
ALL = Recipe(Scope(("*",)))
ONE = Recipe(Scope(("second.*",)))
Tasks = dict[str, Callable[[], Iterable[Batch]]]


class Two(nn.Module):
    """Two layers of width 4 over 4 features, with tanh between them, and a linear layer to 3 classes."""

    def __init__(self, tied: bool = False, dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.first = nn.Linear(4, 4, dtype=dtype)
            self.second = nn.Linear(4, 4, dtype=dtype)
            self.third = nn.Linear(4, 3, dtype=dtype)
        if tied:
            self.second.weight = self.first.weight
        self.drop = nn.Dropout(dropout)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, labels: Tensor) -> Output:
        self.calls += 1
        logits = self.third(torch.tanh(self.second(self.drop(torch.tanh(self.first(x))))))
        return Output(nn.functional.cross_entropy(logits, labels), logits)


def points(count: int, seed: int, classes: tuple[int, ...] = (0, 1, 2), dtype: torch.dtype = torch.float64) -> Batch:
    """Random features of `count` rows, and labels out of `classes`."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.tensor(classes)[torch.randint(0, len(classes), (count,), generator=random)]
    return {"x": torch.randn(count, 4, generator=random, dtype=torch.float64).to(dtype), "labels": labels}


def two_tasks(count: int = 6, dtype: torch.dtype = torch.float64) -> Tasks:
    """Tasks "a" and "b" of so many batches."""
    return {
        name: lambda seed=seed: [points(5, seed + i, dtype=dtype) for i in range(count)]
        for name, seed in (("a", 100), ("b", 200))
    }


def bert_tasks(task: str = "SequenceClassification", rows: int = 4) -> Tasks:
    """Tasks "a" and "b" for a tiny model of transformers."""
    return {name: lambda seed=seed: batches(4, task, seed=seed, rows=rows) for name, seed in (("a", 1), ("b", 2))}


def bert(dtype: torch.dtype = torch.float32, attention: str = "sdpa", **changes: Any) -> nn.Module:
    """A tiny BERT of one layer with the attention that transformers chooses by default, in training mode."""
    from transformers import AutoModelForSequenceClassification

    config = configuration("bert", **{"num_hidden_layers": 1, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention)
    return model.to(dtype).train()


def prime(**changes: Any) -> Prime:
    """A short priming on the tasks "a" and "b"."""
    given = {"tasks": ("a", "b"), "inner": BIASES, "steps": 3, "task_batch": 2, "inner_steps": 2, "inner_lr": 0.3}
    return Prime(**{**given, "lr": 1e-2, **changes})


def primed(piece: Prime, model: nn.Module, tasks: Tasks | None = None, seed: int = 0) -> Setting:
    """The setting of a priming of one of our models, or of one of transformers'."""
    own = isinstance(model, Two) or not hasattr(model, "config")
    tasks = (two_tasks() if own else bert_tasks()) if tasks is None else tasks
    return setting(model, seed=seed, forward=call if own else default_forward)._replace(tasks=tasks)


def outer(piece: Prime, model: nn.Module, tasks: Tasks | None = None, seed: int = 0) -> dict[str, Tensor]:
    """The gradients of the first outer step by canonical name, that of the rates as "log_rates"."""
    place = primed(piece, model, tasks, seed)
    with Primer(piece, place) as primer:
        gradients(primer.learner, Episodes(piece, place.tasks, seed), 0, primer.rates)
        structure = primer.learner.structure
        found = {name: structure.read(name).grad for name in structure.names}
        found["log_rates"] = primer.rates.log.grad
        return {name: g.clone() for name, g in found.items() if g is not None}


def episodes(piece: Prime, tasks: Tasks, seed: int = 0) -> list[Episode]:
    """The episodes of the first outer step."""
    stream = Episodes(piece, tasks, seed)
    return [stream.next() for _ in range(piece.task_batch)]


Theta = Mapping[str, Tensor]


def plain(
    piece: Prime,
    model: nn.Module,
    theta: Theta,
    moved: Iterable[str],
    rates: Mapping[str, Tensor | float],
    tasks: Tasks,
    *,
    forward: Forward = call,
    seed: int = 0,
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """The mean query loss of the first outer step as anybody writes it, and the adapted tensors of each episode.

    The inner gradients are constants to autograd; `theta` holds every tensor of the model.
    """
    losses, ends = [], []
    selector = piece.inner.selector
    chosen = [n for n in moved if piece.inner.scope.selected == ("*",) or n.endswith("weight")]
    state = selector and selector.init(setting(model, names=chosen, seed=seed))
    for number, episode in enumerate(episodes(piece, tasks, seed)):
        phi = {n: theta[n] for n in moved}
        for k in range(piece.inner_steps):
            free = {n: p.detach().requires_grad_() for n, p in phi.items()}
            batch = episode.support[k % len(episode.support)]
            inner = functional_call(_Called(model, forward), _inside({**theta, **free}), (batch,))
            step = Step(number * piece.inner_steps + k, piece.steps * piece.task_batch * piece.inner_steps)
            mask = selector.mask(state, {n: free[n] for n in chosen}, step) if selector else {}
            for n, g in zip(free, torch.autograd.grad(inner.loss, list(free.values())), strict=True):
                phi[n] = phi[n] - rates[n] * (g * mask[n] if n in mask else g).detach()
        ends.append(phi)
        runs = [functional_call(_Called(model, forward), _inside({**theta, **phi}), (b,)) for b in episode.query]
        losses.append(torch.stack([run.loss for run in runs]).mean())
    return torch.stack(losses).mean(), ends


class _Called(nn.Module):
    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.model, self._forward = model, forward

    def forward(self, batch: Batch) -> Output:
        return self._forward(self.model, batch)


def _inside(tensors: Theta) -> dict[str, Tensor]:
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the model's parameters, tied ones once."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def random_ways(model: nn.Module) -> dict[str, Tensor]:
    """A random way through each parameter's space."""
    random = torch.Generator().manual_seed(11)
    return {n: torch.randn(p.shape, generator=random, dtype=torch.float64) for n, p in model.named_parameters()}


def projected(gradients: Mapping[str, Tensor], ways: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The slope of each tensor along its way."""
    return {name: (g * ways[name]).sum() for name, g in gradients.items()}


def slopes(
    value: Callable[[Theta], float], theta: Theta, ways: Mapping[str, Tensor], h: float = 1e-5
) -> dict[str, Tensor]:
    """Central differences of `value` along the way of each tensor alone."""
    found = {}
    for name, way in ways.items():
        ends = [value({**theta, name: theta[name] + sign * h * way}) for sign in (1.0, -1.0)]
        found[name] = torch.tensor((ends[0] - ends[1]) / (2 * h), dtype=torch.float64)
    return found


def error(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """The norm of the difference over the norm of what is wanted, over all tensors of `wanted`."""
    difference = sum(float((got[n].double() - w).square().sum()) for n, w in wanted.items())
    return (difference / sum(float(w.square().sum()) for w in wanted.values())) ** 0.5
