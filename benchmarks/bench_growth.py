"""How an optimizer step and its state grow: with the size of the model, and with the fraction that trains.

    python benchmarks/bench_growth.py --sizes 1e6,1e7,1e8,3e8 --keeps 0.001,0.01,0.1,0.3,1 --write-docs

A model of twelve linear layers, fabricated gradients fresh before every step, random masks over all tensors, the fused
engine by name; each size and each keep in a process of its own, in turn with torch's fused AdamW of all entries. The
state counts moments and the mask of what is selected.
"""

from __future__ import annotations

import json
from typing import Any

from harness import Way, interleave, measure, parse, parser, report, row, shown, table
from machine import MIB

PEER = "torch AdamW, fused"


def child(options: Any) -> list[dict[str, Any]]:
    """Time F and D at one size and keep beside torch's fused AdamW; return their rows."""
    from workloads import RATES, Gradients, Stack, state_bytes, torch_adamw, trained, twin

    from subnetune import HoldUnselected, MaskGradient, Recipe, Top, Tuning
    from subnetune.methods import child_tuning_f
    from subnetune.score.random import Random

    entries, keep = (float(word) for word in options.child.split("/"))
    model = Stack(int(entries), options.device)
    gradients = Gradients(model)
    peer = torch_adamw(model)
    ways = [Way(PEER, peer.step, lambda: gradients.refresh(model))]
    recipes = {"F": child_tuning_f(keep=keep)} if keep < 1 else {}
    recipes["D"] = Recipe(selector=Top(Random(), keep), update=(MaskGradient(), HoldUnselected()))
    optimizers = {}
    for name, recipe in recipes.items():
        other = twin(model)
        tuning = Tuning(recipe, other)
        optimizer = optimizers[name] = tuning.optimizer(engine="fused", **RATES)
        ways.append(Way(name, lambda t=tuning, o=optimizer: t.step(o), lambda m=other: gradients.refresh(m)))
    samples = interleave(ways, options.repeats, 3, options.device)
    size = sum(p.numel() for p in trained(model))
    known = {"entries": size, "keep": keep, "peer_seconds": sorted(samples[PEER])[len(samples[PEER]) // 2]}
    return [
        row(name, samples[name], samples[PEER], **known, bytes=state_bytes(optimizer), full_bytes=8 * size)
        for name, optimizer in optimizers.items()
    ]


def main() -> None:
    """Measure every size at one keep and every keep at one size, print the tables, write JSON and docs where asked."""
    made = parser(__doc__, repeats=30)
    made.add_argument("--sizes", default="1e6,3e6,1e7,3e7,1e8,3e8", help="entries, separated by commas")
    made.add_argument("--keeps", default="0.001,0.003,0.01,0.03,0.1,0.3,1", help="fractions, separated by commas")
    made.add_argument("--keep", default="0.1", help="of the runs over sizes (default 0.1)")
    made.add_argument("--size", default="1e8", help="of the runs over keeps (default 1e8)")
    options = parse(made)
    if options.quick:
        options.sizes, options.keeps, options.size = "1e5,1e6", "0.01,1", "1e6"
        options.repeats = min(options.repeats, 4)
    if options.child:
        print(json.dumps(child(options)))
        return
    sizes = [one for size in options.sizes.split(",") for one in measure(f"{size}/{options.keep}")]
    keeps = [one for keep in options.keeps.split(",") for one in measure(f"{options.size}/{keep}")]
    common = {
        "ratio to torch's fused AdamW (95 %)": shown,
        "ms": lambda one: f"{1e3 * one['seconds']:.2f}",
        "torch's, ms": lambda one: f"{1e3 * one['peer_seconds']:.2f}",
        "state, MiB": lambda one: f"{one['bytes'] / MIB:.2f}",
        "of full fine-tuning": lambda one: f"{one['bytes'] / one['full_bytes']:.4f}",
    }
    first = {"entries": lambda one: f"{one['entries']:,}", "mask": "name", **common}
    second = {"keep": lambda one: f"{one['keep']:g}", "mask": "name", **common}
    text = (
        f"**With the size of the model, keep {options.keep}**\n\n{table(sizes, first)}\n\n"
        f"**With keep, {float(options.size):,.0f} entries**\n\n{table(keeps, second)}"
    )
    about = f"`python benchmarks/bench_growth.py --repeats {options.repeats}`."
    report("growth", options, text, {"sizes": sizes, "keeps": keeps}, about)


if __name__ == "__main__":
    main()
