"""The whole training step of each method beside full fine-tuning: forward, backward, clipping, step, zero_grad.

    python benchmarks/bench_training.py --write-docs
    python benchmarks/bench_training.py --models minilm --methods f,dps --repeats 20
    python benchmarks/bench_training.py --models bert --add --write-docs

Each method trains a model in turn with full fine-tuning (a plain loop with torch's fused AdamW) on an equal model, step
by step, in processes of its own: same batch, dropout as the model has it, clipping at 1.0. DPS is measured over whole
cycles (`--stage` says how long each of the two stages is), choosing the entries included, and each stage by itself.
LoRA and SHiRA are PEFT's own, in the plain loop with torch's fused AdamW.
"""

from __future__ import annotations

import json
from typing import Any

from harness import (
    Samples,
    Way,
    earlier,
    goal,
    interleave,
    measure,
    parse,
    parser,
    pooled,
    report,
    row,
    shown,
    table,
    total,
)

FULL = "peer"
METHODS: dict[str, tuple[str, float | None]] = {  # its name in the table, and the most it may take on MiniLM
    "again": ("full fine-tuning, a second time (shows the noise)", None),
    "full": ("full fine-tuning through a Tuning", None),
    "f": ("Child-Tuning-F, keep 0.3", 1.02),
    "d-0.3": ("Child-Tuning-D, keep 0.3", 1.0),
    "d-0.1": ("Child-Tuning-D, keep 0.1", 1.0),
    "d-0.01": ("Child-Tuning-D, keep 0.01", 1.0),
    "d-0.01-frozen": ("Child-Tuning-D, keep 0.01, embeddings frozen", None),
    "d-0.01-lean": ("Child-Tuning-D, keep 0.01, embeddings frozen, lean gradients", None),
    "d-0.01-selected": ("Child-Tuning-D, keep 0.01, embeddings frozen, selected gradients", None),
    "bitfit": ("BitFit", 0.75),
    "dps": ("DPS, mean over its cycles", 1.05),
    "lora": ("LoRA (PEFT, r = 8)", None),
    "shira": ("SHiRA (PEFT, r = 32)", None),
}


def make(model_name: str, quick: bool, device: str) -> tuple[Any, tuple[str, ...], int]:
    """Return a model, the names of its new tensors, and how many words it knows."""
    from workloads import bert, minilm

    model, new = (bert(quick, device), ("classifier.weight", "classifier.bias"))
    if model_name == "minilm":
        model, new = minilm(device)
    return model, new, model.config.vocab_size


def loop(method: str, model_name: str, steps: int, options: Any) -> Any:
    """Return a function that takes one training step with a method."""
    import torch
    from workloads import RATES, batches, closed_loop, torch_adamw, tuned_loop

    from subnetune import Tuning, methods

    model, new, words = make(model_name, options.quick, options.device)
    data = batches(*((2, 8) if options.quick else (options.batch_size, options.tokens)), words, options.device)
    if method in (FULL, "again"):
        return closed_loop(model, torch_adamw(model), data, 1.0)
    if method in ("lora", "shira"):
        import peft

        same = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"]}
        config = peft.LoraConfig(r=8, **same) if method == "lora" else peft.ShiraConfig(r=32, **same)
        adapted = peft.get_peft_model(model, config).train()
        return closed_loop(adapted, torch_adamw(adapted), data, 1.0)
    name, _, rest = method.partition("-")
    keep, _, how = rest.partition("-")
    recipe = {
        "full": methods.full,
        "f": lambda: methods.child_tuning_f(keep=0.3),
        "d": lambda: methods.child_tuning_d(float(keep), embeddings="frozen" if how else "whole"),
        "bitfit": methods.bitfit,
        "dps": lambda: methods.dps_dense(dropout=None, cycle=0.1),
    }[name]()
    torch.manual_seed(0)
    tuning = Tuning(recipe, model, batches=data, steps=steps, new=new)
    extra = {"gradients": how} if how in ("lean", "selected") else {}
    plain = {"fused": True} if recipe.selector is None else {}  # torch's own step: at its fastest too
    return tuned_loop(tuning, tuning.optimizer(torch.optim.AdamW, **extra, **plain, **RATES), data, 1.0), tuning.engine


def child(options: Any) -> dict[str, Any]:
    """Time one method beside full fine-tuning; return the samples and the engine."""
    model_name, _, method = options.child.partition("/")
    steps = 20 * stage_of(model_name, options)
    repeats = repeats_of(model_name, method, options)
    peer = loop(FULL, model_name, steps, options)
    made = loop(method, model_name, steps, options)
    ours, engine = made if isinstance(made, tuple) else (made, "")
    samples = interleave([Way(FULL, peer), Way(method, ours)], repeats, options.warmup, options.device)
    return {"samples": samples, "engine": engine}


