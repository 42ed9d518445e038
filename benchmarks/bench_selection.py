"""Time and peak memory of `keep_top` beside the releases' concatenate-and-percentile and numpy's partition.

    python benchmarks/bench_selection.py --write-docs
    python benchmarks/bench_selection.py --entries 30000000 --repeats 15

Every measurement runs in its own process, the ways in turn, so that neither the heap nor a busy moment of the machine
favours one. Memory is the peak of resident memory during the call above that before it (the scores lie there already);
"beyond the mask" leaves out the bytes of the mask that is returned. On a machine that is busy with other work compare
the seconds of processor time (all threads together). Reads /proc, so it runs on Linux only.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from harness import Ratio, measure, paired, parse, parser, report, table
from machine import MIB, status

LARGEST = 12_500_000  # entries of one tensor; a large embedding has about twice as many


def make_scores(entries: int) -> dict[str, Any]:
    """Return squared uniform numbers as float32 tensors, as a Fisher score of a model would come."""
    import torch

    torch.manual_seed(0)
    sizes = [LARGEST] * (entries // LARGEST) + ([entries % LARGEST] if entries % LARGEST else [])
    return {f"layer.{index}": torch.rand(size).square_() for index, size in enumerate(sizes)}


def ours(scores: dict[str, Any], keep: float) -> tuple[int, int]:
    """`keep_top`: exactly k entries, packed bits. Returns (selected entries, bytes of the mask)."""
    from subnetune.core.masks import selected_counts
    from subnetune.core.selection import keep_top

    mask = keep_top(scores, keep)
    MARKS["end"], MARKS["processor"] = time.perf_counter(), time.process_time()
    MARKS["peak"] = status("VmHWM")
    return sum(selected_counts(mask, scores).values()), sum(bits.numel() for bits in mask.bits.values())


def percentile(scores: dict[str, Any], keep: float) -> tuple[int, int]:
    """All scores in one numpy array, its percentile, and a bool mask by comparing (as the Child-Tuning release)."""
    import numpy as np

    everything = np.concatenate([score.numpy().reshape(-1) for score in scores.values()])
    threshold = float(np.percentile(everything, (1 - keep) * 100))
    return compare(scores, threshold)


def partition(scores: dict[str, Any], keep: float) -> tuple[int, int]:
    """The same with numpy's partition (in place, on the concatenated copy) instead of the percentile."""
    import numpy as np

    everything = np.concatenate([score.numpy().reshape(-1) for score in scores.values()])
    cut = everything.size - max(1, int(keep * everything.size))
    everything.partition(cut)
    return compare(scores, float(everything[cut]))


def compare(scores: dict[str, Any], threshold: float) -> tuple[int, int]:
    masks = {name: score >= threshold for name, score in scores.items()}
    MARKS["end"], MARKS["processor"] = time.perf_counter(), time.process_time()
    MARKS["peak"] = status("VmHWM")
    return sum(int(mask.sum()) for mask in masks.values()), sum(mask.numel() for mask in masks.values())


OURS, PERCENTILE, PARTITION = "keep_top", "numpy percentile", "numpy partition"
FASTER = {PERCENTILE: 5.0, PARTITION: 2.0}  # how many times faster `keep_top` is wanted to be at 300 million
WAYS: dict[str, Callable[[dict[str, Any], float], tuple[int, int]]] = {
    OURS: ours,
    PERCENTILE: percentile,
    PARTITION: partition,
}
MARKS: dict[str, float] = {}


def child(way: str, entries: int, keep: float) -> dict[str, float]:
    """Run one way in this process and return its seconds, peak bytes and how many entries it selected."""
    import torch

    WAYS[way]({"warm": torch.rand(3_000_000)}, keep)  # imports and thread pools are no part of the question
    scores = make_scores(entries)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    start, processor = time.perf_counter(), time.process_time()
    selected, mask = WAYS[way](scores, keep)
    return {
        "seconds": MARKS["end"] - start,
        "processor_seconds": MARKS["processor"] - processor,
        "peak_bytes": MARKS["peak"] - before,
        "mask_bytes": mask,
        "selected": selected,
    }


def sized(entries: int, keep: float, repeats: int) -> list[dict[str, Any]]:
    """Return a row for each way: medians, and how many times faster than it `keep_top` is."""
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way in WAYS:
            runs[way].append(measure(f"{way}/{entries}", {"OMP_NUM_THREADS": str(os.cpu_count())}))
    ours = [run["seconds"] for run in runs[OURS]]
    rows = []
    for way, of in runs.items():
        faster = paired([run["seconds"] for run in of], ours)
        medians = {key: median(run[key] for run in of) for key in of[0]}
        rows.append({"name": way, "entries": entries, "keep": keep, **medians, **faster._asdict()})
    return rows


def shown(one: dict[str, Any]) -> str:
    """Return how many times `keep_top` is faster, and the least that is wanted."""
    if one["name"] == OURS:
        return ""
    ratio, least = Ratio(one["median"], one["low"], one["high"], one["pairs"]), FASTER[one["name"]]
    if one["entries"] < 300_000_000:
        return str(ratio)
    return f"{ratio}, wanted {least:g}{'' if one['median'] >= least else ' (missed)'}"


def main() -> None:
    """Measure, print the table, write JSON and docs where asked."""
    made = parser(__doc__, repeats=5, device=False)
    made.add_argument("--entries", type=int, help="number of scores (default: 300 million, and 30 million more often)")
    made.add_argument("--keep", type=float, default=0.3, help="fraction to select (default 0.3)")
    options = parse(made)
    if (options.entries is not None and options.entries < 1) or not 0 < options.keep <= 1:
        made.error("entries must be at least 1, keep in (0, 1]")
    if options.child:
        way, _, entries = options.child.partition("/")
        print(json.dumps(child(way, int(entries), options.keep)))
        return
    sizes = {300_000_000: options.repeats, 30_000_000: 3 * options.repeats}
    if options.entries or options.quick:
        sizes = {options.entries or 3_000_000: min(options.repeats, 2) if options.quick else options.repeats}
    rows = [one for entries, repeats in sizes.items() for one in sized(entries, options.keep, repeats)]
    columns = {
        "way": "name",
        "scores": lambda one: f"{one['entries']:,}",
        "seconds": lambda one: f"{one['seconds']:.2f}",
        "processor seconds": lambda one: f"{one['processor_seconds']:.2f}",
        "MiB beyond scores and mask": lambda one: f"{(one['peak_bytes'] - one['mask_bytes']) / MIB:.0f}",
        "entries selected": lambda one: f"{one['selected']:,.0f}",
        "keep_top is faster by (95 %)": shown,
        "runs": "pairs",
    }
    about = f"`python benchmarks/bench_selection.py --keep {options.keep} --repeats {options.repeats}`: float32 scores."
    report("selection", options, table(rows, columns), rows, about)


if __name__ == "__main__":
    main()
