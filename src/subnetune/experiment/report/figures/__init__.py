"""The plots of a report as inline SVG; each function returns [] where there is nothing to plot."""

from subnetune.experiment.report.figures.analysis import analysis
from subnetune.experiment.report.figures.curves import curves
from subnetune.experiment.report.figures.distributions import distributions
from subnetune.experiment.report.figures.figure import Figure
from subnetune.experiment.report.figures.pareto import pareto

__all__ = ["Figure", "analysis", "curves", "distributions", "pareto"]
