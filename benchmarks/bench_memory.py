"""Peak memory of a training step beyond weights and activations, of each method, on a BERT-base config.

    python benchmarks/bench_memory.py --write-docs

Each row has a process of its own. Activations: the peak of a forward pass whose graph is kept, with the same tensors
asking for gradients, before there is an optimizer, less what the loaded model takes. The row's figure: the peak of a
step after warm-up, less the peak of that forward pass, in units of the weights' bytes W: gradients, optimizer states,
masks, the run's own copies, and what the step needs for a moment. (Plain full fine-tuning with AdamW: 1 W of gradients
and 2 W of states.) glibc is told to give back what is freed, so that resident memory is what is held.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from typing import Any

from harness import measure, parse, parser, report, table
from machine import MEMORY_ENVIRONMENT, MIB, peak, settle

ROWS: dict[str, tuple[str, bool]] = {  # its name in the table, and whether the target of lean gradients is its
    "torch-fused": ("full fine-tuning, torch's AdamW fused", False),
    "torch-loop": ("full fine-tuning, torch's AdamW in a loop", False),
    "torch-foreach": ("full fine-tuning, torch's AdamW foreach", False),
    "full": ("full fine-tuning through a Tuning", False),
    "f": ("Child-Tuning-F, keep 0.3", False),
    "dps-collect": ("DPS, collecting", False),
    "dps-update": ("DPS, choosing entries and updating", False),
    "d-0.3-frozen-dense": ("Child-Tuning-D, keep 0.3, embeddings frozen", False),
    "d-0.01-frozen-dense": ("Child-Tuning-D, keep 0.01, embeddings frozen", False),
    "d-0.3-frozen-lean": ("the same, keep 0.3, lean gradients", False),
    "d-0.01-frozen-lean": ("the same, keep 0.01, lean gradients", True),
    "d-0.01-frozen-selected": ("the same, keep 0.01, selected gradients", False),
    "d-0.01-whole-lean": ("Child-Tuning-D, keep 0.01, embeddings whole, lean gradients", False),
    "bitfit": ("BitFit", False),
    "lora": ("LoRA (PEFT, r = 8)", False),
    "shira": ("SHiRA (PEFT, r = 32)", False),
}
WARMUP = 2
OWN = 0.2  # of the weights' bytes: what lean gradients at keep 0.01 may take beyond the largest single gradient


def recipe_of(name: str) -> Any:
    """Return the recipe of a row; None where torch or PEFT does it all."""
    from dataclasses import replace

    from subnetune import Top, methods
    from subnetune.score.magnitude import Magnitude

    if name in ("full", "bitfit"):
        return methods.get(name).preset()
    if name == "f":
        return methods.child_tuning_f(keep=0.3)
    if name.startswith("dps-"):  # of 100 steps 20 collect, or 2: the warm-up, so that the choice is measured
        return methods.dps_dense(dropout=None, cycle=0.4, explore=0.5 if name == "dps-collect" else 0.05)
    if name.startswith("d-"):
        _, keep, embeddings, _ = name.split("-")
        return replace(methods.child_tuning_d(embeddings=embeddings), selector=Top(Magnitude(), float(keep)))
    return None


def started(name: str, model: Any, data: Any) -> tuple[Any, Callable[[], None]]:
    """Return a model as the row trains it, and a function that takes a training step."""
    from workloads import RATES, closed_loop, torch_adamw, tuned_loop

    from subnetune import Tuning

    if name in ("lora", "shira"):
        import peft

        same = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"]}
        config = peft.LoraConfig(r=8, **same) if name == "lora" else peft.ShiraConfig(r=32, **same)
        model = peft.get_peft_model(model, config).train()
        return model, closed_loop(model, torch_adamw(model), data, 1.0)
    if name.startswith("torch-"):
        how = {"fused": {"fused": True}, "loop": {"foreach": False, "fused": False}, "foreach": {"foreach": True}}
        return model, closed_loop(model, torch_adamw(model, **how[name.removeprefix("torch-")]), data, 1.0)
    recipe = recipe_of(name)
    tuning = Tuning(recipe, model, steps=100)
    how: dict[str, Any] = {"fused": True} if recipe.selector is None else {"engine": "fused"}
    if name.endswith(("-lean", "-selected")):
        how["gradients"] = name.rpartition("-")[2]
    return model, tuned_loop(tuning, tuning.optimizer(**how, **RATES), data, 1.0)


def child(options: Any) -> dict[str, Any]:
    """Measure one row."""
    from workloads import batches, bert

    name, device = options.child, options.device
    words = 2000
    warm = started(name, warm_model(device), batches(2, 8, words, device))[1]
    for _ in range(4):  # imports, compiled loops, thread pools: no part of the question
        warm()
    del warm
    model = bert(options.quick, device)
    data = batches(options.batch_size, options.tokens, words, device)
    empty = settle(device)
    flags = training_flags(name, options)
    for parameter_name, p in model.named_parameters():
        p.requires_grad_(flags.get(parameter_name, True))
    kept = []
    model(**data[0])  # buffers that a first pass makes
    activations = peak(lambda: kept.append(model(**data[0]).loss), device) - empty
    kept.clear()
    for p in model.parameters():
        p.requires_grad_(True)
    gc.collect()
    adapted, step = started(name, model, data)
    for _ in range(WARMUP):
        step()
    highest = max(peak(step, device) for _ in range(options.repeats)) - empty
    sizes = [p.nbytes for p in model.parameters()]
    trains = [p for p in adapted.parameters() if p.requires_grad]
    return {
        "weights": sum(sizes),
        "largest": max((p.nbytes for p in trains), default=0),
        "activations": activations,
        "beyond": highest - activations,
        "after": settle(device) - empty,  # what stays between two steps
    }


def warm_model(device: str) -> Any:
    """Return a model that is small, and whose matrices are large enough for what serves large ones."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_size=256, num_hidden_layers=2, num_attention_heads=2, intermediate_size=1024, vocab_size=2000
    )
    return BertForSequenceClassification(config).to(device).train()


