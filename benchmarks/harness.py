"""What the benchmarks share: paired timing, processes of their own, JSON files, and tables in the docs.

Timing is interleaved: in each repetition every way runs once, in an order that is turned from one repetition to the
next, so that all of them meet the same machine. A ratio is the median of the ratios of paired samples, with a
bootstrap interval over the pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from machine import environment, environment_line, synchronize

ROOT = Path(__file__).resolve().parents[1]
PAGE, FOLDER = ROOT / "docs" / "performance.md", ROOT / "docs" / "benchmarks"
PAGES = {"priming": ROOT / "docs" / "priming.md"}  # of suites whose tables stand elsewhere
Samples = dict[str, list[float]]  # seconds by way, one number a repetition


# -- time ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """Something to be timed: `run`, and `before`, which is called just ahead of it outside the timing."""

    name: str
    run: Callable[[], object]
    before: Callable[[], object] | None = None


def interleave(ways: Sequence[Way], repeats: int, warmup: int = 3, device: str = "cpu") -> Samples:
    """Run every way `repeats` times, all of them in turn; return the seconds of each.

    Each order is followed by its reverse, then turned by one place, so that no way has always the same one before it.
    """
    samples: Samples = {way.name: [] for way in ways}
    if len(samples) != len(ways):
        raise ValueError("two ways have the same name")
    for repetition in range(-warmup, repeats):
        turn = repetition // 2 % len(ways)
        order = [*ways[turn:], *ways[:turn]]
        for way in reversed(order) if repetition % 2 else order:
            seconds = timed(way, device)
            if repetition >= 0:
                samples[way.name].append(seconds)
    return samples


def timed(way: Way, device: str = "cpu") -> float:
    """Return the seconds of one run."""
    if way.before is not None:
        way.before()
    synchronize(device)
    start = time.perf_counter()
    way.run()
    synchronize(device)
    return time.perf_counter() - start


class Ratio(NamedTuple):
    """A median over pairs with the ends of its 95 % bootstrap interval."""

    median: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}, {self.high:.2f})"


def paired(above: Sequence[float], below: Sequence[float], resamples: int = 2000) -> Ratio:
    """Return the median of above[i] / below[i], with its bootstrap interval over the pairs (fixed draws)."""
    import numpy as np

    if len(above) != len(below) or not above:
        raise ValueError(f"pairs are wanted, got {len(above)} and {len(below)} samples")
    quotients = np.asarray(above, dtype=np.float64) / np.asarray(below, dtype=np.float64)
    drawn = np.random.default_rng(0).integers(0, quotients.size, (resamples, quotients.size))
    low, high = np.quantile(np.median(quotients[drawn], axis=1), (0.025, 0.975))
    return Ratio(float(np.median(quotients)), float(low), float(high), quotients.size)


def total(above: Sequence[float], below: Sequence[float], resamples: int = 2000) -> Ratio:
    """Return the ratio of the sums, where rare expensive steps count, with its bootstrap interval over the pairs."""
    import numpy as np

    pairs = np.asarray([above, below], dtype=np.float64)  # (2, pairs)
    drawn = np.random.default_rng(0).integers(0, pairs.shape[1], (resamples, pairs.shape[1]))
    sums = pairs[:, drawn].sum(2)  # (2, resamples)
    low, high = np.quantile(sums[0] / sums[1], (0.025, 0.975))
    whole = pairs.sum(1)
    return Ratio(float(whole[0] / whole[1]), float(low), float(high), pairs.shape[1])


def minus(samples: Sequence[float], floor: Sequence[float]) -> list[float]:
    """Return the paired differences: what `samples` take beyond `floor`."""
    return [a - b for a, b in zip(samples, floor, strict=True)]


def pooled(runs: Iterable[Samples]) -> Samples:
    """Return the samples of several processes put together, pair by pair."""
    everything: Samples = {}
    for run in runs:
        for name, seconds in run.items():
            everything.setdefault(name, []).extend(seconds)
    return everything


def row(name: str, above: Sequence[float], below: Sequence[float], **more: Any) -> dict[str, Any]:
    """Return a result: the median seconds of `above` and the ratio to `below`, with whatever else is known."""
    import numpy as np

    ratio = paired(above, below)
    return {"name": name, "seconds": float(np.median(above)), **ratio._asdict(), **more}


# -- scripts ---------------------------------------------------------------------------------------------------------


def parser(text: str | None, *, repeats: int, device: bool = True) -> argparse.ArgumentParser:
    """Return a parser with the options that every suite has."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    if device:
        made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads of torch (default 2)")
    made.add_argument("--repeats", type=int, default=repeats, help=f"paired repetitions (default {repeats})")
    made.add_argument("--quick", action="store_true", help="a smoke run: small sizes, few repetitions")
    made.add_argument("--output", type=Path, help="write settings, machine and results to this JSON file")
    made.add_argument(
        "--write-docs", action="store_true", help="write the table into its page of the docs, and its JSON"
    )
    made.add_argument("--child", help=argparse.SUPPRESS)  # what a process that was started by this script measures
    return made


