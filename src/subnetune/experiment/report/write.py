"""Write a report: `report.html`, `report.md`, `results.csv` and `statistics.csv`, each whole or not at all."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from subnetune.core.errors import UsageError
from subnetune.core.files import atomic_write
from subnetune.experiment.comparison import statistics_csv
from subnetune.experiment.grid.rows import csv_text
from subnetune.experiment.report.html import html_text
from subnetune.experiment.report.markdown import markdown_text
from subnetune.experiment.report.page import make_page
from subnetune.experiment.report.source import read_runs


def write_report(path: Path, output: Path | None = None) -> list[Path]:
    """Write the report about the runs in `path` into `output` (default: there), and return its files, the page first.

    Reads only, so a grid may go on meanwhile. Raises UsageError where there are no runs, a package of the extra
    `report` is not installed, or `output` cannot be written; CheckpointError for damaged results.
    """
    need("jinja2", "matplotlib")
    folder = output or path
    if folder.exists() and not folder.is_dir() and output is not None:
        raise UsageError(f"the output {folder} is a file; a report needs a folder")
    runs = read_runs(path)
    texts = {"results.csv": csv_text(runs.rows), "statistics.csv": statistics_csv(runs.comparison)}
    page = make_page(runs, texts)
    texts = {"report.html": html_text(page), "report.md": markdown_text(page, runs.comparison), **texts}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        atomic_write(folder / name, text.encode())
    return [folder / name for name in texts]


def need(*packages: str) -> None:
    """Raise UsageError, which says what to install, unless the packages are there."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"a report needs {' and '.join(missing)}: pip install 'subnetune[report]'")
