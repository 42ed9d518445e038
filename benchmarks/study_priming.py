"""Make docs/results/priming.md: does priming help the fine-tuning that follows, and more than what costs the same?

    python benchmarks/study_priming.py run --data-dir ../shared/data --study ner --workers 2
    python benchmarks/study_priming.py run --data-dir ../shared/data --study sentiment --workers 2
    python benchmarks/study_priming.py write

Every arm is a checkpoint to start from: the plain model, or one that was made on the source tasks with the same number
of gradient evaluations. Each is fine-tuned on a few examples of every target, by BitFit and by LoRA, once a seed (a
seed is one draw of the examples, one priming, one fine-tuning). The arms' settings and the rates of fine-tuning are
chosen on a task of their own (`tune`) with a seed of its own, every arm with the same number of tries; one that
diverges there counts as 0. Finished parts are files and are never run twice: a stopped run goes on with the same
command.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WORK, RESULTS = ROOT / "runs" / "priming-study", ROOT / "docs" / "results"
SEEDS, TUNE_SEED = (42, 52, 57, 63, 78), 1  # the first of the ten that the Child-Tuning authors name; another to tune
METHODS = {"bitfit": (1e-3, 4e-3), "lora": (1e-3, 4e-3)}  # method -> rates of fine-tuning that are tried
BASELINE = "none"
INNER, QUERY = 3, 1  # inner steps, each on a batch of its own, and query batches


@dataclass(frozen=True)
class Study:
    """Tasks and sizes of one study. `steps`: outer steps of priming, of `batch` examples for each gradient."""

    sources: tuple[str, ...]
    tune: str  # the task that settings and rates are chosen on
    targets: tuple[str, ...]
    metric: str
    max_length: int
    examples: int = 100
    epochs: int = 10
    max_eval: int = 1000
    max_source: int = 5000
    steps: int = 40
    batch: int = 16  # examples of every gradient, in priming and in fine-tuning
    choice_of: str | None = None  # the study whose choice of settings and rates is taken over


STUDIES = {
    "ner": Study(
        ("ner:en", "ner:de"), "ner:fr", ("ner:nl", "ner:pt", "ner:universal_ner/da_ddt"), "span F1", max_length=48
    ),
    "sentiment": Study(
        ("amazon:books", "amazon:dvd"),
        "",
        ("amazon:electronics", "amazon:kitchen", "amazon:airline"),
        "accuracy",
        max_length=48,
        examples=64,
        epochs=6,
        steps=16,
        batch=8,
        choice_of="ner",
    ),
}
# Arms: what `prime` is told beside the tasks, and the settings that are tried (two each).
GRID = ({"lr": 1e-4, "inner_lr": 0.1}, {"lr": 3e-4, "inner_lr": 0.1})
ARMS: dict[str, tuple[dict[str, Any], tuple[dict[str, Any], ...]]] = {
    "none": ({}, ()),
    "joint": ({"for": "full", "inner_steps": 0}, ({"lr": 1e-4}, {"lr": 3e-4})),
    "maml-all": ({"for": "full"}, ({"lr": 1e-4, "inner_lr": 0.02}, {"lr": 3e-4, "inner_lr": 0.02})),
    "primed-bitfit": ({"for": "bitfit"}, GRID),
    "primed-lora": ({"for": "lora"}, GRID),
}
MEANING = {
    "none": "the plain encoder with a new head",
    "joint": "full fine-tuning on the sources together",
    "maml-all": "first-order MAML whose inner loop moves all parameters",
    "primed-bitfit": "primed for BitFit",
    "primed-lora": "primed for LoRA",
}


def checkpoint(data: Path, study: str, arm: str, setting: dict[str, Any], seed: int) -> str:
    """Return the folder of an arm's checkpoint, made where it is not there yet ("minilm" for the arm `none`)."""
    if arm == "none":
        return "minilm"
    from subnetune.experiment.priming import PrimeConfig, prime

    s, (fixed, _) = STUDIES[study], ARMS[arm]
    inner = fixed.get("inner_steps", INNER)
    # The same number of gradient evaluations: an outer step has one for each inner step and each query batch.
    steps = s.steps * (INNER + QUERY) // (inner + QUERY)
    path = WORK / study / "primed" / f"{arm}-{text(setting)}-seed{seed}"
    values = {"model": "minilm", "tasks": list(s.sources), "data_dir": str(data), "head": "shared", "task_batch": 2}
    values |= {"steps": steps, "inner_steps": inner, "query": QUERY, "batch_size": s.batch, "max_length": s.max_length}
    values |= {"max_train": s.max_source, "seed": seed, "threads": 1, "bf16": True, "save_steps": 1000}
    values |= {"output": str(path), "resume": True, **fixed, **setting}
    prime(PrimeConfig.from_values(values))
    return str(path)


