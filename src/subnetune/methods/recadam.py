"""RecAdam (Chen, Hou, Cui, Che, Liu, Yu, EMNLP 2020, arXiv 2004.12651): recall the pretrained weights, then learn.

Differs from the authors' release in: it works around any optimizer; the pull is taken where the step started, as in the
paper; t0 is a share of all steps by default. `release=True`: the pull is taken after the step; k=0.5, t0=250.
"""

from __future__ import annotations

from subnetune.core.recipe import Recipe, Scope
from subnetune.methods.card import NO_DECAY, Card, Defaults
from subnetune.update.recall import Recall


def recadam(
    k: float | None = None,
    t0: float | None = None,
    gamma: float = 5000.0,
    anneal: str = "sigmoid",
    weight: float = 1.0,
    release: bool = False,
) -> Recipe:
    """Return training of everything, the pretrained weights under `Recall`, a head plainly.

    k: steepness of the sigmoid per step (default 0.1; with `release` 0.5, its script's).
    t0: its middle, in steps, or below 1 as a share of all steps (default 0.25; with `release` 250 steps).
    gamma: strength of the pull, with lr * gamma < 2. anneal: "sigmoid" or "linear"; weight: the release's anneal_w.
    release: the pull is taken after the step, as the authors' code does.
    """
    steepness = (0.5 if release else 0.1) if k is None else k
    middle = (250 if release else 0.25) if t0 is None else t0
    recall = Recall(steepness, middle, gamma, anneal, weight, "after" if release else "before")
    return Recipe(scope=Scope(selected=("*",), whole=("@head?",)), update=(recall,), groups=NO_DECAY)


RECADAM = Card(
    name="recadam",
    title="recall and learn",
    citation=(
        "Chen, Hou, Cui, Che, Liu, Yu: Recall and Learn: Fine-tuning Deep Pretrained Language Models with Less "
        "Forgetting. EMNLP 2020, pp. 7870-7881."
    ),
    arxiv="2004.12651",
    one_line="Each step pulls towards the pretrained weights; over the run the task's step takes the pull's place.",
    answers=(
        ("scope", "the pretrained weights selected, a head whole"),
        ("update", "Recall: the optimizer's step times lambda(t), a decoupled pull times 1 - lambda(t)"),
    ),
    formula=(
        "lambda(t) = 1 / (1 + exp(-k (t - t0))); w <- w - lr * lambda * m_hat / (sqrt(v) + eps) "
        "- lr * (1 - lambda) * gamma * (w - w0); then decoupled weight decay; t = 1, 2, ..."
    ),
    published_grid=(
        "gamma 5000; k in {0.05, 0.1, 0.2, 0.5, 1}; t0 in {100, 250, 500} on small and {250, 500, 1000} on large tasks "
        "(BERT-base {250, 500, 1000}); the release's script defaults to k 0.5, t0 250. BERT-base: lr 2e-5, batch 32, "
        "7,800 steps on RTE to 61,360 on MNLI. As quoted by HyPe, BERT-large: STS-B 89.86, CoLA 64.33, MRPC 90.85, RTE "
        "71.63, mean 79.17"
    ),
    leaks=None,
    differs_from_release=(
        "any optimizer serves: what it did is scaled, and with AdamW its decoupled decay is applied last and not "
        "scaled; a decay inside the gradient (SGD, Adam) is scaled with the step",
        "training starts from the pretrained weights; the release's script starts from random ones and recalls the "
        "pretrained, unless told --start_from_pretrain",
        "w - w0 is taken before the step, as in the paper; the release takes it after (release=True)",
        "t0 is a share of all steps by default, since 250 steps are more than a short run has; a t0 beyond the run is "
        "an error here",
        "lr * gamma >= 2 is an error here: the pull would overshoot further at every step. 2e-5 * 5000 = 0.1 is stable",
        "lambda scales a step that Adam has normalised already, so the method is a long warmup as well: compare it "
        "with full fine-tuning under such a warmup before the pull is credited",
        "three epochs by default, as in the other methods here; the authors report 3 epochs as too few for BERT-base",
    ),
    defaults=Defaults(lr=2e-5, warmup=0.0, weight_decay=0.0, batch_size=32),
    own=("warmup",),
    compared="lambda(t) warms the task's step up already; under a second warmup the pull would be held back as well",
)
