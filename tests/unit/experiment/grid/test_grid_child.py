"""One cell in this process: what its result holds, what is a failure of the cell, and what is not."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grid_case import DIVERGING, grid_values, own_files
from subnetune.core.errors import CheckpointError
from subnetune.experiment.config import load_config
from subnetune.experiment.grid import child
from subnetune.experiment.grid.cells import Cell, groups, read_cell, run_cells
from subnetune.experiment.grid.child import forget, of_the_machine, run_cell
from subnetune.experiment.grid.config import GridConfig
from subnetune.experiment.grid.folder import CellResult, GridFolder
from subnetune.experiment.grid.rows import SETTINGS
from subnetune.experiment.loop import train
from subnetune.experiment.rundir import RunDir
from tiny_run import make_root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("cell"))


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Callable[..., tuple[GridFolder, Cell, CellResult]]:
    def call(**changed: Any) -> tuple[GridFolder, Cell, CellResult]:
        grid = GridConfig.from_values(grid_values(root, **changed))
        folder = GridFolder(tmp_path / "grid")
        folder.write_grid(grid)
        cell = next(run_cells(grid, groups(grid)[-1], {}))
        return folder, cell, run_cell(folder, grid, cell, threads=2)

    return call


def test_a_finished_cell_says_what_it_came_to(run: Callable[..., Any]) -> None:
    folder, cell, result = run(artefacts="none")
    assert folder.result(cell) == result
    assert (result.state, result.metric, result.error) == ("done", "accuracy", None)
    assert 0.0 <= result.value <= 1.0
    assert result.evaluation["dev"]["accuracy"] == result.value
    assert set(result.majority) == {"dev"}
    assert set(result.settings) == set(SETTINGS)
    expected = {"lr": 5e-3, "epochs": 1, "steps": 7, "train_examples": 26, "batch_size": 4, "warmup": 0.1, "threads": 1}
    assert {name: result.settings[name] for name in expected} == expected
    assert (result.settings["keep"], result.settings["dropout"], result.settings["precision"]) == (0.3, 0.1, "fp32")
    assert 0 < result.trained < result.total
    assert result.delta_bytes > 0
    assert result.seconds > 0
    assert read_cell(folder.cell(cell) / "cell.json") == cell
    left = {path.name for path in folder.cell(cell).iterdir()}
    assert {"config.yaml", "metrics.json", "log.jsonl", "mask.safetensors", "result.json", "environment.json"} < left
    assert not left & {"delta.safetensors", "checkpoints", "tokenizer"}


def test_a_cell_is_the_run_that_train_makes_of_its_config(run: Callable[..., Any], tmp_path: Path) -> None:
    folder, cell, result = run(analyse="all")
    config = load_config(folder.run(cell).config, {"output": tmp_path / "alone", "resume": False})
    alone = train(config)
    assert (alone.value, alone.evaluation) == (result.value, result.evaluation)
    assert RunDir(alone.path).delta.read_bytes() == folder.run(cell).delta.read_bytes()


def test_a_loss_that_is_no_number_is_a_failed_cell(run: Callable[..., Any]) -> None:
    folder, cell, result = run(methods={"full": DIVERGING})
    assert result.state == "failed"
    assert result.error["type"] == "NumericError"
    assert "in step" in result.error["message"]
    assert folder.result(cell) == result


def test_a_broken_file_is_a_failed_cell(run: Callable[..., Any], root: Path) -> None:
    (root / "broken.csv").write_text("sentence,label\nthe cat,plain\nthe dog,unheard of\n")
    _, _, result = run(tasks={"broken": own_files(root, dev="broken.csv")})
    assert (result.state, result.error["type"]) == ("failed", "DataError")
    assert "'unheard of'" in result.error["message"]


def test_a_cell_that_was_begun_keeps_its_threads_and_finds_its_files_anew(root: Path, tmp_path: Path) -> None:
    values = grid_values(root, common={"lr": 5e-3, "epochs": 1, "batch_size": 4, "max_length": 16, "max_steps": 2})
    grid = GridConfig.from_values(values)
    folder = GridFolder(tmp_path / "grid")
    folder.write_grid(grid)
    cell = next(run_cells(grid, groups(grid)[0], {}))
    config = folder.run(cell).config
    config.parent.mkdir(parents=True)
    text = cell.config(threads=1, eval_batch_size=3, output="elsewhere", resume=True).to_yaml()
    config.write_text(text.replace(str(root / "model"), "/moved/model"))
    result = run_cell(folder, grid, cell, threads=2)
    assert result.state == "done", result.error
    assert result.settings["threads"] == 1
    assert "eval_batch_size: 3" in config.read_text()
    assert str(root / "model") in config.read_text()


def test_memory_is_that_of_the_process_that_trained(run: Callable[..., Any]) -> None:
    folder, cell, _ = run(methods=["full"])
    (folder.cell(cell) / "memory.json").write_text(json.dumps({"peak_memory_bytes": 2**50}))
    (folder.cell(cell) / "result.json").unlink()  # killed between the two
    again = run_cell(folder, folder.grid(), cell, threads=1)
    assert again.state == "done"
    assert again.peak_memory_bytes == 2**50


def test_memory_that_a_stopped_process_held_is_not_forgotten(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = GridConfig.from_values(grid_values(root))
    folder = GridFolder(tmp_path / "grid")
    folder.write_grid(grid)
    cell = next(run_cells(grid, groups(grid)[0], {}))

    def stop(_: Any) -> None:
        raise SystemExit(143)

    with monkeypatch.context() as patch:
        patch.setattr("subnetune.experiment.loop.train", stop)
        patch.setattr(child.PeakMemory, "bytes", lambda _: 2**50)
        with pytest.raises(SystemExit):
            run_cell(folder, grid, cell, threads=1)
    assert run_cell(folder, grid, cell, threads=1).peak_memory_bytes == 2**50


@pytest.mark.parametrize("measured", [0, 7, None], ids=["nothing more", "more", "not told"])
def test_memory_of_a_killed_process_is_not_known(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, measured: int | None
) -> None:
    monkeypatch.setattr(child.PeakMemory, "bytes", lambda _: measured)
    folder, cell, result = run(methods=["full"])
    assert result.peak_memory_bytes == measured  # 0 where memory that was freed before is enough
    (folder.cell(cell) / "memory.json").unlink()  # killed after its training, or between two of its checkpoints
    for _ in range(2):
        (folder.cell(cell) / "result.json").unlink()
        assert run_cell(folder, folder.grid(), cell, threads=1).peak_memory_bytes is None


def test_memory_is_not_that_of_a_process_before_the_one_that_was_killed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = GridConfig.from_values(grid_values(root, methods=["full"]))
    folder = GridFolder(tmp_path / "grid")
    folder.write_grid(grid)
    cell = next(run_cells(grid, groups(grid)[0], {}))
    memory, seen = folder.cell(cell) / "memory.json", []

    def stop(_: Any) -> None:
        raise SystemExit(143)

    def trained(config: Any) -> Any:
        seen.append(memory.is_file())  # what a kill from here on leaves
        return train(config)

    monkeypatch.setattr(child.PeakMemory, "bytes", lambda _: 5)
    monkeypatch.setattr("subnetune.experiment.loop.train", stop)  # while it is loading
    with pytest.raises(SystemExit):
        run_cell(folder, grid, cell, threads=1)
    assert json.loads(memory.read_text()) == {"peak_memory_bytes": 5}
    monkeypatch.setattr("subnetune.experiment.loop.train", trained)
    assert run_cell(folder, grid, cell, threads=1).peak_memory_bytes == 5
    assert seen == [False]


def test_memory_of_a_killed_selection_is_not_known(root: Path, tmp_path: Path) -> None:
    grid = GridConfig.from_values(grid_values(root, methods=["full"]))
    folder = GridFolder(tmp_path / "grid")
    folder.write_grid(grid)
    cell = next(run_cells(grid, groups(grid)[0], {}))
    scoring = folder.run(cell).scoring
    scoring.mkdir(parents=True)
    (scoring / "scores.pt").touch()
    with child._peak_memory(folder.run(cell)) as peak:
        pass
    assert peak == [None]


def test_a_run_that_was_trained_before_levels_were_written_down_has_one(run: Callable[..., Any]) -> None:
    folder, cell, result = run(methods=["full"])
    metrics = folder.run(cell).metrics
    values = json.loads(metrics.read_text())
    assert values.pop("majority") == result.majority
    metrics.write_text(json.dumps(values))
    (folder.cell(cell) / "result.json").unlink()
    assert run_cell(folder, folder.grid(), cell, threads=1).majority == result.majority


def wrapped(cause: BaseException) -> CheckpointError:
    error = CheckpointError("the checkpoint could not be written")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (OSError(errno.ENOENT, "no such file"), True),  # of no library that knows what it means
        (wrapped(OSError(errno.ENOSPC, "No space left on device")), True),
        (wrapped(RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")), True),
        (wrapped(OSError(errno.ENOENT, "no such file")), False),
        (ValueError("no"), False),
        (RuntimeError("CUDA out of memory"), False),
    ],
    ids=["os", "full", "torch", "missing", "value", "device memory"],
)
def test_what_the_machine_refuses_is_no_result(
    error: Exception, refused: bool, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (of_the_machine(error) is not None) is refused

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(child, "_measured", fail)
    grid = GridConfig.from_values(grid_values(root))
    folder = GridFolder(tmp_path / "grid")
    folder.write_grid(grid)
    cell = next(run_cells(grid, groups(grid)[0], {}))
    if refused:
        with pytest.raises(OSError):
            run_cell(folder, grid, cell, threads=1)
        assert folder.result(cell) is None
    else:
        result = run_cell(folder, grid, cell, threads=1)
        assert result.error == {"type": type(error).__name__, "message": str(error)}
        assert folder.result(cell) == result


def test_an_analysis_that_fails_leaves_the_scores(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr("subnetune.experiment.analysis.analyse_run", fail)
    folder, cell, result = run(analyse="all")
    assert (result.state, result.skipped) == ("done", {"analysis": "RuntimeError: CUDA out of memory"})
    assert result.value is not None
    assert folder.result(cell) == result
    assert "Traceback" in capfd.readouterr().err


def test_a_cell_that_was_begun_under_other_defaults_does_not_go_on(root: Path, tmp_path: Path) -> None:
    """What a card fills in is no part of the name: a release may have changed it since."""
    grid = GridConfig.from_values(grid_values(root))
    folder = GridFolder(tmp_path / "grid")
    folder.write_grid(grid)
    cell = next(run_cells(grid, groups(grid)[0], {}))
    config = folder.run(cell).config
    config.parent.mkdir(parents=True)
    text = cell.config(threads=1, output="elsewhere", resume=True, warmup=0.5).to_yaml()
    config.write_text(text)
    result = run_cell(folder, grid, cell, threads=2)
    assert (result.state, result.error and result.error["type"]) == ("failed", "UsageError")
    assert config.read_text() == text
    forget(folder, cell)  # as `--retry-failed` does
    assert run_cell(folder, grid, cell, threads=2).state == "done"