def text(setting: dict[str, Any]) -> str:
    """Return a name for a setting."""
    return "-".join(f"{name}{value:g}" for name, value in sorted(setting.items())) or "plain"


def fine_tune(
    data: Path, study: str, start: str, target: str, method: str, lr: float, seed: int, size: int
) -> dict[str, Any]:
    """Return the metrics of one fine-tuning on `size` examples drawn by `seed`."""
    from subnetune.experiment.config import RunConfig
    from subnetune.experiment.loop import train

    s, name = STUDIES[study], Path(start).name
    path = (
        WORK
        / study
        / "tuned"
        / f"{name}-{target.replace(':', '-').replace('/', '-')}-{method}-{lr:g}-{size}-seed{seed}"
    )
    values: dict[str, Any] = {"model": start, "task": target, "data_dir": str(data), "method": method, "lr": lr}
    values |= {"epochs": s.epochs, "batch_size": s.batch, "schedule": "linear", "warmup": 0.06, "weight_decay": 0.0}
    values |= {"max_length": s.max_length, "max_train": size, "max_eval": s.max_eval, "train_seed": seed, "seed": seed}
    values |= {"threads": 1, "bf16": True, "eval_at": "end", "save_steps": 1000, "resume": True, "output": str(path)}
    found = train(RunConfig.from_values(values))
    shutil.rmtree(path / "checkpoints", ignore_errors=True)
    (path / "delta.safetensors").unlink(missing_ok=True)  # hundreds of them; the metrics are what is kept
    return {"value": found.value, "metric": found.metric}


