"""Selected entries of a linear layer's weight gradient beside the dense gradient: 2048 tokens, 768 -> 3072, float32.

    python benchmarks/bench_products.py --repeats 31 --output products.json

Single entries are a loop compiled by numba where that is installed, else torch's sampled product; rows and columns are
small dense products. "layer" rows are forward and
backward passes of a whole layer, the plain one being the peer. On a GPU single entries are Triton's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from harness import Way, interleave, measure, parse, parser, report, row, shown, table

KEEPS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3)
LINES = (0.01, 0.1, 0.3, 0.6)
PEER, PLAIN = "dense weight gradient", "layer, plain"


def ways(options: argparse.Namespace) -> list[Way]:
    """Return what is timed."""
    import torch

    from subnetune.core.masks import pack
    from subnetune.engine.kernels.products import SampledProduct, entries_product
    from subnetune.engine.place import Place
    from subnetune.engine.products import product_at

    torch.manual_seed(0)
    tokens, rows, columns = options.tokens, options.rows, options.columns
    gradient = torch.randn(tokens, rows, device=options.device)
    inputs = torch.randn(tokens, columns, device=options.device)
    weight = torch.empty(rows, columns, device=options.device)
    made = [Way(PEER, lambda: gradient.t() @ inputs)]
    ours = entries_product(options.device)
    if ours is None:
        raise SystemExit("there is no product of single entries for this device")
    for keep in KEEPS:
        index = (torch.rand(rows * columns, device=options.device) < keep).nonzero().view(-1)
        for name, make in (("", ours.make), (", torch's sampled product", SampledProduct)):
            if name and (options.device != "cpu" or ours.make is SampledProduct):
                continue
            product = make(index, rows, columns)
            made.append(Way(f"entries, keep {keep}{name}", lambda product=product: product(gradient, inputs)))
    for keep in LINES:
        for axis, name in ((0, "rows"), (1, "columns")):
            chosen = torch.rand((rows, 1) if axis == 0 else (1, columns), device=options.device) < keep
            chosen.view(-1)[0] = True
            place = Place.of_bits(pack(chosen.expand(rows, columns)), rows * columns)
            lines = product_at(place, weight)
            if isinstance(lines, str):
                continue
            made.append(Way(f"{name}, keep {keep}", lambda lines=lines: lines(gradient, inputs)))
    return made + layers(options)


def layers(options: argparse.Namespace) -> list[Way]:
    """Return passes of a whole layer."""
    import torch

    from subnetune import HoldUnselected, MaskGradient, Random, Recipe, Scope, Top, Tuning
    from subnetune.core.types import Output

    inputs = torch.randn(options.tokens, options.columns, device=options.device, requires_grad=True)
    gradient = torch.randn(options.tokens, options.rows, device=options.device)

    def passes(keep: float | None) -> Callable[[], None]:
        layer = torch.nn.Linear(options.columns, options.rows, device=options.device)
        recipe = Recipe(
            Scope(("0.weight",), ("0.bias",)), Top(Random(), keep or 1.0), (MaskGradient(), HoldUnselected())
        )
        kept = [layer]
        if keep is not None:
            tuning = Tuning(
                recipe, torch.nn.Sequential(layer), forward=lambda model, batch: Output(model(**batch), inputs)
            )
            kept += [tuning, tuning.optimizer(engine="packed", gradients="selected")]

        def run(kept: list[Any] = kept) -> None:
            kept[0](inputs).backward(gradient)
            kept[0].weight.grad = kept[0].bias.grad = inputs.grad = None
            if len(kept) > 1:
                kept[2].zero_grad()

        return run

    return [Way(PLAIN, passes(None)), *(Way(f"layer, keep {keep}", passes(keep)) for keep in (0.001, 0.01, 0.03, 0.1))]


def results(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each way: seconds, and the ratio to its peer."""
    samples = interleave(ways(options), options.repeats, device=options.device)
    return [row(name, s, samples[PLAIN if name.startswith("layer") else PEER]) for name, s in samples.items()]


def main() -> None:
    """Print the table; write JSON and docs where asked."""
    made = parser(__doc__, repeats=31)
    made.add_argument("--tokens", type=int, default=2048)
    made.add_argument("--rows", type=int, default=3072)
    made.add_argument("--columns", type=int, default=768)
    options = parse(made)
    if options.quick:
        options.tokens, options.rows, options.columns = 64, 96, 48
        options.repeats = min(options.repeats, 3)
    if options.child:
        print(json.dumps(results(options)))
        return
    rows = measure("products")
    columns: dict[str, Any] = {
        "weight gradient": "name",
        "ms": lambda one: f"{1e3 * one['seconds']:.2f}",
        "ratio to its peer": shown,
    }
    about = (
        f"`python benchmarks/bench_products.py`: {options.tokens} tokens, {options.columns} -> {options.rows}, "
        f"float32, medians of {options.repeats} interleaved pairs."
    )
    report("products", options, table(rows, columns), rows, about)


if __name__ == "__main__":
    main()
