"""A wrong command line ends in one sentence and an exit code, and help answers at once."""

from __future__ import annotations

import resource
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from subnetune.cli import main as cli
from subnetune.cli.options import settings
from subnetune.core.errors import CheckpointError, NumericError, UsageError
from subnetune.methods import METHODS

MAIN = (sys.executable, "-m", "subnetune.cli")


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    return int(stop.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("trian",), "Did you mean 'train'"),
        (("train", "--keeep", "1"), "--keep"),
        (("train", "--task", "rte", "--keep", "1.5"), "keep: got 1.5, allowed is a number in (0, 1]"),
        (("train", "--task", "rte", "--keep", "true"), "keep: got True"),
        (("train", "--task", "rte", "--keep", "nan"), "keep: got 'nan'"),
        (("train", "--task", "rte", "--lr", "1e-5x"), "lr: got '1e-5x'"),
        (("train", "--task", "rte", "--seed", "-1"), "seed: got -1"),
        (("train", "--task", "rte", "--batch-size", "0"), "batch_size: got 0"),
        (("train", "--task", "rte", "--method", "child-tuning"), "did you mean 'child-tuning-"),
        (("train", "--task", "rtee"), "did you mean 'rte'"),
        (("train", "--task", "rte", "--with", "hold"), "unknown piece 'hold'"),
        (("train", "--task", "rte", "--set", "kep"), "--set: got 'kep'"),
        (("train",), "no task"),
        (("methods", "bitfti"), "did you mean 'bitfit'"),
        (("evaluate", "--task", "demo"), "--delta"),
    ],
)
def test_usage_errors_end_with_2_and_no_traceback(
    arguments: tuple[str, ...],
    what: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 2
    printed = capsys.readouterr()
    assert what in " ".join(printed.err.replace("│", " ").split())
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert not list(tmp_path.iterdir())


def test_a_configuration_file_is_told_by_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("task: rte\nlr: no\n")
    assert call("train", "--config", str(file)) == 2
    assert capsys.readouterr().err == (
        f"error: {file}, line 2: lr: got 'no', allowed is a number above 0 and at most 10\n"
    )
    assert call("train", "--config", str(tmp_path / "none.yaml")) == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("u"), 2),
        (CheckpointError("c"), 3),
        (NumericError("n"), 4),
        (OSError(28, "No space left on device"), 3),
    ],
)
def test_each_kind_of_error_has_its_exit_code(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fails)
    assert call("train") == code
    assert capsys.readouterr().err == f"error: {error}\n"
    with pytest.raises(type(error)):
        cli.main(["train", "--debug"])


def test_our_warnings_are_a_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from subnetune.tasks.types import DataWarning

    def warns(**_: object) -> None:
        warnings.warn("2 examples are in train too", DataWarning, stacklevel=1)
        warnings.warn("something of a library", UserWarning, stacklevel=1)

    monkeypatch.setattr(cli, "app", warns)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        cli.main([])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "warning: 2 examples are in train too"
    assert "UserWarning: something of a library" in lines[1]


def test_settings_are_read_as_a_file_would_read_them() -> None:
    assert settings(["a=1e-5", "b=no", "c=[x, y]", "d=true", "e=", "f=x=y"]) == {
        "a": 1e-5,
        "b": "no",
        "c": ["x", "y"],
        "d": True,
        "e": None,
        "f": "x=y",
    }
    with pytest.raises(UsageError, match="'a' is set twice"):
        settings(["a=1", "a=2"])


def test_methods_are_listed_one_a_line_and_shown_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("methods") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(METHODS)
    for name, method in METHODS.items():
        assert call("methods", name) == 0
        shown = capsys.readouterr().out
        assert shown.startswith(f"{name}: {method.card.title}")
        assert all(option in shown for option in method.options)
        assert max(map(len, shown.splitlines())) <= 100
        if name == "fish":
            assert "options     keep=None, samples=1024, labels='true'" in shown


def test_a_method_that_was_left_out_is_told_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("methods", "bi-drop") == 2
    assert "'bi-drop' is left out: its published definition was not found" in capsys.readouterr().err


def test_help_answers_soon_and_loads_no_torch() -> None:
    # Half a second; on a slow processor three times what the libraries of the command line take by themselves.
    libraries = [sys.executable, "-c", "import pydantic, yaml, typer.main, typer.rich_utils"]
    seconds: dict[str, list[float]] = {"libraries": [], "help": []}
    for name, command in [("libraries", libraries), ("help", [*MAIN, "--help"])] * 3:
        # The processor's seconds: on an idle machine those of the clock, and the same on a busy one.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert all(name in shown.stdout for name in ("train", "evaluate", "predict", "score", "methods", "delta", "demo"))
    assert 0 < min(seconds["help"]) < max(0.5, 3 * min(seconds["libraries"]))
    code = "import sys, subnetune.cli.main; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert loaded.stdout.strip() == "[]"


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        installed = version("subnetune")
    except PackageNotFoundError:
        pytest.skip("subnetune runs from its source folder, without being installed")
    shown = subprocess.run([*MAIN, "--version"], capture_output=True, text=True, check=True, timeout=60)
    assert shown.stdout == f"subnetune {installed}\n"