def tune(job: tuple[str, str, str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the values on the task for tuning of one arm with one setting: a row a method and rate."""
    from subnetune.core.errors import NumericError

    data, study, arm, setting = job
    s = STUDIES[study]
    rows = []
    try:
        start = checkpoint(Path(data), study, arm, setting, TUNE_SEED)
    except NumericError as error:
        print(f"tune {study} {arm} {text(setting)}: {error}", flush=True)
        failed = {"arm": arm, "setting": setting, "value": 0.0, "failed": str(error)}
        return [{**failed, "method": method, "lr": lr} for method, rates in METHODS.items() for lr in rates]
    for method, rates in METHODS.items():
        for lr in rates:
            found = fine_tune(Path(data), study, start, s.tune, method, lr, TUNE_SEED, s.examples)
            rows.append({"arm": arm, "setting": setting, "method": method, "lr": lr, **found})
            print(f"tune {study} {arm} {text(setting)} {method} {lr:g}: {found['value']:.4f}", flush=True)
    return rows


def chosen(rows: list[dict[str, Any]], arm: str) -> tuple[dict[str, Any], dict[str, float]]:
    """Return an arm's setting and the rate of each method.

    The setting has the best mean, over the methods that the arm is meant for, of the best rates' values; ties go to the
    one that comes first.
    """
    own = [row for row in rows if row["arm"] == arm]
    meant = [m for m in METHODS if arm in (f"primed-{m}", "none", "joint", "maml-all")]

    def best(setting: dict[str, Any], method: str) -> dict[str, Any]:
        return max((r for r in own if r["setting"] == setting and r["method"] == method), key=lambda r: r["value"])

    settings = [
        setting for i, setting in enumerate(r["setting"] for r in own) if setting not in [r["setting"] for r in own[:i]]
    ]
    setting = max(settings, key=lambda s: statistics.mean(best(s, m)["value"] for m in meant))
    return setting, {method: best(setting, method)["lr"] for method in METHODS}


def measure(job: tuple[str, str, str, dict[str, Any], dict[str, float], int]) -> list[dict[str, Any]]:
    """Return the rows of one arm and seed: every target, by every method."""
    data, study, arm, setting, rates, seed = job
    s = STUDIES[study]
    start = checkpoint(Path(data), study, arm, setting, seed)
    rows = []
    for target in s.targets:
        for method, lr in rates.items():
            found = fine_tune(Path(data), study, start, target, method, lr, seed, s.examples)
            rows.append({"arm": arm, "target": target, "method": method, "seed": seed, "lr": lr, **found})
            print(f"{study} {arm} {target} {method} seed {seed}: {found['value']:.4f}", flush=True)
    return rows


def run(study: str, data: Path, seeds: tuple[int, ...], workers: int) -> None:
    """Tune, then run every seed; write the rows beside the page as far as they are."""
    WORK.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        if (other := STUDIES[study].choice_of) is None:
            jobs = [(str(data), study, arm, setting) for arm, (_, grid) in ARMS.items() for setting in grid or ({},)]
            tuned = [row for rows in pool.map(tune, jobs) for row in rows]
            choice = {arm: chosen(tuned, arm) for arm in ARMS}
        else:
            tuned, choice = [], json.loads((RESULTS / f"priming-{other}.json").read_text())["choice"]
        todo = [(str(data), study, arm, *choice[arm], seed) for seed in seeds for arm in ARMS]
        rows: list[dict[str, Any]] = []
        for found in pool.map(measure, todo):
            rows += found
            save(study, {"choice": choice, "tuned": tuned, "rows": rows, "machine": machine()})


def save(study: str, content: dict[str, Any]) -> None:
    """Write docs/results/priming-STUDY.json."""
    (RESULTS / f"priming-{study}.json").write_text(json.dumps(content, indent=1) + "\n")


def machine() -> str:
    """Return one line on what it ran on."""
    from machine import environment, environment_line

    return str(environment_line(environment(1)))


def by_seed(rows: Iterable[dict[str, Any]], arm: str, target: str | None, method: str) -> dict[int, float]:
    """Return the values by seed; with target None their means over the targets, for seeds that have them all."""
    found: dict[int, dict[str, float]] = {}
    for row in rows:
        if row["arm"] == arm and row["method"] == method and target in (None, row["target"]):
            found.setdefault(row["seed"], {})[row["target"]] = row["value"]
    most = max((len(values) for values in found.values()), default=0)
    return {seed: statistics.mean(values.values()) for seed, values in found.items() if len(values) == most}


def tables(study: str, content: dict[str, Any]) -> str:
    """Return the study's tables as Markdown."""
    from subnetune.experiment.statistics import holm, paired

    s, rows = STUDIES[study], content["rows"]
    lines = []
    for method in METHODS:
        family = [(arm, base) for base in ("none", "joint") for arm in ARMS if arm not in (base, "none")]
        values = {arm: by_seed(rows, arm, None, method) for arm in ARMS}
        differences = dict(zip(family, holm([paired(values[a], values[b]) for a, b in family]), strict=True))
        seeds = sorted(values["none"])
        lines += [
            f"**{method}**, {s.examples} examples, mean {s.metric} over the seeds {', '.join(map(str, seeds))}:",
            "",
        ]
        head = ["start", *s.targets, "mean", "less none (95 %)", "less joint (95 %)"]
        lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        for arm in ARMS:
            cells = []
            for target in s.targets:
                found = list(by_seed(rows, arm, target, method).values())
                spread = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
                cells.append(f"{statistics.mean(found):.3f}{spread}" if found else "missing")
            cells.append(f"{statistics.mean(values[arm].values()):.3f}" if values[arm] else "missing")
            for base in ("none", "joint"):
                d = differences.get((arm, base))
                if d is None or d.mean is None:
                    cells.append("")
                elif d.low is None:
                    cells.append(f"{d.mean:+.3f} (one seed)")
                else:
                    cells.append(f"{d.mean:+.3f} ({d.low:+.3f}, {d.high:+.3f}), {d.wins} of {d.n}, p {d.p_holm:.2f}")
            lines.append(f"| {arm} | {' | '.join(cells)} |")
        lines.append("")
    if s.choice_of is not None:
        return "\n".join([*lines, f"Settings and rates are those that {s.choice_of} chose.", "", content["machine"]])
    lines += ["Chosen on " + s.tune + f" with seed {TUNE_SEED} (value there):", ""]
    for arm, (setting, rates) in content["choice"].items():
        best = {
            m: max(
                r["value"] for r in content["tuned"] if r["arm"] == arm and r["setting"] == setting and r["method"] == m
            )
            for m in METHODS
        }
        shown = ", ".join(f"{name} {value:g}" for name, value in setting.items()) or "nothing to choose"
        lines.append(
            f"- {arm} ({MEANING[arm]}): {shown}; " + ", ".join(f"{m} at {rates[m]:g} ({best[m]:.3f})" for m in METHODS)
        )
    return "\n".join([*lines, "", content["machine"]])


def write() -> None:
    """Put the tables between the markers of docs/results/priming.md."""
    page = RESULTS / "priming.md"
    whole = page.read_text()
    for study in STUDIES:
        file = RESULTS / f"priming-{study}.json"
        if file.exists():
            begin, end = f"<!-- begin: {study} -->", f"<!-- end: {study} -->"
            before, after = whole.split(begin)[0], whole.split(end)[1]
            whole = f"{before}{begin}\n{tables(study, json.loads(file.read_text()))}\n{end}{after}"
    page.write_text(whole)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "write"))
    parser.add_argument("--study", choices=tuple(STUDIES), default="ner")
    parser.add_argument("--data-dir", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--seeds", type=int, default=3, help="the first so many of the seeds")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if given.what == "write":
        write()
    else:
        run(given.study, given.data_dir, SEEDS[: given.seeds], given.workers)


if __name__ == "__main__":
    main()