def rows_of(model_name: str, method: str, samples: Samples, engine: str, options: Any) -> list[dict[str, Any]]:
    """Return the rows of a method; of DPS the mean over whole cycles and the medians of each stage."""
    label, target = METHODS[method]
    known = {"model": model_name, "method": method, "engine": engine}
    goals = {"target": target if model_name == "minilm" else None}
    full, ours = samples[FULL], samples[method]
    if method != "dps":
        return [row(label, ours, full, **known, **goals)]
    stage, seconds = stage_of(model_name, options), sum(ours) / len(ours)
    rows = [
        {"name": f"{label} of {2 * stage} steps", "seconds": seconds, **total(ours, full)._asdict(), **known, **goals}
    ]
    runs = repeats_of(model_name, method, options)  # each process begins after its warm-up
    collects = [(i % runs + options.warmup) % (2 * stage) < stage for i in range(len(ours))]
    for name, wanted in (("collecting", True), ("updating", False)):
        at = [i for i, collecting in enumerate(collects) if collecting is wanted]
        rows.append(row(f"DPS, {name} stage", [ours[i] for i in at], [full[i] for i in at], **known))
    return rows


def stage_of(model_name: str, options: Any) -> int:
    """Return the steps of each of DPS's stages."""
    return 2 if options.quick else options.stage if model_name == "minilm" else max(2, options.stage // 4)


def repeats_of(model_name: str, method: str, options: Any) -> int:
    """Return the timed steps of a process; of DPS they are whole cycles."""
    repeats = options.repeats if model_name == "minilm" else max(5, options.repeats // 4)
    repeats = -(-repeats // options.processes)
    cycle = 2 * stage_of(model_name, options)
    return -(-repeats // cycle) * cycle if method == "dps" else repeats


def main() -> None:
    """Measure every method on every model, print the tables, write JSON and docs where asked."""
    made = parser(__doc__, repeats=60)
    made.add_argument("--models", default="minilm,bert", help="minilm, bert (base, random weights), or both (default)")
    made.add_argument("--methods", default=",".join(METHODS), help="separated by commas; default: all")
    made.add_argument("--processes", type=int, default=2, help="processes that share the repetitions (default 2)")
    made.add_argument("--stage", type=int, default=20, help="steps of each of DPS's stages (BERT: a quarter)")
    made.add_argument("--warmup", type=int, default=3)
    made.add_argument("--add", action="store_true", help="keep the rows of the docs' file that this run leaves out")
    made.add_argument("--batch-size", type=int, default=16)
    made.add_argument("--tokens", type=int, default=64)
    options = parse(made)
    if options.quick:
        options.repeats, options.processes, options.models = min(options.repeats, 4), 1, "bert"
    if options.child:
        print(json.dumps(child(options)))
        return
    models, chosen = options.models.split(","), options.methods.split(",")
    for asked, known in ((models, ("minilm", "bert")), (chosen, METHODS)):
        if unknown := set(asked) - set(known):
            made.error(f"{sorted(unknown)[0]!r} is none of {', '.join(known)}")
    old = earlier("training", options) if options.add else []
    rows = []
    for model_name in models:
        for method in chosen:
            runs = [measure(f"{model_name}/{method}") for _ in range(options.processes)]
            samples = pooled(run["samples"] for run in runs)
            found = rows_of(model_name, method, samples, runs[0]["engine"], options)
            print(model_name, *(f"{one['name']}: {shown(one)}" for one in found), sep="\n  ", flush=True)
            rows += found
    taken = {(one["model"], one["method"]) for one in rows}
    everything = rows + [one for one in old if (one["model"], one["method"]) not in taken]
    order = list(METHODS)
    everything.sort(key=lambda one: (one["model"] != "minilm", order.index(one["method"])))  # stable: DPS has three
    models = dict.fromkeys(one["model"] for one in everything)
    parts = [titled(name, [one for one in everything if one["model"] == name]) for name in models]
    size = "2 x 8" if options.quick else f"{options.batch_size} x {options.tokens}"
    about = (
        f"`python benchmarks/bench_training.py --repeats {options.repeats}`: batches of {size} tokens, clipping at "
        "1.0; the ratio is of paired steps to full fine-tuning in a plain loop."
    )
    report("training", options, "\n\n".join(parts), everything, about)


def titled(model_name: str, rows: list[dict[str, Any]]) -> str:
    """Return the table of a model under its name."""
    names = {"minilm": "all-MiniLM-L6-v2, 22.7 million entries", "bert": "BERT-base shapes, 110 million entries"}
    columns = {
        "training step": "name",
        "ratio to full fine-tuning (95 %)": shown,
        "target": goal,
        "pairs": "pairs",
        "ms": lambda one: f"{1e3 * one['seconds']:.0f}",
        "engine": lambda one: str(one["engine"]).partition(":")[0],
    }
    return f"**{names[model_name]}**\n\n{table(rows, columns)}"


if __name__ == "__main__":
    main()
