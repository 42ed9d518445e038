"""From a priming's options to what it does: its tasks as one, and the piece `Prime`; checked before anything loads."""

from __future__ import annotations

from dataclasses import dataclass

from subnetune.core.errors import UsageError
from subnetune.core.recipe import Recipe, Scope
from subnetune.experiment.config import build_recipe
from subnetune.experiment.priming.config import PrimeConfig
from subnetune.prepare.prime import Prime
from subnetune.prepare.priming.implicit import ITERATIONS
from subnetune.tasks import find_task
from subnetune.tasks.types import Task


@dataclass(frozen=True)
class Plan:
    """`task` is what the model is made for: all labels of `tasks` in the order of their first appearance."""

    tasks: tuple[Task, ...]
    task: Task
    recipe: Recipe
    prime: Prime


def make_plan(config: PrimeConfig) -> Plan:
    """Return what `config` describes.

    Raises UsageError for what is missing, for unknown tasks, methods and options, for tasks of different kinds or with
    labels that the head cannot have, and for whatever `Prime` refuses.
    """
    for name, flag in (("tasks", "--tasks NAME,NAME"), ("for_", "--for METHOD"), ("output", "--output FOLDER")):
        if not getattr(config, name):
            raise UsageError(f"a priming needs {name.strip('_')}: give {flag}")
    tasks = tuple(map(find_task, config.tasks))
    _check_kinds(tasks)
    labels = tuple(dict.fromkeys(label for task in tasks for label in task.labels))
    _check_labels(tasks, config.head)
    classes = tuple(tuple(map(labels.index, task.labels)) for task in tasks) if config.head == "matched" else ()
    recipe = build_recipe(config.as_run())
    prime = Prime(
        tasks=tuple(task.name for task in tasks),
        inner=recipe,
        outer=Scope(selected=config.outer, exclude=config.freeze),
        algorithm=config.algorithm,
        head=config.head,
        classes=classes,
        steps=config.steps,
        task_batch=config.task_batch,
        lr=config.lr,
        schedule=config.schedule,
        weight_decay=config.weight_decay,
        clip=config.clip or None,
        inner_steps=config.inner_steps,
        inner_lr=config.inner_lr,
        inner_rates=config.inner_rates,
        rates_lr=config.rates_lr,
        support=config.support,
        query=config.query,
        pull=config.pull,
        dropout=config.dropout,
    )
    first = tasks[0]
    whole = Task("+".join(prime.tasks), first.kind, labels, first.metrics, first.pair)
    return Plan(tasks, whole, recipe, prime)


def _check_kinds(tasks: tuple[Task, ...]) -> None:
    kinds = {task.kind: task.name for task in tasks}
    if len(kinds) > 1:
        (kind, name), (other, second), *_ = kinds.items()
        raise UsageError(
            f"tasks of one priming are of one kind: {name} is {kind}, {second} is {other}; prime on each kind alone"
        )


def _check_labels(tasks: tuple[Task, ...], head: str) -> None:
    first = tasks[0]
    if head == "matched" and not first.labels:
        raise UsageError(f"--head matched is for classes, and {first.name} has scores: take --head shared or fresh")
    other = next((task for task in tasks if set(task.labels) != set(first.labels)), None)
    if other is None or head == "matched":
        return
    have = f"{first.name} has the labels {_listed(first)}, {other.name} has {_listed(other)}"
    if head == "fresh":
        raise UsageError(f"{have}: a fresh head is drawn for one set of labels, the same for all; take --head matched")
    raise UsageError(
        f"{have}: one head cannot be shared by them. Take --head matched, where each task has its own labels' outputs"
    )


def _listed(task: Task) -> str:
    shown = ", ".join(task.labels[:6])
    return f"{shown} and {len(task.labels) - 6} more" if len(task.labels) > 6 else shown


def gradient_evaluations(prime: Prime) -> int:
    """Return how often an outer step goes back through the loss of one batch.

    An inner step is one, a query batch is one; maml also goes back through every inner step; imaml through its support
    batches, and, for each of at most five steps of conjugate gradients and once more, through their gradient.
    """
    steps, support = prime.inner_steps, prime.inner_steps if prime.support is None else prime.support
    each = {
        "fomaml": steps + prime.query,
        "maml": 2 * steps + prime.query,
        "reptile": steps,
        "imaml": steps + prime.query + support * (2 + ITERATIONS),
    }
    return prime.task_batch * each[prime.algorithm]
