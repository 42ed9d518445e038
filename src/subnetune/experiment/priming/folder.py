"""The folder of a priming: a run directory while it lasts, a plain checkpoint of transformers when it is finished."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from subnetune.core.files import sync
from subnetune.experiment.priming.config import PrimeConfig
from subnetune.experiment.rundir import RunDir
from subnetune.experiment.session import check_same_options

# A resumed priming may say these otherwise: its data are known by their hash.
_FREE = frozenset(("resume", "output", "save_steps", "track", "data_dir"))
_CONFIG = "config.json"  # transformers takes a folder that has it for a model


class PrimedDir(RunDir):
    """The paths inside. Final; `delta`, `mask` and `labels` are not there."""

    @property
    def config(self) -> Path:
        """The options of the priming: `prime.yaml`."""
        return self.path / "prime.yaml"

    @property
    def outcome(self) -> Path:
        """The primed weights."""
        return self.path / "model.safetensors"

    @property
    def card(self) -> Path:
        """What the model was primed for, and how."""
        return self.path / "README.md"

    @property
    def staging(self) -> Path:
        """Where the model is written before it is moved into place."""
        return self.path / ".model.partial"

    def unmake(self) -> None:
        """Let the folder look like no model: an unfinished priming is none."""
        for path in (self.path / _CONFIG, self.outcome, self.card):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.staging, ignore_errors=True)

    def forget(self) -> None:
        """Remove what a priming without a checkpoint left, all but its options."""
        self.unmake()
        super().forget()

    def publish(self, write: Callable[[Path], None]) -> None:
        """Have `write` fill a folder and move its files here, `config.json` last: the model is whole or is none."""
        self.unmake()
        self.staging.mkdir()
        write(self.staging)
        files = sorted(self.staging.iterdir(), key=lambda path: (path.name == _CONFIG, path.name))
        mode = files[-1].stat().st_mode & 0o777  # safetensors leaves 0600, whatever the umask
        for path in files:
            path.chmod(mode)
            sync(path)
        for path in files:
            path.replace(self.path / path.name)
        self.staging.rmdir()
        sync(self.path)

    def tidy(self) -> None:
        """Remove the checkpoints of a finished priming: they are three times the model."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def check_unchanged(run: PrimedDir, config: PrimeConfig) -> None:
    """Raise UsageError that lists every option that differs from `prime.yaml` and matters for the result."""
    check_same_options(run.path, PrimeConfig.load(run.config, {}).values(), config.values(), _FREE)
