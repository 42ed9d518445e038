"""What our own runs say of each method; written by benchmarks/write_measured.py, not by hand."""

from __future__ import annotations

FOUND: dict[str, str] = {
    "bitfit": (
        "STS-B with 600 examples, MiniLM, lr 0.001: mean 0.604 of 3 seeds, 0.464 to 0.696; full "
        "fine-tuning with these seeds 0.526, lower in 2 (docs/results.md)"
    ),
    "child-tuning-d": (
        "STS-B with 600 examples, MiniLM, lr 0.0004: mean 0.492 of 3 seeds, 0.156 to 0.668; full "
        "fine-tuning with these seeds 0.526, lower in 2 (docs/results.md)"
    ),
    "child-tuning-f": (
        "STS-B with 600 examples, MiniLM, lr 0.0004: mean 0.517 of 3 seeds, 0.390 to 0.581; full "
        "fine-tuning with these seeds 0.526, lower in 1 (docs/results.md)"
    ),
    "dps-dense": (
        "STS-B with 600 examples, MiniLM, lr 0.0002: mean 0.671 of 3 seeds, 0.647 to 0.693; full "
        "fine-tuning with these seeds 0.526, lower in 3 (docs/results.md)"
    ),
    "dps-mix": (
        "STS-B with 600 examples, MiniLM, lr 0.0002: mean 0.729 of 3 seeds, 0.662 to 0.767; full "
        "fine-tuning with these seeds 0.526, lower in 3 (docs/results.md)"
    ),
    "fish": ("STS-B with 600 examples, MiniLM, lr 0.001: one seed, 0.436 (full fine-tuning 0.343) (docs/results.md)"),
    "gradual-unfreezing": (
        "STS-B with 600 examples, MiniLM, lr 0.0002: one seed, 0.748 (full fine-tuning 0.343) (docs/results.md)"
    ),
    "head-only": (
        "STS-B with 600 examples, MiniLM, lr 0.001: one seed, -0.101 (full fine-tuning 0.343) (docs/results.md)"
    ),
    "hype": (
        "STS-B with 600 examples, MiniLM, lr 0.0002: mean 0.725 of 3 seeds, 0.710 to 0.753; full "
        "fine-tuning with these seeds 0.526, lower in 3 (docs/results.md)"
    ),
    "l2-sp": ("STS-B with 600 examples, MiniLM, lr 0.0002: one seed, 0.509 (full fine-tuning 0.343) (docs/results.md)"),
    "lora": ("STS-B with 600 examples, MiniLM, lr 0.001: one seed, 0.061 (full fine-tuning 0.343) (docs/results.md)"),
    "lt-sft": (
        "STS-B with 600 examples, MiniLM, lr 0.0004: mean 0.747 of 3 seeds, 0.719 to 0.772; full "
        "fine-tuning with these seeds 0.526, lower in 3 (docs/results.md)"
    ),
    "mixout": (
        "STS-B with 600 examples, MiniLM, lr 0.0002: mean 0.598 of 3 seeds, 0.547 to 0.624; full "
        "fine-tuning with these seeds 0.526, lower in 2 (docs/results.md)"
    ),
    "noisy-tune": (
        "STS-B with 600 examples, MiniLM, lr 0.0002: one seed, 0.348 (full fine-tuning 0.343) (docs/results.md)"
    ),
    "r-drop": (
        "STS-B with 600 examples, MiniLM, lr 0.0002: mean 0.496 of 3 seeds, 0.335 to 0.651; full "
        "fine-tuning with these seeds 0.526, lower in 2 (docs/results.md)"
    ),
    "r3f": (
        "STS-B with 600 examples, MiniLM, lr 0.0002: mean 0.673 of 3 seeds, 0.631 to 0.707; full "
        "fine-tuning with these seeds 0.526, lower in 3 (docs/results.md)"
    ),
    "recadam": (
        "STS-B with 600 examples, MiniLM, lr 0.0002: mean 0.676 of 3 seeds, 0.632 to 0.721; full "
        "fine-tuning with these seeds 0.526, lower in 3 (docs/results.md)"
    ),
    "top-k-layers": (
        "STS-B with 600 examples, MiniLM, lr 0.0002: one seed, 0.731 (full fine-tuning 0.343) (docs/results.md)"
    ),
    "ulmfit": (
        "STS-B with 600 examples, MiniLM, lr 0.0002: one seed, 0.373 (full fine-tuning 0.343) (docs/results.md)"
    ),
    "weight-decay": (
        "STS-B with 600 examples, MiniLM, lr 0.0002: one seed, 0.358 (full fine-tuning 0.343) (docs/results.md)"
    ),
}

