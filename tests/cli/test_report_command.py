"""`subnetune report`: what it prints, and what it refuses before anything is written."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from report_case import finished, write_plain_run
from subnetune.cli.main import main


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["report", *map(str, arguments)])
    return int(stop.value.code or 0)


def test_it_prints_the_files_that_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    for seed in (1, 2):
        for method, value in (("full", 0.6), ("bitfit", 0.5)):
            config = {"task": "rte", "method": method, "seed": seed}
            write_plain_run(tmp_path / "runs" / f"{method}-{seed}", config, finished(value + seed / 100))
    assert call(tmp_path / "runs", "--output", tmp_path / "out") == 0
    names = ["report.html", "report.md", "results.csv", "statistics.csv"]
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "out" / name) for name in names]
    assert all((tmp_path / "out" / name).stat().st_size for name in names)
    assert "bitfit" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize("absent", ["jinja2", "matplotlib"])
def test_without_the_extra_it_says_what_to_install(
    absent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_plain_run(tmp_path / "run", {"task": "rte"}, finished(0.6))
    find: Any = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == absent else find(name, *rest))
    assert call(tmp_path) == 2
    said = capsys.readouterr().err
    assert absent in said
    assert "pip install 'subnetune[report]'" in said
    assert not (tmp_path / "report.html").exists()


def test_a_folder_without_runs_and_an_output_that_is_a_file_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert call(tmp_path / "empty") == 2
    assert "holds no runs" in capsys.readouterr().err
    write_plain_run(tmp_path / "run", {"task": "rte"}, finished(0.6))
    (tmp_path / "taken").write_text("")
    assert call(tmp_path / "run", "--output", tmp_path / "taken") == 2
    assert "is a file" in capsys.readouterr().err
