"""What priming takes: peak memory of an outer step, its growth by inner step, and its time.

    python benchmarks/bench_priming.py --write-docs

Memory: all that is held at the highest point of a step after a first one, weights included, less what the process held
before there was a model; the rows of a model share a process, one after the other. The ratio is to full fine-tuning of
the same model (torch's fused AdamW, clipping) on the same batch, with checkpointing where the row has it. An outer step
has two tasks, so that one episode's gradients are kept while the next runs, as between accumulated micro-batches.

Time: an outer step of one task, 5 inner steps and a query batch, beside a plain step of full fine-tuning, in turn in
one process; the ratio is to 6 plain steps.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable
from typing import Any

from harness import Way, goal, interleave, measure, parse, parser, report, row, table
from machine import MEMORY_ENVIRONMENT, MIB, peak, settle

TARGET = 1.3  # of the memory of full fine-tuning at the same batch, for first-order priming
FULL = "full"
LABELS = {
    FULL: "full fine-tuning",
    "accumulated": "full fine-tuning, two micro-batches",
    "bitfit": "priming for BitFit",
    "d": "priming for Child-Tuning-D, keep 0.3",
    "lora": "priming for LoRA (r = 8)",
    "all": "priming for full fine-tuning",
    "reptile": "the same by Reptile",
    "maml": "priming for BitFit by MAML",
    "imaml": "priming for BitFit by implicit MAML",
}
FIRST_ORDER = ("bitfit", "d", "lora", "all", "reptile")
MEASURED = (FULL, "accumulated", *FIRST_ORDER)
INNER = (1, 2, 3, 4, 5)


def piece_of(name: str, inner_steps: int, tasks: int) -> Any:
    """Return the `Prime` of a row."""
    from dataclasses import replace

    from subnetune import Prime, Top, methods
    from subnetune.score.magnitude import Magnitude

    if name == "d":
        inner = replace(methods.child_tuning_d(), selector=Top(Magnitude(), 0.3))
    elif name in ("all", "reptile"):
        inner = methods.full()
    else:
        inner = methods.lora(r=8) if name == "lora" else methods.bitfit()
    names = tuple(f"task {i}" for i in range(tasks))
    algorithm = name if name in ("maml", "imaml", "reptile") else "fomaml"
    return Prime(
        names, inner, algorithm=algorithm, steps=10**6, task_batch=tasks, inner_steps=inner_steps, inner_lr=1e-3
    )


def stepper(
    name: str, model: Any, data: Any, inner_steps: int, tasks: int, undo: contextlib.ExitStack
) -> Callable[[], object]:
    """Return a function that takes a step of the row."""
    from workloads import closed_loop, torch_adamw, trained

    from subnetune.core.types import Setting, default_forward
    from subnetune.prepare.priming.primer import Primer

    if name == FULL:
        return closed_loop(model, torch_adamw(model), data, 1.0)
    if name == "accumulated":
        import torch

        optimizer, parameters = torch_adamw(model), trained(model)

        def accumulated() -> None:
            for batch in data[:2]:
                (model(**batch).loss / 2).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return accumulated
    piece = piece_of(name, inner_steps, tasks)
    batches = {task: (lambda: data) for task in piece.tasks}
    setting = Setting(model, {}, default_forward, None, batches, 0, 0)
    return undo.enter_context(Primer(piece, setting)).step


def prepared(shape: str, options: Any) -> Any:
    """Return a model in the shapes of the row."""
    from workloads import bert, minilm

    if shape == "minilm" and not options.quick:
        return minilm(options.device)[0]
    return bert(options.quick, options.device)


def memory(shape: str, name: str, inner_steps: int, checkpointing: bool, options: Any) -> dict[str, Any]:
    """Measure one row of memory."""
    from workloads import batches

    words = 2000
    data = batches(options.batch_size, options.tokens, words, options.device)
    empty = settle(options.device)
    model = prepared(shape, options)
    weights = sum(p.nbytes for p in model.parameters())
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with contextlib.ExitStack() as undo:
        step = stepper(name, model, data, inner_steps, 2, undo)
        step()
        highest = max(peak(step, options.device) for _ in range(options.repeats)) - empty
    return {"weights": weights, "peak": highest}


def times(options: Any) -> list[dict[str, Any]]:
    """Time outer steps of every algorithm beside plain steps."""
    from workloads import batches

    inner = 5
    ways, undo = [], contextlib.ExitStack()
    data = batches(options.batch_size, options.tokens, 2000, options.device)
    with undo:
        for name in (name for name in LABELS if name != "accumulated"):
            step = stepper(name, prepared("minilm", options), data, inner, 1, undo)
            ways.append(Way(name, step))
        samples = interleave(ways, options.repeats * 4, 1, options.device)
    plain = [seconds * (inner + 1) for seconds in samples.pop(FULL)]
    return [row(LABELS[name], seconds, plain, kind="time") for name, seconds in samples.items()]


def child(options: Any) -> Any:
    """Measure what the parent process asks for."""
    kind, _, rest = options.child.partition(":")
    if kind == "times":
        return times(options)
    found = []
    for number, what in enumerate(rest.split(",")):
        shape, name, inner_steps, checkpointing = what.split("/")
        if number == 0:  # imports, thread pools, compiled loops are no part of the question
            warm = argparse.Namespace(**{**vars(options), "quick": True})
            for each in dict.fromkeys((name, "bitfit", "imaml")):
                memory(shape, each, 1, False, warm)
        found.append(memory(shape, name, int(inner_steps), checkpointing == "checkpointing", options))
    return found


def measured(wanted: list[tuple[str, str, int, bool]]) -> list[dict[str, Any]]:
    """Return rows of memory by (model, row, inner steps, checkpointing), from one process."""
    texts = [f"{shape}/{name}/{k}/{'checkpointing' if again else 'plain'}" for shape, name, k, again in wanted]
    rows = []
    for one, found in zip(wanted, measure("memory:" + ",".join(texts), MEMORY_ENVIRONMENT), strict=True):
        shape, name, inner_steps, checkpointing = one
        label = LABELS[name] + (", gradient checkpointing" if checkpointing else "")
        rows.append({"kind": "memory", "model": shape, "name": label, "key": name, "inner_steps": inner_steps, **found})
        print(f"{shape}, {label}, {inner_steps} inner steps: {found['peak'] / MIB:.0f} MiB", flush=True)
    return rows


def main() -> None:
    """Measure, print the tables, write JSON and docs where asked."""
    made = parser(__doc__, repeats=1)
    made.add_argument("--batch-size", type=int, default=8)
    made.add_argument("--tokens", type=int, default=64)
    made.add_argument("--models", default="bert-base,minilm", help="separated by commas (default bert-base,minilm)")
    options = parse(made)
    if options.child:
        print(json.dumps(child(options)))
        return
    rows: list[dict[str, Any]] = []
    steps = INNER[:2] if options.quick else INNER
    for shape in ("small",) if options.quick else options.models.split(","):
        for checkpointing in (False,) if options.quick else (False, True):
            chosen = MEASURED[:3] if options.quick else MEASURED
            group = measured([(shape, name, 1, checkpointing) for name in chosen])
            for one in group:
                one["median"] = one["peak"] / group[0]["peak"]
                one["target"] = TARGET if one["key"] in FIRST_ORDER else None
            rows += group
    growing = ("bitfit", "maml", "imaml")[int(options.quick) :]
    growth = measured([("minilm", name, k, False) for name in growing for k in steps])
    timed = measure("times:")
    text = (
        f"`python benchmarks/bench_priming.py`: batches of {options.batch_size} x {options.tokens} tokens. In units of "
        "full fine-tuning of the same model on the same batch, with checkpointing where the row has it."
    )
    report("priming", options, tables(rows, growth, timed, steps), [*rows, *growth, *timed], text)


def tables(rows: Any, growth: Any, timed: Any, inner: tuple[int, ...]) -> str:
    """Return the page's three tables."""
    columns: dict[str, Any] = {
        "model": lambda one: f"{one['model']} ({one['weights'] / MIB:.0f} MiB of weights)",
        "training": "name",
        "highest, MiB": lambda one: f"{one['peak'] / MIB:.0f}",
        "in units of full fine-tuning": lambda one: f"{one['median']:.2f}",
        "target": goal,
    }
    steps: dict[str, Any] = {"MiniLM, peak in MiB by inner steps": "name"}
    for k in inner:
        steps[str(k)] = lambda one, k=k: f"{one[k] / MIB:.0f}"
    steps["for each further step"] = lambda one: f"{(one[inner[-1]] - one[1]) / (inner[-1] - 1) / MIB:+.0f}"
    by_name: dict[str, dict[Any, Any]] = {}
    for one in growth:
        by_name.setdefault(one["name"], {"name": one["name"]})[one["inner_steps"]] = one["peak"]
    clock: dict[str, Any] = {
        "MiniLM, an outer step of 5 inner steps and a query batch": "name",
        "seconds": lambda one: f"{one['seconds']:.2f}",
        "in units of 6 plain steps": lambda one: f"{one['median']:.2f} ({one['low']:.2f}, {one['high']:.2f})",
    }
    return "\n\n".join((table(rows, columns), table(list(by_name.values()), steps), table(timed, clock)))


if __name__ == "__main__":
    main()
