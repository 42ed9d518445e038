"""A command that was called in this process: how it ended."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from subnetune.cli.main import main


class Ended(NamedTuple):
    """How a command ended: its exit code, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line of its output."""
        return self.out.splitlines()[-1]


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> Ended:
    """Call `subnetune` with these arguments."""
    capsys.readouterr()
    code = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return Ended(code, captured.out, captured.err)
