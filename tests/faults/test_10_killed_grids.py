"""FAULT 10: a grid that was killed anywhere goes on with what is missing, and ends with the table of a whole one."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import minilm_folder, shared_folder
from grid_case import forked, grid_values, own_files, starts, steady, write_grid_file
from subnetune.experiment.grid import workers
from subnetune.experiment.grid.config import GridConfig
from subnetune.experiment.grid.folder import GridFolder
from subnetune.experiment.grid.live import Display
from subnetune.experiment.grid.plan import Plan
from subnetune.experiment.grid.rows import csv_text, rows
from tiny_run import make_root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("grids"))


# -- short: schedulers that are forked from this process, which has imported everything ------------------------------


def serve(path: Path, values: dict[str, Any], workers_: int = 2) -> None:
    """What `compare` does, without its table."""
    grid = GridConfig.from_values(values)
    folder = GridFolder(path)
    folder.write_grid(grid)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "POLL", 0.05)
        workers.Scheduler(Plan(folder, grid), Display(workers_), workers_, forked()).run()


def scheduler(path: Path, values: dict[str, Any]) -> multiprocessing.process.BaseProcess:
    """Start `serve` in a process of its own."""
    process = forked().Process(target=serve, args=(path, values))
    process.start()
    return process


def table(path: Path) -> str:
    folder = GridFolder(path)
    return steady(csv_text(rows(folder)))


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def test_a_killed_scheduler_leaves_no_orphan_and_a_second_one_goes_on(root: Path, tmp_path: Path) -> None:
    values = grid_values(root, seeds=[1])
    serve(tmp_path / "whole", values)
    process = scheduler(tmp_path / "killed", values)
    journal = tmp_path / "killed" / "journal.jsonl"
    wait_until(lambda: journal.is_file() and len(starts(tmp_path / "killed")) == 2)  # both cells are being worked on
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    workers_ = {json.loads(line)["pid"] for line in journal.read_text().splitlines()}
    wait_until(lambda: not any(alive(pid) for pid in workers_), seconds=10)
    pair = [scheduler(tmp_path / "killed", values) for _ in range(2)]
    for one in pair:
        one.join()
        assert one.exitcode == 0
    assert table(tmp_path / "killed") == table(tmp_path / "whole")
    assert set(starts(tmp_path / "killed").values()) <= {1, 2}  # once more at most: two at once share what is missing
    assert set(starts(tmp_path / "whole").values()) == {1}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# -- long: the command line, with everything that it starts ----------------------------------------------------------


def command(*arguments: object) -> subprocess.Popen[str]:
    """Start `subnetune compare` as the leader of a process group."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    line = [sys.executable, "-m", "subnetune.cli", "compare", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True)


def ended(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=900)
    assert process.returncode == code, err
    return out, err


def kill_twice(whole: Path, killed: Path, arguments: tuple[object, ...], how: str, seed: int) -> str:
    """Kill `compare` twice after random numbers of started cells; return what the third one prints."""
    draw = random.Random(seed)
    cells = len(starts(whole))
    moments = sorted(draw.sample(range(1, cells), 2))
    for begun in moments:
        process = command(*arguments, "--output", killed)
        wait_until(lambda begun=begun: (killed / "journal.jsonl").is_file() and len(starts(killed)) >= begun, 300)  # type: ignore[misc]
        time.sleep(draw.uniform(0.0, 1.0))
        if how == "group":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.send_signal(signal.SIGKILL)
        process.communicate()
    out, _ = ended(command(*arguments, "--output", killed))
    assert max(starts(killed).values()) <= 3  # each kill costs the cells that were being worked on
    return out


@pytest.mark.slow
@pytest.mark.parametrize("how", ["group", "scheduler"])
def test_killed_twice_the_table_is_the_same_bytes(how: str, root: Path, tmp_path: Path) -> None:
    file = write_grid_file(tmp_path / "grid.yaml", grid_values(root, methods="full,child-tuning-d,bitfit", seeds=3))
    arguments = ("--config", file, "--workers", 2, "--save-steps", 2, "--train-size", "20,all")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    out, _ = ended(command(*arguments, "--output", whole))
    assert len(starts(whole)) == 18
    assert set(starts(whole).values()) == {1}
    assert kill_twice(whole, killed, arguments, how, seed=len(how)) == out
    for name in ("results.csv", "statistics.csv"):
        assert steady((killed / name).read_text()) == steady((whole / name).read_text())


