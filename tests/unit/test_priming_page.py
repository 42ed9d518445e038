"""The Python blocks of docs/priming.md run as they stand, on a tiny model; its tables name what there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from prime_case import make_prime_root, options
from subnetune.cli.prime import PRIME
from subnetune.experiment import priming
from subnetune.experiment.priming import PrimeConfig
from tiny import batches, bits, differing, tiny

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "priming.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_piece_primes_before_the_run() -> None:
    model = tiny("bert")
    before = bits(model)
    loader, english, german = (batches(4, seed=seed) for seed in (0, 1, 2))
    names: dict[str, Any] = {"model": model, "loader": loader, "english": english, "german": german}
    exec(BLOCKS[0], names)
    names["tuning"].start()
    moved = differing(before, bits(model))
    assert any("query.weight" in name for name in moved)  # which BitFit itself never moves


def test_the_command_in_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[PrimeConfig] = []
    real = priming.prime

    def small(config: PrimeConfig) -> Any:
        given.append(config)
        return real(PrimeConfig.from_values(options(make_prime_root(tmp_path), steps=1)))

    monkeypatch.setattr(priming, "prime", small)
    exec(BLOCKS[1], {})
    assert given[0].tasks == ("ner:en", "ner:de")
    assert capsys.readouterr().out.split()[0] == str(tmp_path / "primed")


def test_flags_on_the_page_are_flags() -> None:
    known = {f"--{name.strip('_').replace('_', '-')}" for name in PRIME} | {"--config"}
    of_train = {"--task", "--method"}
    assert {*re.findall(r"--[a-z][a-z0-9-]*", PAGE)} - {"--set"} <= known | of_train
