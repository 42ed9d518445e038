"""The demo runs four methods into four directories and prints a row for each (the real run is `make demo`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from subnetune.cli.main import main
from subnetune.experiment import loop
from subnetune.experiment.config import RunConfig, resolve
from subnetune.experiment.report import write
from subnetune.experiment.result import RunResult


def test_the_demo_prints_a_row_per_method(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    runs: list[RunConfig] = []

    def train(config: RunConfig) -> RunResult:
        runs.append(resolve(config))
        evaluation = {"dev": {"accuracy": 0.9875}, "ood": {"accuracy": 0.7625}}
        assert config.output is not None
        return RunResult.of(
            evaluation, path=config.output, trained=1234567, total=22713986, seconds=12.34, delta_bytes=7654321
        )

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(write, "need", lambda *_: None)
    monkeypatch.setattr(write, "write_report", lambda path: [path / "report.html"])
    (tmp_path / "bitfit").mkdir()
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--output", str(tmp_path), "--seed", "7"])
    assert stop.value.code in (0, None)
    methods = ["full", "child-tuning-f", "child-tuning-d", "bitfit"]
    assert [run.method for run in runs] == methods
    assert [run.output for run in runs] == [tmp_path / method for method in methods]
    assert [run.resume for run in runs] == [False, False, False, True]
    assert {run.seed for run in runs} == {7}
    printed = capsys.readouterr().out
    assert f"report: {tmp_path / 'report.html'}" in printed.replace("\n", "")
    for method in methods:
        row = next(line for line in printed.splitlines() if f" {method} " in line)
        for value in ("0.9875", "0.7625", "1,234,567", "5.44 %", "7,654,321", "12.3"):
            assert value in row
