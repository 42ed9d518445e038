"""The machine that a benchmark runs on: how much memory a piece of work needs at its highest, and a line about it all.

Peaks are what the kernel counts as resident (Linux), or what torch has allocated on a GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

MIB = 2**20

# glibc keeps what was freed unless told otherwise: with these every tensor of a MiB is given back at once, and what the
# kernel counts as resident is what is really held.
MEMORY_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(MIB),
    "MALLOC_TRIM_THRESHOLD_": str(MIB),
    "MALLOC_TOP_PAD_": "0",
}


def status(field: str) -> int:
    """Return a size in bytes from this process's status: VmRSS (now) or VmHWM (the highest)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {field}: memory is measured on Linux only")


def settle(device: str = "cpu") -> int:
    """Give back what nothing holds; return the bytes that are held now."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return int(torch.cuda.memory_allocated())
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc has no such call
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return status("VmRSS")


def peak(run: Callable[[], object], device: str = "cpu") -> int:
    """Return the bytes held at the highest point of `run`."""
    settle(device)
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated())
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts from here
    run()
    return status("VmHWM")


def synchronize(device: str) -> None:
    """Wait for what was launched on a GPU."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def environment(threads: int, device: str = "cpu") -> dict[str, Any]:
    """Return what the figures depend on: processor, cores, threads, versions."""
    found: dict[str, Any] = {"processor": processor(), "cores": os.cpu_count(), "threads": threads}
    if device == "cuda":
        import torch

        found["gpu"] = torch.cuda.get_device_name()
        found["cuda"] = torch.version.cuda
    found["python"] = platform.python_version()
    for package in ("torch", "numpy", "numba", "triton", "transformers", "peft"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def processor() -> str:
    """Return the processor's name, and which vector unit it has."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine()
    lines = [line.partition(":") for line in path.read_text().splitlines()]
    fields = {key.strip(): value.strip() for key, _, value in lines}
    name = fields.get("model name", platform.machine())
    vectors = [unit for unit in ("avx512f", "avx2") if unit in fields.get("flags", "").split()]
    return f"{name} ({vectors[0]})" if vectors else name


def environment_line(found: Mapping[str, Any]) -> str:
    """Return the machine in one line."""
    versions = [f"{key} {value}" for key, value in found.items() if key not in ("processor", "cores", "threads", "gpu")]
    gpu = [found["gpu"]] if "gpu" in found else []
    cores = f"{found['cores']} cores, {found['threads']} threads"
    return ", ".join([*gpu, found["processor"], cores, *versions])
