"""R-Drop (Liang et al., NeurIPS 2021, arXiv 2106.14448): two passes under different dropout shall agree.

Differs from the authors' release in: see the card. `r_drop(release=True)` has the loss of its GLUE code.
"""

from __future__ import annotations

from subnetune.core.recipe import Recipe, Scope
from subnetune.forward.r_drop import RDrop
from subnetune.methods.card import NO_DECAY, Card, Defaults


def r_drop(weight: float | None = None, release: bool = False) -> Recipe:
    """Return fine-tuning of everything on the loss of two passes and their divergence.

    weight: of the divergence (the paper's alpha); 1.0 by default, 0.5 in the release's GLUE code.
    release: sums over the batch as that code does, and weighs regression with 1.0.
    """
    rule = RDrop(1.0 if weight is None else weight)
    if release:
        rule = RDrop(0.5 if weight is None else weight, form="sum", regression_weight=1.0 if weight is None else None)
    return Recipe(scope=Scope(selected=("*",), whole=("@head?",)), forward=(rule,), groups=NO_DECAY)


R_DROP = Card(
    name="r-drop",
    title="regularised dropout",
    citation=(
        "Liang, Wu, Li, Wang, Meng, Qin, Chen, Zhang, Liu: R-Drop: Regularized Dropout for Neural Networks. NeurIPS "
        "2021."
    ),
    arxiv="2106.14448",
    one_line="Each batch runs twice under different dropout, and the loss adds how far the two predictions lie apart.",
    answers=(
        ("scope", "everything trains: the pretrained tensors selected, without a selector, the head whole"),
        ("forward", "RDrop: two passes, both task losses, and the symmetric divergence of their predictions"),
    ),
    formula=(
        "L = (L1 + L2) / 2 + weight * mean of (KL(p||q) + KL(q||p)) / 2; release=True: L = L1 + L2 + weight * sum over "
        "the batch of the same; where one number is predicted, the mean squared difference instead of the divergence"
    ),
    published_grid=(
        "weight in {0.1, 0.5, 1} (HyPe's comparison); the release's GLUE runs: lr 1e-5, batch 16 for MRPC, CoLA and "
        "STS-B, 8 for RTE, 32 else, updates 2296, 5336, 3598 (MRPC, CoLA, STS-B) and 2036 (RTE), Adam beta2 0.98 and "
        "epsilon 1e-6, polynomial decay. As measured by HyPe, BERT-large, 3 seeds: STS-B 90.29, CoLA 65.06, MRPC "
        "91.84, RTE 75.21, mean 80.60 (plain: 79.15)"
    ),
    leaks=None,
    differs_from_release=(
        "the README's loss by default, with the divergence averaged over what is predicted, so that it does not grow "
        "with the batch; the GLUE code's sums are release=True",
        "where tokens are predicted, positions whose label is -100 do not count in the divergence",
        "the batch runs twice, one after the other, and is not doubled: dropout draws differ from the release's",
        "a model whose training pass draws no random numbers (dropout off) is an error",
        "torch's AdamW with beta2 0.999 and epsilon 1e-8, linear decay, 10 epochs (what 2296 updates are on MRPC)",
    ),
    defaults=Defaults(lr=1e-5, warmup=0.06, epochs=10),
    compared="the budget counts steps; each has two passes, and needs the model's dropout",
)
