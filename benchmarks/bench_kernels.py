"""The CPU kernels beside torch's fused AdamW on the same number of float32 entries, one tensor, everything interleaved.

    python benchmarks/bench_kernels.py --entries 28000000 --repeats 51 --output kernels.json

"bits" and "index" say how the mask is stored (the smaller of the two is taken); "packed gradient" is one that lean
engines have packed before. gather and scatter move the selected entries alone.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from harness import Way, interleave, measure, parse, parser, report, row, shown, table

KEEPS = (0.3, 0.1, 0.05, 0.01)
PEER = "torch fused AdamW"


def ways(entries: int) -> list[Way]:
    """Return what is timed."""
    import torch

    from subnetune.core.hashing import keys, threshold
    from subnetune.core.masks import pack
    from subnetune.engine.kernels import Hashed, Moments, Rates, Treatment, kernels_for
    from subnetune.engine.place import Place

    kernels = kernels_for("cpu")
    if kernels.name != "numba":
        raise SystemExit("numba is not installed: pip install 'subnetune[fast]'")
    torch.manual_seed(0)
    weights, gradient = torch.randn(entries), torch.randn(entries)
    dense = Moments(torch.zeros(entries), torch.zeros(entries))
    rates, both = Rates(1e-4, 0.9, 0.999, 1e-8, 0.01, 5), Treatment(True, True)
    theirs = torch.randn(entries).requires_grad_()
    theirs.grad = gradient
    hashed = Hashed(*keys(0, 0, "weight"), threshold(0.3), 0)
    made = [
        Way(PEER, torch.optim.AdamW([theirs], lr=1e-4, weight_decay=0.01, fused=True).step),
        Way("whole", lambda: kernels.adamw(weights, gradient, dense, rates)),
        Way("hashed", lambda: kernels.adamw_hashed(weights, gradient, dense, rates, hashed, both)),
    ]
    for keep in KEEPS:
        place = Place.of_bits(pack(torch.rand(entries) < keep), entries)
        moments, packed = Moments(torch.zeros(place.count), torch.zeros(place.count)), torch.randn(place.count)
        name = f"keep {keep}, {'bits' if place.index is None else 'index'}"

        def update(given: torch.Tensor = gradient, place: Place = place, moments: Moments = moments) -> None:
            kernels.adamw_packed(weights, given, moments, rates, place)

        def packed_update(update: Any = update, packed: torch.Tensor = packed) -> None:
            update(packed)

        def gather(place: Place = place, packed: torch.Tensor = packed) -> None:
            kernels.gather(gradient, place, packed)

        def scatter(place: Place = place, packed: torch.Tensor = packed) -> None:
            kernels.scatter(packed, place, weights)

        made += [
            Way(name, update),
            Way(f"{name}, packed gradient", packed_update),
            Way(f"{name}, gather", gather),
            Way(f"{name}, scatter", scatter),
        ]
    return made


def results(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each way: milliseconds, and the ratio to the peer."""
    samples = interleave(ways(options.entries), options.repeats)
    return [row(name, seconds, samples[PEER]) for name, seconds in samples.items()]


def main() -> None:
    made = parser(__doc__, repeats=51, device=False)
    made.add_argument("--entries", type=int, default=28_000_000, help="entries of the tensor (default 28 million)")
    options = parse(made)
    if options.entries < 1:
        made.error("entries must be at least 1")
    if options.quick:
        options.entries, options.repeats = min(options.entries, 1_000_000), min(options.repeats, 5)
    if options.child:
        print(json.dumps(results(options)))
        return
    rows = measure("kernels")
    columns: dict[str, Any] = {
        "kernel": "name",
        "milliseconds": lambda one: f"{1e3 * one['seconds']:.2f}",
        "x fused (95 % interval)": shown,
    }
    about = f"{options.entries:,} float32 entries in one tensor, medians of {options.repeats} paired interleaved steps."
    report("kernels", options, table(rows, columns), rows, about)


if __name__ == "__main__":
    main()
