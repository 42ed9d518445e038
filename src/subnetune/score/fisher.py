"""Score an entry by the diagonal Fisher information of the task at the model before step 0: mean of squared gradients.

Child-Tuning-D (arXiv 2109.05687): F_i = (1/|D|) * sum_j (d log p(y_j | x_j; w) / d w_i)^2.
Differs from the authors' release in: evaluation mode and no clipping by default (`Fisher(estimator="batch",
mode="train", clip=1.0)` are the release's choices); random state and data order of the run stay untouched. As there,
"log p" is whatever loss the forward gives: for regression the mean squared error, twice the gradient of the log density
of N(prediction, 1), which no selection sees. A head without training is random when the scores are taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from subnetune.core.errors import DataError, UsageError
from subnetune.core.recipe import check_choice
from subnetune.core.types import Params, Setting
from subnetune.score.examples import pieces
from subnetune.score.labels import sampled_labels
from subnetune.score.per_sample import PerSample
from subnetune.score.squares import PerBatch, scoring_gradients
from subnetune.score.undisturbed import check_whole


@dataclass(frozen=True)
class Fisher:
    """Diagonal Fisher information of the selected tensors over the setting's batches.

    estimator: "batch" squares the gradient of each batch's mean loss and averages over batches (one backward pass a
        batch; an estimate of variance / batch size + mean^2, whose order can differ from the per-sample one);
        "per-sample" squares the gradient of each example, as the formula says: by hooks in one backward pass a batch,
        or one pass an example where hooks would not be right (the log says why). Equal for batches of one.
    labels: "true" (the empirical Fisher) or "sampled" from the model's own prediction without dropout.
    mode: "eval" without dropout, or "train" with it.
    clip: largest gradient norm of each tensor on its own before squaring, or None. It flattens tensors with large
        gradients against the others.
    samples: look at so many examples at most, or None for all. Those without any label (all -100) add nothing.

    Where a batch is cut, a tensor whose first dimension is the number of examples has one row for each of them.
    """

    estimator: str = "batch"
    labels: str = "true"
    mode: str = "eval"
    clip: float | None = None
    samples: int | None = None
    needs: ClassVar[tuple[str, ...]] = ("batches",)

    def __post_init__(self) -> None:
        check_choice("Fisher", "estimator", self.estimator, ("batch", "per-sample"))
        check_choice("Fisher", "labels", self.labels, ("true", "sampled"))
        check_choice("Fisher", "mode", self.mode, ("eval", "train"))
        if self.clip is not None and (isinstance(self.clip, bool) or not 0.0 < self.clip < math.inf):
            raise UsageError(f"Fisher: clip must be a finite number > 0 or None, got {self.clip!r}")
        if self.samples is not None and (type(self.samples) is not int or self.samples < 1):
            raise UsageError(f"Fisher: samples must be a whole number >= 1 or None, got {self.samples!r}")

    def __call__(self, setting: Setting) -> Params:
        """Return one score >= 0 per entry in single precision; a tensor that the loss does not use is left out.

        Raises `UsageError` without batches, `DataError` for an empty pass or batches without a common first dimension,
        `NumericError` for a loss or gradient that is not finite. Costs one copy of the selected tensors in single
        precision, and one of their gradients at a time.
        """
        if setting.batches is None:
            raise UsageError("Fisher scores entries on batches: give the Tuning batches=...")
        check_whole("Fisher", setting)
        totals: dict[str, Tensor] = {}
        count, training = 0, self.mode == "train"
        add = (PerSample if self.estimator == "per-sample" else PerBatch)(setting, totals, self.clip, training)
        with scoring_gradients(setting, training):
            relabel = sampled_labels(setting, add.singly) if self.labels == "sampled" else None
            for batch in pieces(setting.batches(), self.samples):
                count += add(batch if relabel is None else relabel(batch))
        if not count:
            raise DataError("Fisher: a pass gave none with a label; is the data set empty or the iterator used up?")
        return {name: totals[name].div_(count) for name in setting.params if name in totals}
