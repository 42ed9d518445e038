"""Size of a delta, and the time to save, load and apply it, beside PEFT's files, a full checkpoint, and the bound.

    python benchmarks/bench_delta.py --folder /dev/shm --write-docs
    python benchmarks/bench_delta.py --model bert-base --keeps 0.3 --repeats 20

Random entries of every tensor move. LoRA and SHiRA (PEFT itself; left out where it is not installed) get the rank that
trains about as many entries, at least 1; `torch.save` holds the same entries as sparse COO tensors. The bound is values
+ 1.15 times the entropy of the positions + 512 bytes per tensor + 1 KiB (docs/design.md). Every share is measured in a
process of its own, all ways in turn. Only the delta is synced to the disk, hashed and checked; "plain bytes" writes and
syncs, or reads, as many bytes as the delta has and hashes them once in one thread: what no such format can avoid.
"load" ends with tensors in memory, "and apply" with a model that has them. A delta is applied to the base it was made
for: to know it takes a fingerprint of the model, which is timed apart and left out of "and apply".
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from delta_formats import FLOOR, NEW, OURS, Format, bounds, formats, plain
from harness import Samples, Way, interleave, measure, minus, paired, parse, parser, report, shown, table

SLOWEST = 500  # MB/s that saving and loading must reach at keep 0.3


# -- measuring -------------------------------------------------------------------------------------------------------


def child(options: Any, keep: float) -> dict[str, Any]:
    """Return sizes and seconds of all formats for one share."""
    from subnetune.core.fingerprint import Fingerprint

    every, delta, base = formats(options, keep)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        every[0].save(folder / "first")
        every.append(plain((folder / "first").stat().st_size, base))
        saved = interleave(
            [saving(form, folder / f"format-{place}") for place, form in enumerate(every)], options.repeats
        )
        paths = {form.name: folder / f"format-{place}" for place, form in enumerate(every)}
        sizes = {form.name: payload(paths[form.name]) for form in every}
        loads = [Way(form.name, lambda form=form: form.load(paths[form.name])) for form in every]
        both = [
            Way(f"{form.name} and apply", lambda form=form: form.apply(form.load(paths[form.name])), form.reset)
            for form in every
        ]
        fingerprint = Way("fingerprint", lambda: Fingerprint.of(base, exclude=NEW))
        loaded = interleave([*loads, *both, fingerprint], options.repeats)
        facts = {"keep": keep, "file system": file_system(folder), **bounds(delta)}
    return {"facts": facts, "rows": rows(every, sizes, saved, loaded), "fingerprint": middle(loaded["fingerprint"])}


def saving(form: Format, path: Path) -> Way:
    """Time a save to a path where nothing is: giving back the old file's memory is no part of it."""

    def clear() -> None:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    return Way(form.name, lambda: form.save(path), clear)


def rows(every: list[Format], sizes: Mapping[str, int], saved: Samples, loaded: Samples) -> list[dict[str, Any]]:
    """Return a row for each format: bytes, seconds, and what its times are of the plain bytes' (paired)."""
    found = []
    for form in every:
        size, applied = sizes[form.name], loaded[f"{form.name} and apply"]
        if form.name == OURS:
            applied = minus(applied, loaded["fingerprint"])
        one: dict[str, Any] = {"name": form.name, "trained": form.trained, "bytes": size}
        for what, seconds, floor in (
            ("save", saved[form.name], saved[FLOOR]),
            ("load", loaded[form.name], loaded[FLOOR]),
            ("and apply", applied, loaded[FLOOR]),
        ):
            rate = paired([size / 1e6] * len(seconds), seconds)  # MB/s
            one[what] = {"seconds": middle(seconds), "MB/s": rate._asdict(), "floor": paired(seconds, floor)._asdict()}
        found.append(one)
    return found


def middle(samples: list[float]) -> float:
    """Return the median."""
    import numpy as np

    return float(np.median(samples))