def training_flags(name: str, options: Any) -> dict[str, bool]:
    """Return which tensors ask for gradients under the row's recipe, from a small model with the same names."""
    from transformers import BertConfig, BertForSequenceClassification
    from workloads import batches

    layers = 2 if options.quick else 12
    config = BertConfig(
        hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=16, vocab_size=2000
    )
    small = BertForSequenceClassification(config).to(options.device).train()
    if name in ("lora", "shira"):  # the originals are frozen; what the adapters keep for themselves counts as theirs
        return {parameter_name: False for parameter_name, _ in small.named_parameters()}
    kept = started(name, small, batches(2, 8, 2000, options.device))  # flags are undone with the Tuning
    flags = {parameter_name: p.requires_grad for parameter_name, p in small.named_parameters()}
    del kept
    return flags


def main() -> None:
    """Measure every row, print the table, write JSON and docs where asked."""
    made = parser(__doc__, repeats=3)
    made.add_argument("--rows", default=",".join(ROWS), help="separated by commas; default: all")
    made.add_argument("--batch-size", type=int, default=4)
    made.add_argument("--tokens", type=int, default=64)
    options = parse(made)
    if options.child:
        print(json.dumps(child(options)))
        return
    chosen = options.rows.split(",")
    if unknown := set(chosen) - set(ROWS):
        made.error(f"no such row: {sorted(unknown)[0]}; rows are {', '.join(ROWS)}")
    rows = []
    for name in chosen:
        found = measure(name, MEMORY_ENVIRONMENT)
        label, target = ROWS[name]
        own = (found["beyond"] - found["largest"]) / found["weights"]
        rows.append({"name": label, "key": name, **found, "own": own, "target": OWN if target else None})
        print(f"{label}: {found['beyond'] / found['weights']:.2f} W beyond weights and activations", flush=True)
    columns = {
        "training": "name",
        "beyond weights and activations, MiB": lambda one: f"{one['beyond'] / MIB:.0f}",
        "in units of the weights": lambda one: f"{one['beyond'] / one['weights']:.2f}",
        "less the largest gradient": lambda one: f"{one['own']:.2f}{goal(one)}",
        "activations, MiB": lambda one: f"{(one['activations']) / MIB:.0f}",
        "kept between steps, MiB": lambda one: f"{one['after'] / MIB:.0f}",
    }
    about = (
        f"`python benchmarks/bench_memory.py`: batches of {options.batch_size} x {options.tokens} tokens; the weights "
        f"take {rows[0]['weights'] / MIB:.0f} MiB."
    )
    report("memory", options, table(rows, columns), rows, about)


def goal(one: dict[str, Any]) -> str:
    """Return the target of a row that has one."""
    if one["target"] is None:
        return ""
    return f" (target {one['target']}{'' if one['own'] <= one['target'] else ', missed'})"


if __name__ == "__main__":
    main()
