"""`subnetune report`: a page about runs, with its Markdown and CSV twins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[Path, typer.Argument(help="A grid's folder, or any folder with run directories in it.")],
    output: Annotated[Path | None, typer.Option(help="Where the files go. Default: into RUNS.")] = None,
    open_: Annotated[bool, typer.Option("--open", help="Show the page in a browser.")] = False,
) -> None:
    """Write report.html, report.md, results.csv and statistics.csv about the runs in a folder.

    The page is one file that needs no network. A grid may still be running: what is missing is listed as missing.
    """
    from subnetune.experiment.report.write import write_report

    files = write_report(runs, output)
    for file in files:
        print(file)
    if open_:
        import webbrowser

        webbrowser.open(files[0].resolve().as_uri())
