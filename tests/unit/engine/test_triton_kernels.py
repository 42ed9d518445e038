"""The Triton kernels against the plain ones: on a GPU where there is one, and under Triton's interpreter everywhere."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import triton_cases
from subnetune.core.errors import UsageError
from subnetune.engine.kernels import gpu, gpu_jobs
from subnetune.engine.kernels.gpu_products import selected_products
from triton_cases import CASES

HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed (pip install triton)")


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str]:
    """What went wrong in each case under the interpreter, in one process: Triton reads the variable when imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, triton_cases.__file__], capture_output=True, text=True, env=environment, timeout=240
    )
    assert run.returncode == 0, run.stderr
    return dict(json.loads(run.stdout))


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_under_the_interpreter(case: Callable[[str], None], interpreted: dict[str, str]) -> None:
    assert interpreted[case.__name__] == "", interpreted[case.__name__]


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_on_a_gpu(case: Callable[[str], None]) -> None:
    case("cuda")


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_new_keys_rates_and_tensors_compile_nothing_new() -> None:
    kernels, once = gpu.GpuKernels(), 0
    for step in range(1, 20):
        size = 4096 * step
        weights, gradient, first, second = (torch.zeros(size, device="cuda") for _ in range(4))
        rates = triton_cases.Rates(1e-3 / step, 0.9, 0.999, 1e-8, 0.01, step)
        mask = triton_cases.Hashed(16 * step, (1 << 31) + step, step - 10, 0)
        moments = triton_cases.Moments(first, second)
        kernels.adamw_hashed(weights, gradient, moments, rates, mask, triton_cases.TREATMENTS[2])
        compiled = sum(len(cache[0]) for cache in gpu.gpu_code.adamw.device_caches.values())
        once = once or compiled
        assert compiled == once > 0


_TYPES = {
    **dict.fromkeys(("source", "values", "target", "gradient", "inputs", "numbers"), "*fp32"),
    **dict.fromkeys(("size", "count", "columns", "tokens"), "i32"),
    "out": "*bf16", "bits": "*u8", "index": "*i32", "counts": "*i32", "ranks": "*i64", "table": "*i64", "owner": "*i32",
}  # fmt: skip
_ROWS = {"NEAR": True, "ZERO": False, "HOLD": False, "PACKED": False, "SCALED": True, "ALIGNED": True, "ROW": 14}
COMPILED: tuple[tuple[str, dict[str, object]], ...] = (
    ("adamw", {**_ROWS, "KIND": "all", "BLOCK": 1024}),
    ("adamw", {**_ROWS, "KIND": "all", "BLOCK": 1024, "NEAR": False, "SCALED": False, "ALIGNED": False}),
    ("adamw", {**_ROWS, "KIND": "hashed", "BLOCK": 1024, "ZERO": True, "HOLD": True}),
    ("adamw", {**_ROWS, "KIND": "masked", "BLOCK": 1024, "ZERO": True, "HOLD": True}),
    ("adamw", {**_ROWS, "KIND": "index", "BLOCK": 1024}),
    ("adamw", {**_ROWS, "KIND": "index", "BLOCK": 1024, "PACKED": True}),
    ("adamw", {**_ROWS, "KIND": "bits", "BLOCK": 4096}),
    ("adamw", {**_ROWS, "KIND": "bits", "BLOCK": 4096, "PACKED": True}),
    ("count_all_bits", {"BLOCK": 4096, "ROW": 14}),
    ("count_bits", {"BYTES": 512}),
    ("gather_index", {"BLOCK": 1024, "ADD": True, "count": 1}),
    ("gather_bits", {"BYTES": 512, "ADD": True}),
    ("gather_bits", {"BYTES": 512, "ADD": False}),
    ("scatter_index", {"BLOCK": 1024}),
    ("scatter_bits", {"BYTES": 512}),
    ("selected_products", {"ENTRIES": 16, "TOKENS": 128, "out": "*fp32"}),
    ("selected_products", {"ENTRIES": 16, "TOKENS": 128, "gradient": "*bf16", "inputs": "*fp16", "tokens": 1}),
)


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize(("name", "values"), COMPILED, ids=[f"{name}-{i}" for i, (name, _) in enumerate(COMPILED)])
def test_the_code_compiles_without_a_gpu(
    name: str, values: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the interpreter accepts the compiler may not; machine code for two generations needs neither device."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(gpu.gpu_code, name)
    types = {**_TYPES, **{key: value for key, value in values.items() if str(value).startswith("*")}}
    fixed = {key: value for key, value in values.items() if not str(value).startswith("*")}
    signature = {key: "constexpr" if key in fixed else types[key] for key in function.arg_names}
    for generation in (80, 90):
        made = triton.compile(
            ASTSource(function, signature=signature, constexprs=fixed),
            target=GPUTarget("cuda", generation, 32),
            options={"num_warps": gpu_jobs.warps_of(values), "enable_fp_fusion": False},
        )
        assert len(made.asm["cubin"]) > 1000
        assert ".local" not in made.asm["ptx"], "registers do not suffice"
        if fixed.get("ALIGNED") and fixed.get("KIND") in ("all", "hashed", "masked"):
            # Sixteen bytes a thread: what reads weights, gradient and moments at the speed of the memory.
            assert made.asm["ptx"].count("ld.global.v4") >= 8


def test_without_triton_the_modules_can_be_imported_and_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)  # what an import that fails leaves
    spec = importlib.util.spec_from_file_location("gpu_code_without_triton", gpu.gpu_code.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert callable(module.adamw)
    with pytest.raises(UsageError, match="pip install"):
        gpu.GpuKernels()
    with pytest.raises(UsageError, match="pip install"):
        selected_products(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, dtype=torch.int32))
    gpu.refusal.cache_clear()
    assert "not installed" in str(gpu.refusal(torch.device("cpu")))
    gpu.refusal.cache_clear()