COST: dict[str, str] = {
    "bitfit": (
        "a step takes about 0.6 times that of full fine-tuning; peak memory beyond the model 0.36 times "
        "(MiniLM, one CPU thread, reference engine: docs/performance.md)"
    ),
    "child-tuning-d": (
        "a step takes about 1.0 times that of full fine-tuning, 2.1 s before step 0; peak memory beyond "
        "the model 0.60 times (MiniLM, one CPU thread, reference engine: docs/performance.md)"
    ),
    "child-tuning-f": (
        "a step takes about 1.3 times that of full fine-tuning; peak memory beyond the model 1.01 times "
        "(MiniLM, one CPU thread, reference engine: docs/performance.md)"
    ),
    "dps-dense": (
        "a step takes about 1.3 times that of full fine-tuning; peak memory beyond the model 1.06 times "
        "(MiniLM, one CPU thread, reference engine: docs/performance.md)"
    ),
    "dps-mix": (
        "a step takes about 1.4 times that of full fine-tuning; peak memory beyond the model 1.08 times "
        "(MiniLM, one CPU thread, reference engine: docs/performance.md)"
    ),
    "fish": (
        "a step takes about 1.3 times that of full fine-tuning, 4.0 s before step 0; peak memory beyond "
        "the model 1.08 times (MiniLM, one CPU thread, reference engine: docs/performance.md)"
    ),
    "full": ("what the others are measured by: peak memory beyond the model 669 MiB with MiniLM"),
    "gradual-unfreezing": (
        "a step takes about 1.0 times that of full fine-tuning; peak memory beyond the model 0.82 times "
        "(MiniLM, one CPU thread, reference engine: docs/performance.md)"
    ),
    "head-only": (
        "a step takes about 0.3 times that of full fine-tuning; peak memory beyond the model 0.17 times "
        "(MiniLM, one CPU thread, reference engine: docs/performance.md)"
    ),
    "hype": (
        "a step takes about 0.9 times that of full fine-tuning; peak memory beyond the model 0.92 times "
        "(MiniLM, one CPU thread, reference engine: docs/performance.md)"
    ),
    "l2-sp": (
        "a step takes about 1.2 times that of full fine-tuning; peak memory beyond the model 1.05 times "
        "(MiniLM, one CPU thread, reference engine: docs/performance.md)"
    ),
    "lora": (
        "a step takes about 0.6 times that of full fine-tuning; peak memory beyond the model 0.41 times "
        "(MiniLM, one CPU thread, reference engine: docs/performance.md)"
    ),
    "lt-sft": (
        "a step takes about 1.4 times that of full fine-tuning, 16.0 s before step 0; peak memory beyond "
        "the model 1.12 times (MiniLM, one CPU thread, reference engine: docs/performance.md)"
    ),
    "mixout": (
        "a step takes about 1.1 times that of full fine-tuning; peak memory beyond the model 1.02 times "
        "(MiniLM, one CPU thread, reference engine: docs/performance.md)"
    ),
    "noisy-tune": (
        "a step takes about 1.0 times that of full fine-tuning, 0.6 s before step 0; peak memory beyond "
        "the model 1.12 times (MiniLM, one CPU thread, reference engine: docs/performance.md)"
    ),
    "r-drop": (
        "a step takes about 1.8 times that of full fine-tuning; peak memory beyond the model 1.21 times "
        "(MiniLM, one CPU thread, reference engine: docs/performance.md)"
    ),
    "r3f": (
        "a step takes about 1.8 times that of full fine-tuning; peak memory beyond the model 1.21 times "
        "(MiniLM, one CPU thread, reference engine: docs/performance.md)"
    ),
    "random-rows-columns": (
        "a step takes about 0.9 times that of full fine-tuning; peak memory beyond the model 0.59 times "
        "(MiniLM, one CPU thread, reference engine: docs/performance.md)"
    ),
    "random-subset": (
        "a step takes about 0.9 times that of full fine-tuning, 0.7 s before step 0; peak memory beyond "
        "the model 0.59 times (MiniLM, one CPU thread, reference engine: docs/performance.md)"
    ),
    "recadam": (
        "a step takes about 1.4 times that of full fine-tuning; peak memory beyond the model 1.19 times "
        "(MiniLM, one CPU thread, reference engine: docs/performance.md)"
    ),
    "top-k-layers": (
        "a step takes about 0.6 times that of full fine-tuning; peak memory beyond the model 0.46 times "
        "(MiniLM, one CPU thread, reference engine: docs/performance.md)"
    ),
    "ulmfit": (
        "a step takes about 1.0 times that of full fine-tuning; peak memory beyond the model 0.84 times "
        "(MiniLM, one CPU thread, reference engine: docs/performance.md)"
    ),
    "weight-decay": (
        "a step takes about 1.4 times that of full fine-tuning; peak memory beyond the model 1.19 times "
        "(MiniLM, one CPU thread, reference engine: docs/performance.md)"
    ),
}