def parse(made: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse and check the arguments; set the number of threads in a child."""
    options = made.parse_args()
    if options.threads < 1 or options.repeats < 1:
        made.error("threads and repeats must be at least 1")
    if options.quick and options.write_docs:
        made.error("--quick is a smoke run: its figures do not go into the docs")
    os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = str(options.threads)  # its children's
    if options.child:
        import torch

        torch.set_num_threads(options.threads)
    elif getattr(options, "device", "cpu") == "cuda":
        import torch

        if not torch.cuda.is_available():
            made.error("there is no GPU here")
    return options


def earlier(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the results in the docs' JSON file, which a run that measures only some rows adds to.

    Raises SystemExit where they are of another machine, or of other versions: one table is of one machine.
    """
    device = getattr(options, "device", "cpu")
    file = FOLDER / f"{name if device == 'cpu' else f'{name}-{device}'}.json"
    if not file.exists():
        return []
    found = json.loads(file.read_text("utf-8"))
    now = environment(options.threads, device)
    if found["machine"] != now:
        raise SystemExit(f"{file.name} is of another machine ({environment_line(found['machine'])}): leave out --add")
    rows: list[dict[str, Any]] = found["results"]
    return rows


def measure(what: str, extra: Mapping[str, str] | None = None, arguments: Sequence[str] = ()) -> Any:
    """Run this script anew with `--child what` in a process of its own; return what it printed as JSON, last."""
    command = [sys.executable, sys.argv[0], *sys.argv[1:], *arguments, "--child", what]
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, **offline, **(extra or {})},
    )
    if ended.returncode:
        raise SystemExit(f"{what}: ended with status {ended.returncode}\n{ended.stderr[-4000:]}")
    return json.loads(ended.stdout.splitlines()[-1])


def report(name: str, options: argparse.Namespace, text: str, results: Any, about: str) -> None:
    """Print `text` (Markdown); write `results` with settings and machine as JSON, and the docs' block, where asked.

    On a GPU the block, made behind that of the CPU, and the file have a name of their own.
    """
    device = getattr(options, "device", "cpu")
    suite, name = name, name if device == "cpu" else f"{name}-{device}"
    skipped = ("output", "write_docs", "child", "quick")
    settings = {key: value for key, value in vars(options).items() if key not in skipped and value is not None}
    machine = environment(options.threads, device)
    whole = f"{about}\n{environment_line(machine)}.\n\n{text}"
    print(whole)
    written = json.dumps({"settings": settings, "machine": machine, "results": results}, indent=1, default=str) + "\n"
    if options.output:
        options.output.write_text(written, "utf-8")
    if options.write_docs:
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{name}.json").write_text(written, "utf-8")
        write_block(PAGES.get(suite, PAGE), name, whole, after=suite)


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str | Callable[[Mapping[str, Any]], object]]) -> str:
    """Return a Markdown table: for each column's title a key of the rows, or a function of a row."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for one in rows:
        cells = [value(one) if callable(value) else one.get(value, "") for value in columns.values()]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def shown(one: Mapping[str, Any]) -> str:
    """Return a row's ratio as text."""
    return str(Ratio(one["median"], one["low"], one["high"], one["pairs"]))


def goal(one: Mapping[str, Any]) -> str:
    """Return a row's target, and whether it was met."""
    if one.get("target") is None:
        return ""
    return f"{one['target']:.2f}" + ("" if one["median"] <= one["target"] else " (missed)")


def write_block(page: Path, name: str, text: str, after: str | None = None) -> None:
    """Put `text` between the marks of the block `name` of a Markdown page.

    A block that is not there is made behind the block `after`, where one is named. Raises SystemExit where the page has
    no such block, or more than one.
    """
    begin, end = marks(name)
    before = page.read_text("utf-8")
    if after is not None and begin not in before:
        known = marks(after)[1]
        before = before.replace(known, f"{known}\n\n{begin}\n{end}", 1)
    if before.count(begin) != 1 or before.count(end) != 1 or before.index(begin) > before.index(end):
        raise SystemExit(f"{page.name} needs the marks {begin} and {end}, once each, in this order")
    head, _, rest = before.partition(begin)
    page.write_text(f"{head}{begin}\n{text.strip()}\n{end}{rest.partition(end)[2]}", "utf-8")


def marks(name: str) -> tuple[str, str]:
    """Return the comments around the block `name`."""
    return f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
