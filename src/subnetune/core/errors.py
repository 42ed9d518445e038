"""The typed errors of the library: each knows the exit code that the command line ends with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SubnetuneError(Exception):
    """Root of every error that subnetune raises on purpose. `exit_code` is the command line's exit status."""

    exit_code = 1


class UsageError(SubnetuneError, ValueError):
    """The caller asked for something that cannot be meant: a bad value, name, pattern or combination."""

    exit_code = 2


class LifeCycleError(UsageError, RuntimeError):
    """A call came at a moment when it cannot be served (two tunings on one model, a step inside a step, ...)."""


class DataError(SubnetuneError, ValueError):
    """A data set is missing, malformed, or does not fit the task."""

    exit_code = 3


class MissingDataError(DataError):
    """The files of a data set are not here: what is there is not at fault, and a comparison may go on without it."""


class CheckpointError(SubnetuneError, ValueError):
    """A checkpoint, mask or delta file is missing, damaged, or belongs to something else."""

    exit_code = 3


class NumericError(SubnetuneError, ArithmeticError):
    """A loss, gradient or score is not a finite number."""

    exit_code = 4


def nearest(name: str, names: Iterable[str], count: int = 3) -> str:
    """Return `", did you mean 'a' or 'b'?"` for the names closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(names), n=count, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
