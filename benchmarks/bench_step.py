"""The optimizer's step alone, in BERT-base shapes (110 million entries), beside what a user would otherwise run.

    python benchmarks/bench_step.py --repeats 60 --write-docs
    python benchmarks/bench_step.py --groups f,d-0.01 --repeats 20
    python benchmarks/bench_step.py --groups f --repeats 60 --write-docs --add

Each group is timed in processes of its own, its rows in turn with torch's fused AdamW of full fine-tuning (all 110
million entries). Weights are random, gradients fabricated and fresh before every step; all masking and packing counts.
In the groups `lean-*` gradients are packed as autograd produces them, so there each step is measured together with a
(fabricated) backward pass, less such a pass alone, and so is the peer; glibc is told to keep freed memory then, since
who pays for its return (page faults) would depend on the order of the rows. Masks of D are uniformly random: the worst
case for the caches. Slow peers (foreach, the published update, the reference engine) are repeated less often.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from harness import (
    Samples,
    Way,
    earlier,
    goal,
    interleave,
    measure,
    minus,
    parse,
    parser,
    pooled,
    report,
    row,
    shown,
    table,
)

PEER = "torch AdamW, fused"
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_MMAP_THRESHOLD_": str(2**25)}
SLOW = 8  # repetitions of what takes a second and more
MIB = 2**20

# Groups of rows that share a process: the kind of row, and what it needs. Kinds are the functions below.
GROUPS: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "torch": (("torch", {"foreach": True}), ("torch", {"foreach": False, "fused": False})),
    "published": (("published_f", {"keep": 0.3}), ("published_d", {"keep": 0.3})),
    "reference": (("f", {"engine": "reference"}), ("d", {"keep": 0.3, "engine": "reference"})),
    "f": (("f", {"engine": "fused", "target": 1.05}), ("f", {"engine": "fused", "exact": True})),
    "d-0.3": (
        ("naive", {"keep": 0.3}),
        ("d", {"keep": 0.3, "engine": "packed"}),
        ("d", {"keep": 0.3, "engine": "fused", "target": 0.95}),
    ),
    "d-0.1": (
        ("naive", {"keep": 0.1}),
        ("d", {"keep": 0.1, "engine": "packed"}),
        ("d", {"keep": 0.1, "engine": "fused", "target": 0.75}),
    ),
    "d-0.01": (
        ("naive", {"keep": 0.01}),
        ("d", {"keep": 0.01, "engine": "packed"}),
        ("d", {"keep": 0.01, "engine": "fused", "target": 0.5}),
    ),
    "d-0.01-frozen": (
        ("naive", {"keep": 0.01, "embeddings": "frozen"}),
        ("d", {"keep": 0.01, "embeddings": "frozen", "engine": "packed"}),
        ("d", {"keep": 0.01, "embeddings": "frozen", "engine": "fused", "target": 0.25}),
    ),
    "dps": (("dps", {"collecting": True}), ("dps", {"collecting": False})),
    "lean-0.3": (("lean", {"keep": 0.3}),),
    "lean-0.01": (("lean", {"keep": 0.01}),),
    "lean-0.01-frozen": (("lean", {"keep": 0.01, "embeddings": "frozen"}),),
}


class Bench:
    """Models that share weights and gradients, one for each row, and what is known about the row."""

    def __init__(self, options: Any) -> None:
        from workloads import Gradients, bert

        self.options = options
        self.model = bert(options.quick, options.device)
        self.gradients = Gradients(self.model)
        self.facts: dict[str, dict[str, Any]] = {}
        self.ways: list[Way] = []

    def twin(self) -> Any:
        from workloads import twin

        return twin(self.model)

    def add(self, name: str, model: Any, run: Callable[[], object], **facts: Any) -> None:
        self.ways.append(Way(name, run, lambda: self.gradients.refresh(model)))
        self.facts[name] = facts

    # -- kinds of rows -----------------------------------------------------------------------------------------------

    def torch(self, **how: Any) -> None:
        from workloads import torch_adamw

        model = self.twin()
        optimizer = torch_adamw(model, **how)
        name = PEER if not how else "torch AdamW, foreach" if how["foreach"] else "torch AdamW, loop"
        self.add(name, model, optimizer.step, optimizer=optimizer)

    def published_f(self, keep: float) -> None:
        from workloads import Published

        model = self.twin()
        update = Published(model, keep)
        self.add(f"published update, F, keep {keep}", model, update.step, bytes=update.state_bytes())

    def published_d(self, keep: float) -> None:
        from workloads import Published, masks_of

        model, tuning = self.static(keep, "whole")
        update = Published(model, keep, masks_of(tuning))
        self.add(f"published update, D, keep {keep}", model, update.step, bytes=update.state_bytes())

    def naive(self, keep: float, embeddings: str = "whole") -> None:
        from workloads import Naive, masks_of

        model, tuning = self.static(keep, embeddings)
        update = Naive(model, masks_of(tuning))
        self.add(f"naive gather, AdamW, scatter, {named(keep, embeddings)}", model, update.step, naive=update)

    def f(self, engine: str, keep: float = 0.3, exact: bool = False, target: float | None = None) -> None:
        from subnetune import Tuning
        from subnetune.methods import child_tuning_f

        model = self.twin()
        tuning = Tuning(child_tuning_f(keep=keep, exact=exact), model)
        self.ours(f"F{', held' if exact else ''}, keep {keep}, {engine}", tuning, model, engine, target)

    def d(self, keep: float, engine: str, embeddings: str = "whole", target: float | None = None) -> None:
        model, tuning = self.static(keep, embeddings)
        self.ours(f"D, {named(keep, embeddings)}, {engine}", tuning, model, engine, target)

    def dps(self, collecting: bool) -> None:
        from subnetune import Tuning
        from subnetune.methods import dps_dense
        from subnetune.select.stages import stages

        model = self.twin()
        steps = 20 * (self.options.repeats + 10)  # a stage, 5 % of them, is longer than what is measured
        explore = 0.5 if collecting else 0.05
        tuning = Tuning(dps_dense(dropout=None, explore=explore), model, steps=steps)
        name = f"DPS, {'collecting' if collecting else 'updating'}, fused"
        before = 0 if collecting else stages(steps, 0.1, explore).collect + 1  # the choice is in bench_training.py
        self.ours(name, tuning, model, "fused", None, before)

    def ours(self, name: str, tuning: Any, model: Any, engine: str, target: float | None, before: int = 0) -> None:
        from workloads import RATES

        # The class's own step at its fastest, where the engine takes it; the fused engine has its own.
        how = {"fused": True} if engine in ("packed", "reference") else {}
        optimizer = tuning.optimizer(engine=engine, **how, **RATES)
        for _ in range(before):
            self.gradients.refresh(model)
            tuning.step(optimizer)
        facts = {"optimizer": optimizer, "tuning": tuning, "trains": model, "target": target}
        self.add(name, model, lambda: tuning.step(optimizer), **facts)

    def lean(self, keep: float, embeddings: str = "whole") -> None:
        """Add steps with a fabricated backward, of this and of the peer, and such passes alone."""
        from workloads import RATES, torch_adamw

        plain = self.twin()
        peer = torch_adamw(plain)
        self.with_backward(PEER, plain, peer.step)
        frozen, held = self.static(keep, embeddings)
        held.start()  # freezes what does not train
        self.with_backward("backward alone", plain, lambda: None)
        self.with_backward("its backward alone", frozen, lambda: None)
        for gradients in ("dense", "lean"):
            model, tuning = self.static(keep, embeddings)
            optimizer = tuning.optimizer(engine="fused", gradients=gradients, **RATES)
            name = f"D, {named(keep, embeddings)}, fused, {gradients} gradients"
            self.with_backward(name, model, lambda t=tuning, o=optimizer: t.step(o))

    def with_backward(self, name: str, model: Any, step: Callable[[], object]) -> None:
        def run() -> None:
            model.zero_grad()
            self.gradients.backward(model)
            step()

        self.ways.append(Way(name, run, model.zero_grad))
        self.facts[name] = {}

    def static(self, keep: float, embeddings: str) -> tuple[Any, Any]:
        """Return a model and a Tuning of D in the paper's scope, with a mask that is as good as random."""
        from dataclasses import replace

        from subnetune import Top, Tuning
        from subnetune.methods import child_tuning_d
        from subnetune.score.magnitude import Magnitude

        model = self.twin()
        recipe = replace(child_tuning_d(embeddings=embeddings), selector=Top(Magnitude(), keep))
        tuning = Tuning(recipe, model)
        tuning.start()
        return model, tuning


