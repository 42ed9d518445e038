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
from subnetune.engine.kernels import gpu
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
def test_new_keys_and_rates_compile_nothing_new() -> None:
    kernels, size = gpu.GpuKernels(), 4096
    tensors = [torch.zeros(size, device="cuda") for _ in range(4)]
    for step in range(1, 20):
        kernels.adamw_hashed(
            tensors[0],
            tensors[1],
            triton_cases.Moments(tensors[2], tensors[3]),
            triton_cases.Rates(1e-3 / step, 0.9, 0.999, 1e-8, 0.01, step),
            triton_cases.Hashed(16 * step, (1 << 31) + step, step - 10, 0),
            triton_cases.TREATMENTS[2],
        )
        compiled = sum(len(cache[0]) for cache in gpu.gpu_code.adamw_hashed.device_caches.values())
        if step == 1:
            once = compiled
    assert compiled == once


_FLOATS = ("factor", "decay", "lerp", "beta2", "rest2", "root", "eps", "rate")
_TYPES = {
    **dict.fromkeys(
        ("weights", "gradient", "first", "second", "scale", "source", "values", "target", "inputs"), "*fp32"
    ),
    "out": "*bf16",
    "bits": "*u8",
    "index": "*i32",
    "ranks": "*i64",
    **dict.fromkeys(("size", "count", "offset", "second_key", "limit", "columns", "tokens"), "i32"),
    **dict.fromkeys(_FLOATS, "fp32"),
}
_WHOLE = {"NEAR": True, "BLOCK": 1024}
_MASK = {"ZERO": True, "HOLD": True}
COMPILED = (
    ("adamw_all", {**_WHOLE, "scale": None}),
    ("adamw_all", {**_WHOLE, "NEAR": False, "size": 1}),
    ("adamw_hashed", {**_WHOLE, **_MASK}),
    ("adamw_masked", {"NEAR": True, "BYTES": 128, **_MASK}),
    ("adamw_index", {**_WHOLE, "PACKED": True, "count": 1}),
    ("adamw_index", {**_WHOLE, "PACKED": False}),
    ("adamw_bits", {"NEAR": True, "BYTES": 512, "PACKED": True}),
    ("adamw_bits", {"NEAR": True, "BYTES": 512, "PACKED": False}),
    ("gather_index", {"BLOCK": 1024, "ADD": True}),
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
    types = {**_TYPES, **{key: value for key, value in values.items() if isinstance(value, str)}}
    fixed = {key: value for key, value in values.items() if not isinstance(value, str)}
    signature = {key: "constexpr" if key in fixed else types[key] for key in function.arg_names}
    for generation in (80, 90):
        made = triton.compile(
            ASTSource(function, signature=signature, constexprs=fixed),
            target=GPUTarget("cuda", generation, 32),
            options={"num_warps": 4, "enable_fp_fusion": False},
        )
        assert len(made.asm["cubin"]) > 1000
        assert ".local" not in made.asm["ptx"], "registers do not suffice"


def test_without_triton_the_modules_can_be_imported_and_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)  # what an import that fails leaves
    spec = importlib.util.spec_from_file_location("gpu_code_without_triton", gpu.gpu_code.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert callable(module.adamw_all)
    with pytest.raises(UsageError, match="pip install"):
        gpu.GpuKernels()
    with pytest.raises(UsageError, match="pip install"):
        selected_products(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, dtype=torch.int32))
    gpu.refusal.cache_clear()
    assert "not installed" in str(gpu.refusal(torch.device("cpu")))
    gpu.refusal.cache_clear()