def payload(path: Path) -> int:
    """Return a file's size; of PEFT's folder that of the weights alone."""
    return (path / "adapter_model.safetensors" if path.is_dir() else path).stat().st_size


def file_system(folder: Path) -> str:
    """Return the kind of file system that a folder is on, "unknown" where the system does not say."""
    found = ("", "unknown")
    with contextlib.suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, mount, kind, *_ = line.split()
            if folder.resolve().is_relative_to(mount) and len(mount) >= len(found[0]):
                found = (mount, kind)
    return found[1]


# -- the table -------------------------------------------------------------------------------------------------------


def rate(one: Mapping[str, Any], what: str) -> str:
    """Return milliseconds and MB/s with its interval."""
    if one["name"] == FLOOR and what == "and apply":
        return ""
    found = one[what]["MB/s"]
    return f"{one[what]['seconds'] * 1e3:.1f} ms, {found['median']:.0f} ({found['low']:.0f}, {found['high']:.0f}) MB/s"


def text(results: list[dict[str, Any]]) -> str:
    """Return a table for each share, and whether the targets are met."""
    parts = []
    for result in results:
        facts, every = result["facts"], result["rows"]
        ours = next(one for one in every if one["name"] == OURS)
        each = ours["trained"]
        ratios = f"{shown(ours['save']['floor'])} and {shown(ours['load']['floor'])}"
        met = "within" if ours["bytes"] <= facts["bound"] else "ABOVE"
        lines = [
            f"keep {facts['keep']}: values and entropy take {facts['entropy']:,} bytes ({facts['entropy'] / each:.3f} "
            f"per trained entry); the delta is {met} the bound of {facts['bound']:,} ({facts['bound'] / each:.3f}). "
            f"Its save and load take {ratios} times those of plain bytes; a fingerprint takes "
            f"{result['fingerprint'] * 1e3:.1f} ms. File system: {facts['file system']}."
        ]
        if facts["keep"] == 0.3 and ours["bytes"] > 10**7:  # a small file's time is that of its header
            named = {"save": "save", "load": "load", "and apply": "load and apply"}
            slow = [words for what, words in named.items() if ours[what]["MB/s"]["median"] < SLOWEST]
            lines[0] += f" Target of {SLOWEST} MB/s: " + (f"missed by {', '.join(slow)}." if slow else "met.")
        columns = {
            "format": "name",
            "trained entries": lambda one: f"{one['trained']:,}" if one["trained"] else "",
            "bytes": lambda one: f"{one['bytes']:,}",
            "bytes per trained entry": lambda one: f"{one['bytes'] / one['trained']:.2f}" if one["trained"] else "",
            "save": lambda one: rate(one, "save"),
            "load": lambda one: rate(one, "load"),
            "load and apply": lambda one: rate(one, "and apply"),
        }
        parts += [lines[0], table(every, columns)]
    return "\n\n".join(parts)


def main() -> None:
    """Measure every share in a process of its own and print the tables."""
    made = parser(__doc__, repeats=30, device=False)
    made.add_argument("--model", choices=("minilm", "bert-base", "tiny"), default="minilm")
    made.add_argument("--keeps", default="0.3,0.1,0.01,0.001")
    made.add_argument("--folder", type=Path, help="where files are written (default: a temporary folder)")
    options = parse(made)
    if options.folder is not None and not options.folder.is_dir():
        made.error(f"{options.folder} is no folder")
    if options.quick:
        options.model, options.keeps, options.repeats = "tiny", "0.3,0.01", min(options.repeats, 3)
    if options.child:
        print(json.dumps(child(options, float(options.child))))
        return
    results = [measure(keep) for keep in options.keeps.split(",")]
    about = f"`bench_delta.py`: model {options.model}, random entries of every tensor moved, {options.repeats} repeats."
    report("delta", options, text(results), results, about)


if __name__ == "__main__":
    main()
