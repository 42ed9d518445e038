"""Hold the scores of a grid beside those of another, cell by cell: a part that was run anew beside what is committed.

    python benchmarks/check_results.py runs/results-small docs/results/low-resource

Both folders hold a results.csv. Cells are matched by their names, which carry a hash of all that decides their result.
On the same processor and versions the scores are equal to the last digit; elsewhere they differ by what rounding does
to training. Cells of other options (`--no-bf16`) have other names: they are held beside the one of the same task,
method, train size and seed. Ends with 1 where there is none of either.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path


def scores(folder: Path) -> dict[str, dict[str, str]]:
    """Return the finished cells of a results.csv by name."""
    file = folder / "results.csv"
    if not file.is_file():
        raise SystemExit(f"{file}: no such file; `subnetune compare` or `subnetune report` writes it")
    with file.open(newline="", encoding="utf-8") as lines:
        return {row["cell"]: row for row in csv.DictReader(lines) if row["state"] == "done"}


def place(row: dict[str, str]) -> tuple[str, ...]:
    """Return what a cell is of, whatever its options."""
    return row["task"], row["method"], row["train_size"], f"seed {row['seed']}"


def main() -> None:
    """Print the cells that differ and how many are equal."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("new", type=Path)
    made.add_argument("old", type=Path)
    options = made.parse_args()
    new, old = scores(options.new), scores(options.old)
    both = [name for name in new if name in old]
    places = {place(row): row for row in old.values()}
    others = [row for name, row in new.items() if name not in old and place(row) in places]
    if not both and not others:
        raise SystemExit(f"no finished cell is in both {options.new} and {options.old}")
    for row in others:
        print(f"{' '.join(place(row))}: {row['value']} here, {places[place(row)]['value']} there, with other options")
    differing = [name for name in both if new[name]["value"] != old[name]["value"]]
    for name in differing:
        print(f"{name}: {new[name]['value']} here, {old[name]['value']} there")
    if both:
        print(
            f"{len(both) - len(differing)} of {len(both)} cells that are in both have the same score to the last digit"
        )
    if only := len(new) - len(both) - len(others):
        print(f"{only} finished cells are in {options.new} alone")


if __name__ == "__main__":
    main()
