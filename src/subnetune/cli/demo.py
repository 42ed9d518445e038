"""`subnetune demo`: the main job on one page: four methods on the embedded task, their scores and their deltas."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from subnetune.core.errors import UsageError

if TYPE_CHECKING:
    from subnetune.experiment.result import RunResult

# Peak learning rate and epochs for the small packaged encoder; the cards' defaults are for models ten times its size.
# A child of fewer entries needs more steps: with two epochs Child-Tuning-D and BitFit stay at chance.
METHODS = {"full": (1e-4, 2), "child-tuning-f": (3e-4, 2), "child-tuning-d": (3e-4, 3), "bitfit": (1e-3, 4)}
SETTINGS = {"task": "demo", "batch_size": 16, "max_length": 48, "eval_at": "end"}


def demo(
    output: Annotated[Path, typer.Option(help="Folder of the run directories, one per method.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Head, order, dropout and masks.")] = 42,
) -> None:
    """Fine-tune the packaged encoder with four methods on the embedded task, print what came of it, write a report.

    A run that is finished already is not run again; remove its folder to start over.
    """
    from subnetune.experiment.config import RunConfig
    from subnetune.experiment.loop import train

    results: dict[str, RunResult] = {}
    for method, (lr, epochs) in METHODS.items():
        path = output / method
        run = {"method": method, "lr": lr, "epochs": epochs, "seed": seed, "output": path, "resume": path.exists()}
        results[method] = train(RunConfig.from_values({**SETTINGS, **run}))
    _print(results)
    _report(output)
    print(f"run directories: {output}/<method>; for instance: subnetune delta inspect {output}/bitfit")


def _report(output: Path) -> None:
    """Write the page about the runs, where the extra that draws it is installed."""
    from subnetune.experiment.report.write import need, write_report

    try:
        need("jinja2", "matplotlib")
    except UsageError as error:
        print(f"no report.html: {error}")
        return
    print(f"report: {write_report(output)[0]}")


def _print(results: dict[str, RunResult]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="The demo task: what does a mixed review come to? (accuracy)")
    table.add_column("method")
    for heading in ("in domain", "out of domain", "trained entries", "of all", "delta bytes", "seconds"):
        table.add_column(heading, justify="right")
    for method, result in results.items():
        scores = [f"{metrics[result.metric]:.4f}" for metrics in result.evaluation.values()]
        share = f"{100 * result.trained / result.total:.2f} %"
        table.add_row(method, *scores, f"{result.trained:,}", share, f"{result.delta_bytes:,}", f"{result.seconds:.1f}")
    Console(width=max(Console().width, 100)).print(table)
