"""`--with` on the command line and `with:` in a file: the pieces act, the run says so, and a resume knows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ended import call
from subnetune.delta import Delta
from tiny_run import make_root


def training(root: Path, *more: object) -> tuple[object, ...]:
    data = (
        "--train-file",
        root / "train.csv",
        "--dev-file",
        root / "dev.csv",
        "--text",
        "sentence",
        "--label",
        "label",
    )
    options = ("--epochs", 1, "--batch-size", 2, "--lr", "5e-3", "--max-length", 16, "--threads", 1)
    return ("train", "--model", root / "model", *data, *options, *more)


def test_pieces_act_and_are_part_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_root(tmp_path)
    plain = training(root, "--method", "full", "--output", root / "plain")
    pulled = training(
        root, "--method", "full", "--with", "r-drop", "--with", "l2-sp:weight=5", "--output", root / "pulled"
    )
    for command in (plain, pulled):
        code, _, err = call(capsys, *command)
        assert code == 0, err
    config = (root / "pulled" / "config.yaml").read_text()
    assert 'with: ["r-drop", "l2-sp:weight=5"]' in config
    deltas = [Delta.load(root / name / "delta.safetensors") for name in ("plain", "pulled")]
    assert "PullToPretrained(weight=5.0), RDrop(" in deltas[1].info.recipe
    files = [(root / name / "delta.safetensors").read_bytes() for name in ("plain", "pulled")]
    assert files[0] != files[1]

    file = tmp_path / "again.yaml"
    file.write_text(config.replace('with: ["r-drop", "l2-sp:weight=5"]', "with:\n  - r-drop\n  - l2-sp: {weight: 5}"))
    code, _, err = call(capsys, "train", "--config", file, "--output", root / "again")
    assert code == 0, err
    assert (root / "again" / "delta.safetensors").read_bytes() == files[1]

    code, _, err = call(capsys, *pulled, "--with", "hype", "--resume")
    assert code == 2
    assert "with: the run has ['r-drop', 'l2-sp:weight=5'], now ['r-drop', 'l2-sp:weight=5', 'hype']" in err


@pytest.mark.parametrize(
    ("pieces", "what"),
    [
        (("l2-sp:wieght=1",), "did you mean 'weight'"),
        (("rdrop",), "did you mean 'r-drop'"),
        (("mixout",), "has no selector"),
        (("l2-sp:weight",), "wanted NAME or NAME:OPTION=VALUE"),
    ],
)
def test_what_cannot_be_added_is_a_usage_error(
    pieces: tuple[str, ...], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [part for piece in pieces for part in ("--with", piece)]
    code, _, err = call(capsys, "train", "--task", "rte", *flags)
    assert code == 2
    assert what in err
    assert "Traceback" not in err