def named(keep: float, embeddings: str) -> str:
    return f"keep {keep}" + ("" if embeddings == "whole" else f", embeddings {embeddings}")


def child(options: Any) -> dict[str, Any]:
    """Time one group; return the samples and what is known of each row."""
    from workloads import state_bound, state_bytes

    bench = Bench(options)
    lean = options.child.startswith("lean")
    if not lean:
        bench.torch()
    for kind, arguments in GROUPS[options.child]:
        getattr(bench, kind)(**arguments)
    slow = options.child in ("torch", "published", "reference")
    repeats = min(options.repeats, SLOW) if slow else options.repeats
    samples = interleave(bench.ways, repeats, 1 if slow else 3, options.device)
    facts: dict[str, dict[str, Any]] = {}
    for name, known in bench.facts.items():
        found = facts[name] = {"target": known.get("target"), "bytes": known.get("bytes")}
        if "optimizer" in known:
            found["bytes"] = state_bytes(known["optimizer"])
        if "naive" in known:
            found["bytes"] = known["naive"].state_bytes()
        if "tuning" in known and known["tuning"].mask is not None:
            found["bound"] = state_bound(known["tuning"], known["trains"])
    return {"samples": samples, "facts": facts}


def rows_of(group: str, samples: Samples, facts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the group's rows; in the lean groups, of what is taken beyond a backward pass."""
    if not group.startswith("lean"):
        return [row(name, s, samples[PEER], group=group, **facts[name]) for name, s in samples.items() if name != PEER]
    peer, own = minus(samples[PEER], samples["backward alone"]), samples["its backward alone"]
    ours = {name: minus(s, own) for name, s in samples.items() if name.startswith("D,")}
    return [row(f"{name}: (backward + step) - backward", s, peer, group=group) for name, s in ours.items()]


def main() -> None:
    """Measure every group, print the table, write JSON and docs where asked."""
    made = parser(__doc__, repeats=60)
    made.add_argument("--groups", default=",".join(GROUPS), help="which groups, separated by commas (default: all)")
    made.add_argument("--add", action="store_true", help="keep the groups of the docs' file that this run leaves out")
    made.add_argument("--processes", type=int, default=2, help="processes that share the repetitions (default 2)")
    options = parse(made)
    if options.quick:
        options.repeats, options.processes = min(options.repeats, 4), 1
    if options.child:
        options.repeats = -(-options.repeats // options.processes)
        print(json.dumps(child(options)))
        return
    chosen = options.groups.split(",")
    if unknown := set(chosen) - set(GROUPS):
        made.error(f"no such group: {sorted(unknown)[0]}; groups are {', '.join(GROUPS)}")
    rows = [one for one in (earlier("step", options) if options.add else []) if one["group"] not in chosen]
    for group in chosen:
        extra = KEEP_MEMORY if group.startswith("lean") else {}
        runs = [measure(group, extra) for _ in range(options.processes)]
        samples = pooled(run["samples"] for run in runs)
        rows += rows_of(group, samples, runs[0]["facts"])
        print(group, *(f"{one['name']}: {shown(one)}" for one in rows if one["group"] == group), sep="\n  ", flush=True)
    rows.sort(key=lambda one: list(GROUPS).index(one["group"]))
    options.groups = ",".join(dict.fromkeys(one["group"] for one in rows))
    text = table(
        rows,
        {
            "step": "name",
            "ratio to torch's fused AdamW (95 %)": shown,
            "target": goal,
            "pairs": "pairs",
            "ms": lambda one: f"{1e3 * one['seconds']:.0f}",
            "state, MiB": lambda one: f"{one['bytes'] / MIB:.0f}" if one.get("bytes") else "",
            "bound, MiB": lambda one: f"{one['bound'] / MIB:.0f}" if one.get("bound") else "",
        },
    )
    about = f"`python benchmarks/bench_step.py --repeats {options.repeats}`"
    peers = sorted(one["seconds"] / one["median"] for one in rows if not one["group"].startswith("lean"))
    if peers:
        about += f"; torch's fused AdamW of all entries takes about {1e3 * peers[0]:.0f} to {1e3 * peers[-1]:.0f} ms"
    report("step", options, text, rows, f"{about}.")


if __name__ == "__main__":
    main()
