"""DPS, dynamic parameter selection (arXiv 2211.01642, NeurIPS 2022): subnetworks chosen anew in every cycle of the run.

Differs from the authors' release in: see the cards. The paper's text was not at hand, only its abstract and its code.
"""

from __future__ import annotations

from dataclasses import replace

from subnetune.core.recipe import Recipe, Scope
from subnetune.core.types import ForwardRule
from subnetune.forward.mix_unselected import MixUnselected
from subnetune.methods.card import NO_DECAY, Card, Defaults
from subnetune.prepare.set_dropout import SetDropout
from subnetune.select.bernoulli import Bernoulli
from subnetune.select.staged import Staged
from subnetune.update.hold_unselected import HoldUnselected
from subnetune.update.mask_gradient import MaskGradient


def dps_dense(
    keep: float = 0.7,
    cycle: float = 0.1,
    explore: float = 0.5,
    per: str = "tensor",
    dropout: float | None = 0.0,
    exact: bool = False,
    release: bool = False,
) -> Recipe:
    """Return DPS dense: train everything and collect squared gradients, then train the entries that had the largest.

    keep: fraction that trains in an updating stage (the release's reserve_p = 0.3 is the fraction that does not).
    cycle, explore, per: fields of `Staged` (the release's update_ratio 0.05 is each stage's share: cycle 0.1).
    dropout: the rate for the run, off as in the release; None leaves the model's.
    exact: hold unselected entries still; otherwise they leak. release: select from the head's matrices too.
    """
    return _dps(Staged(keep, cycle, explore, per=per), (), dropout, exact, release)


def dps_mix(
    keep: float = 0.7,
    cycle: float = 0.1,
    explore: float = 0.5,
    per: str = "tensor",
    unit: str = "column",
    frequency_penalty: bool | None = None,
    gradient: str | None = None,
    dropout: float | None = 0.0,
    exact: bool = False,
    release: bool = False,
) -> Recipe:
    """Return DPS mix: Mixout towards the pretrained weights, then towards those with which the updating stage starts.

    unit: what is drawn together while collecting; "column": the weights of one input of a matrix (GPT-2's: "row").
    frequency_penalty: lower the scores of what was drawn often; None does in stages of 50 steps and more.
    gradient: of `MixUnselected`, "true" or "release" (the default with `release`). The other options: see `dps_dense`.
    """
    penalty = "auto" if frequency_penalty is None else frequency_penalty
    mix = MixUnselected(gradient=gradient or ("release" if release else "true"))
    selector = Staged(keep, cycle, explore, Bernoulli(keep, unit), per, penalty, snapshot=True)
    return _dps(selector, (mix,), dropout, exact, release)


def _dps(selector: Staged, rules: tuple[ForwardRule, ...], dropout: float | None, exact: bool, release: bool) -> Recipe:
    scope = Scope(selected=("@linear",), whole=("*",) if release else ("@head?", "*"))
    update = (MaskGradient(), HoldUnselected()) if exact else (MaskGradient(),)
    return Recipe(scope, selector, update, rules, () if dropout is None else (SetDropout(dropout),), NO_DECAY)


DPS_DENSE = Card(
    name="dps-dense",
    title="dynamic parameter selection, dense",
    citation=(
        "Zhang, Li, Li, Zhang, Zhu, Jin: Fine-Tuning Pre-Trained Language Models Effectively by Optimizing Subnetworks "
        "Adaptively. NeurIPS 2022, vol. 35, pp. 21442-21454."
    ),
    arxiv="2211.01642",
    one_line="Stages alternate: all trains and squared gradients add up, then only the entries that had the largest.",
    answers=(
        ("scope", "@linear (weights of linear layers) selected; head, biases, norms and embeddings whole"),
        ("selector", "Staged(keep, cycle): everything while collecting, then keep of each matrix"),
        ("update", "gradient masked before the moments"),
        ("prepare", "SetDropout(0) for the run"),
    ),
    formula="collect: G = sum g^2; update: M = the keep * n largest G of each matrix; w <- w - lr * step(g * M)",
    published_grid=(
        "release: BERT-large, keep 0.7, stages of 5 %; mean of CoLA, RTE, MRPC, STS-B: 80.03 (plain 78.88), ten seeds, "
        "quoted by Somayajula et al. (NAACL 2024), dense; other grids and what the paper means by keep: not found"
    ),
    leaks="momentum and weight decay move unselected entries, as in the release (gradients alone are masked)",
    differs_from_release=(
        "the head trains whole; in the release it loses 1 - keep of its gradient as well (release=True does so too)",
        "stages count optimizer steps; the release counts forward passes, so accumulation breaks its schedule",
        "scores are of what the optimizer gets, clipped and unscaled; the release squares loss-scaled micro-batches",
        "exactly keep * n entries of each matrix, ties by position; the release keeps all entries at the threshold",
        "dropout is off as in most of the release's runs; in dense ones of 2000 steps and more it is 0.1 there",
        "scores, masks and snapshots are saved; on a resume the release starts with a first stage again",
    ),
    defaults=Defaults(lr=2e-5),
    compared="with the model's dropout, as every method; the release's runs are `options: {dropout: 0.0}`",
)

DPS_MIX = replace(
    DPS_DENSE,
    name="dps-mix",
    title="dynamic parameter selection, mixed with earlier weights",
    one_line="As dps-dense, but the model sees unselected entries at their pretrained or their stage's first values.",
    answers=(
        *DPS_DENSE.answers[:1],
        ("selector", "Staged(keep, cycle, collect=Bernoulli(keep, 'column')): scores are means over an entry's visits"),
        *DPS_DENSE.answers[2:],
        ("forward", "MixUnselected: towards the anchor while collecting, towards the stage's snapshot while updating"),
    ),
    formula="w_eff = u + M * (w - u) / keep; G = sum (g * M)^2 / visits, times exp(-visits / U) for stages of U >= 50",
    differs_from_release=(
        *DPS_DENSE.differs_from_release,
        "the gradient is the derivative, M / keep; the release leaves 1 / keep out (gradient='release')",
        "as there, evaluation sees w itself: a move of an updating stage looks 1 / keep times as large in training",
    ),
)
