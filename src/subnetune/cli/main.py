"""The command `subnetune`: its commands, and the one place where an error becomes a message and an exit code."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, TextIO

import typer

from subnetune.cli.compare import compare
from subnetune.cli.delta import delta
from subnetune.cli.demo import demo
from subnetune.cli.evaluate import evaluate
from subnetune.cli.methods import methods
from subnetune.cli.predict import predict
from subnetune.cli.prime import prime
from subnetune.cli.report import report
from subnetune.cli.score import score
from subnetune.cli.train import train
from subnetune.core.errors import DataError, SubnetuneError

app = typer.Typer(
    name="subnetune",
    help="Fine-tune a chosen part of a pretrained model's own weights, and ship what changed as a small exact delta.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Exit codes: 0 done, 2 usage, 3 data or checkpoint, 4 numeric.",
)
for _command in (train, evaluate, predict, prime, compare, score, report, methods, demo):
    app.command()(_command)
app.add_typer(delta, name="delta")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"subnetune {version('subnetune')}")
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; anywhere on the line.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit.")
    ] = False,
) -> None:
    """Options of every command. `main` takes `--debug` out of the arguments; here it is documented."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code: 0, 2 usage, 3 data or checkpoint, 4 numeric, 1 anything else."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    warnings.showwarning = _show_warning
    if not debug:
        # A new head is what fine-tuning starts from; transformers' warning about it, and its
        # progress bars for reading and writing files, would hide our own messages.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        app(args=[argument for argument in given if argument != "--debug"], prog_name="subnetune")
    except (SubnetuneError, OSError) as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        # Files that cannot be read or written (a full disk, a folder without permission) count as data.
        sys.exit(error.exit_code if isinstance(error, SubnetuneError) else DataError.exit_code)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print our own warnings as a sentence, without the place in the code that they come from."""
    ours = category.__module__.startswith("subnetune")
    text = f"warning: {message}\n" if ours else warnings.formatwarning(message, category, filename, lineno, line)
    (file or sys.stderr).write(text)


if __name__ == "__main__":
    main()
