"""What a result depends on besides its configuration: versions, machine, threads, data and base."""

from __future__ import annotations

import platform
import random
from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from subnetune.core.errors import UsageError
from subnetune.experiment.data import stream_seed

_PACKAGES = (
    "subnetune",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "safetensors",
    "numpy",
    "scipy",
    "scikit-learn",
    "numba",
    "triton",
)


def describe_environment(device: torch.device, world: int) -> dict[str, Any]:
    """Return versions, architecture, device kind, threads and number of processes. No host names, no paths."""
    return {
        "versions": {"python": platform.python_version(), **{name: version_of(name) for name in _PACKAGES}},
        "machine": platform.machine(),
        "system": platform.system(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "world": world,
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return one line per entry that differs: `name: before -> now`."""
    lines = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += [f"{key}.{line}" for line in differences(old, new)]
        elif old != new:
            lines.append(f"{key}: {old!r} -> {new!r}")
    return lines


def seed_everything(seed: int, stream: str, rank: int = 0) -> None:
    """Seed Python's, numpy's and torch's generators for one use (`head`: new weights, `dropout`: training)."""
    import numpy as np

    value = stream_seed(seed, stream, rank)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)  # every device too


def random_state() -> dict[str, Any]:
    """Return the states of all global generators as tensors and plain values."""
    import numpy as np

    state: Any = np.random.get_state(legacy=True)
    kind, keys, position, has_gauss, gauss = state
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `random_state` returned."""
    import numpy as np

    version_, internal, gauss_next = state["python"]
    random.setstate((version_, tuple(internal), gauss_next))
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def autocast(device: torch.device, enabled: bool) -> AbstractContextManager[Any]:
    """Return the context of the training forward: bfloat16 where asked for, else full precision.

    Raises UsageError where the device computes bfloat16 only by emulation, which is slow and gains nothing.
    """
    if enabled and not has_bf16(device):
        raise UsageError(
            f"--bf16 needs hardware with bfloat16 and this {device.type} has none; leave it out, or give --no-bf16"
        )
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def has_bf16(device: torch.device) -> bool:
    """Return whether the device has bfloat16 instructions."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    flags = Path("/proc/cpuinfo")
    words = set(flags.read_text(encoding="utf-8", errors="replace").split()) if flags.is_file() else set()
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})  # the last one is ARM's


def set_threads(threads: int | None) -> None:
    """Set torch's CPU threads (None: leave them), before anything is computed."""
    if threads is not None:
        torch.set_num_threads(threads)


def version_of(name: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
