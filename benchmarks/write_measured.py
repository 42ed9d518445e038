"""Write src/subnetune/methods/measured.py, what the cards say of our own runs, from docs/results.json and cost.json.

Run it after `benchmarks/results.py write` or `benchmarks/bench_methods.py`, then `python docs/generate_methods.py`.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "src" / "subnetune" / "methods" / "measured.py"
HEAD = '''"""What our own runs say of each method; written by benchmarks/write_measured.py, not by hand."""

from __future__ import annotations

'''


def found(cell: dict[str, Any], full: dict[str, Any]) -> str:
    """Return one sentence on a method's scores on STS-B beside those of full fine-tuning with the same seeds."""
    values, plain = cell["values"], full["values"]
    above = sum(values[seed] > plain[seed] for seed in values)
    ours = list(values.values())
    said = (
        f"one seed, {ours[0]:.3f} (full fine-tuning {next(plain[seed] for seed in values):.3f})"
        if len(ours) == 1
        else f"mean {statistics.mean(ours):.3f} of {len(ours)} seeds, {min(ours):.3f} to {max(ours):.3f}; full "
        f"fine-tuning with these seeds {statistics.mean(plain[s] for s in values):.3f}, lower in {above}"
    )
    return f"STS-B with 600 examples, MiniLM, lr {cell['lr']:g}: {said} (docs/results.md)"


def cost(cell: dict[str, Any], full: dict[str, Any]) -> str:
    """Return one sentence on time and memory beside full fine-tuning."""
    if cell is full:
        return f"what the others are measured by: peak memory beyond the model {cell['extra_mib']:.0f} MiB with MiniLM"
    start = f", {cell['start_s']:.1f} s before step 0" if cell["start_s"] >= 0.5 else ""
    return (
        f"a step takes about {cell['ratio']:.1f} times that of full fine-tuning{start}; peak memory beyond the model "
        f"{cell['extra_mib'] / full['extra_mib']:.2f} times (MiniLM, one CPU thread, reference engine: "
        "docs/performance.md)"
    )


def literal(name: str, texts: dict[str, str]) -> str:
    """Return a module-level dict of texts."""
    lines = [f"{name}: dict[str, str] = {{"]
    for key, text in texts.items():
        half = text.rfind(" ", 0, 96) + 1
        lines += [f"    {key!r}: (", f"        {text[:half]!r}"]
        rest = text[half:]
        while rest:
            cut = len(rest) if len(rest) <= 100 else rest.rfind(" ", 0, 100) + 1
            lines.append(f"        {rest[:cut]!r}")
            rest = rest[cut:]
        lines.append("    ),")
    return "\n".join([*lines, "}"]).replace("'", '"') + "\n"


def main() -> None:
    """Write the module."""
    scores = json.loads((ROOT / "docs" / "results.json").read_text())["stsb"]
    costs = json.loads((ROOT / "docs" / "methods" / "cost.json").read_text())["methods"]
    known = {name: cell for name, cell in scores.items() if name in costs and name != "full"}
    runs = {name: found(cell, scores["full"]) for name, cell in sorted(known.items())}
    takes = {name: cost(cell, costs["full"]) for name, cell in sorted(costs.items()) if "error" not in cell}
    TARGET.write_text(HEAD + literal("FOUND", runs) + "\n" + literal("COST", takes))


if __name__ == "__main__":
    main()