@pytest.mark.slow
def test_two_schedulers_never_run_a_cell_twice(root: Path, tmp_path: Path) -> None:
    file = write_grid_file(tmp_path / "grid.yaml", grid_values(root, seeds=5))
    arguments = ("--config", file, "--output", tmp_path / "out", "--search-lr", "1e-3,5e-3")
    pair = [command(*arguments, "--workers", 2), command(*arguments)]
    outs = [ended(process)[0] for process in pair]
    assert outs[0] == outs[1] != ""
    assert len(starts(tmp_path / "out")) == 4 + 10
    assert set(starts(tmp_path / "out").values()) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_what_is_running(number: signal.Signals, root: Path, tmp_path: Path) -> None:
    values = grid_values(root, methods="full", seeds=[1])
    values["common"] |= {"epochs": 2000}
    file = write_grid_file(tmp_path / "grid.yaml", values)
    arguments = ("--config", file, "--output", tmp_path / "out")
    process = command(*arguments)
    log = tmp_path / "out" / "cells"
    wait_until(lambda: any(path.stat().st_size for path in log.glob("*/log.jsonl")), 120)
    os.killpg(process.pid, number)  # as a terminal does, to every process
    _, err = ended(process, 128 + number)
    assert f"stopped by {number.name}: 0/1 done" in err
    assert len(list(log.glob("*/checkpoints/*/COMMIT"))) == 1
    assert not list(log.glob("*/result.json"))


@pytest.mark.slow
def test_a_cell_that_is_killed_fails_alone(root: Path, tmp_path: Path) -> None:
    values = grid_values(root, methods={"full": {}, "long": {"method": "full", "epochs": 2000}}, seeds=[1])
    file = write_grid_file(tmp_path / "grid.yaml", values)
    out = tmp_path / "out"
    process = command("--config", file, "--output", out)
    wait_until(lambda: bool(list(out.glob("cells/mine-long-*/log.jsonl"))), 120)
    lines = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    [victim] = [line["pid"] for line in lines if line["cell"].startswith("mine-long-")]
    os.kill(victim, signal.SIGKILL)
    _, err = ended(process)
    assert "1 of 2 cells failed" in err
    assert "mine long seed 1: failed: Crash: the process was ended by SIGKILL" in err
    text = (out / "results.csv").read_text()
    assert ",failed," in text
    assert ",done," in text


@pytest.mark.slow
def test_a_full_disk_is_no_result(root: Path, tmp_path: Path) -> None:
    """Files may have 20 kB: a checkpoint of the model has more."""
    file = write_grid_file(tmp_path / "grid.yaml", grid_values(root, tasks={"mine": own_files(root)}, seeds=[1]))
    code = (
        "import resource, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "from subnetune.cli.main import main\nmain(sys.argv[1:])\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    line = [sys.executable, "-c", code, "compare", "--config", str(file), "--output", str(tmp_path / "out")]
    done = subprocess.run([*line, "--save-steps", "1"], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 3, done.stderr
    assert "error: " in done.stderr
    assert not list((tmp_path / "out").glob("cells/*/result.json"))
    out, _ = ended(command("--output", tmp_path / "out"))
    assert out


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_low_resource_protocol_on_real_data(tmp_path: Path) -> None:
    data = shared_folder("data")
    minilm_folder()
    arguments = (
        *("--preset", "low-resource", "--tasks", "rte,mrpc", "--methods", "full,child-tuning-d,bitfit", "--seeds", 3),
        *(
            "--train-size",
            300,
            "--max-steps",
            4,
            "--max-eval",
            40,
            "--max-length",
            64,
            "--model",
            "minilm",
            "--data-dir",
            data,
        ),
        *("--workers", 2, "--analyse", "none"),
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    out, _ = ended(command(*arguments, "--output", whole))
    assert len(starts(whole)) == 18
    assert kill_twice(whole, killed, arguments, "group", seed=3) == out
    for name in ("results.csv", "statistics.csv"):
        assert steady((killed / name).read_text()) == steady((whole / name).read_text())
