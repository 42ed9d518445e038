"""A run small enough to be killed many times: a random two-layer BERT, its tokenizer, and 26 labelled sentences."""

from __future__ import annotations

import csv
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forks import context

WORDS = "the a cat dog bird sees hears likes small big red blue not never often".split()


def make_model(folder: Path, seed: int = 0) -> Path:
    """Write a random BERT encoder without a head, and a word tokenizer, into `folder`."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=32).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def make_examples(file: Path, count: int, offset: int = 0) -> Path:
    """Write `count` sentences of different lengths; the label says whether a negation is in them."""
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["sentence", "label"])
        for i in range(offset, offset + count):
            words = [WORDS[(i * 7 + k * k) % (len(WORDS) - 3)] for k in range(3 + i % 5)]
            words.insert(i % 3, WORDS[-3:][i % 3] if i % 2 else "the")
            writer.writerow([" ".join(words), "negated" if {"not", "never"} & {*words} else "plain"])
    return file


def options(root: Path, **changed: Any) -> dict[str, Any]:
    """Return the options of a 14-step run (7 steps an epoch, the last one partial) on the files in `root`."""
    values: dict[str, Any] = {
        "model": str(root / "model"),
        "train_file": str(root / "train.csv"),
        "dev_file": str(root / "dev.csv"),
        "text": ["sentence"],
        "label": "label",
        "method": "child-tuning-d",
        "keep": 0.3,
        "lr": 5e-3,
        "epochs": 2,
        "batch_size": 2,
        "accumulate": 2,
        "max_length": 16,
        "threads": 1,
        "output": str(root / "run"),
    }
    return values | changed


def make_root(root: Path) -> Path:
    """Write model and examples into `root` and return it."""
    make_model(root / "model")
    make_examples(root / "train.csv", 26)
    make_examples(root / "dev.csv", 11, offset=100)
    return root


def run(**values: Any) -> Any:
    """Train in this process and return the result."""
    from subnetune.experiment.config import RunConfig
    from subnetune.experiment.loop import train

    return train(RunConfig.from_values(values))


class Child:
    """A forked process, with what tests use of a Popen."""

    def __init__(self, target: Callable[..., None], *args: Any) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._said = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = context().Process(target=_say, args=(self._said, environment, target, *args), daemon=True)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        assert self.pid is not None
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float = 600.0) -> tuple[str, str]:
        """Wait for the end and return what was said on stdout and stderr."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            raise AssertionError(f"still running after {timeout} seconds")
        out, err = (path.read_text() if path.is_file() else "" for path in self._said)
        return out, err


def _say(said: list[Path], environment: dict[str, str], target: Callable[..., None], *args: Any) -> None:
    for number, path in enumerate(said, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    target(*args)


def _train(values: dict[str, Any], before: str) -> None:
    exec(before, {"__name__": "before"})
    from subnetune.core.errors import SubnetuneError

    try:
        result = run(**values)
        print(result.metric, result.value)
    except SubnetuneError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def child(values: dict[str, Any], before: str = "") -> Child:
    """Start the run in a process of its own; `before` is Python code that runs there first."""
    return Child(_train, values, before)


def wait_for(condition: Callable[[], bool], process: Child, seconds: float = 60.0) -> None:
    """Wait until `condition` holds while `process` runs."""
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"ended early with {process.returncode}: {process.communicate()[1]}")
        if time.monotonic() > end:
            process.kill()
            raise AssertionError("waited too long")
        time.sleep(0.005)
