"""Lottery-ticket sparse fine-tuning (Ansell, Ponti, Korhonen, Vulić, ACL 2022, arXiv 2110.07560).

Differs from the authors' release in: one round; the dense phase does not keep its best checkpoint; see the card.
"""

from __future__ import annotations

from subnetune.core.recipe import Recipe, Scope
from subnetune.methods.card import NO_DECAY, Card, Defaults
from subnetune.score.movement import Movement
from subnetune.select.top import Top
from subnetune.update.hold_unselected import HoldUnselected
from subnetune.update.mask_gradient import MaskGradient


def lt_sft(
    keep: float | None = None,
    steps: int | None = None,
    dense_lr: float = 2e-5,
    freeze_norms: bool = True,
    count: int | None = None,
) -> Recipe:
    """Return training of the entries that a dense run moves most, from where they were before it, and of the head.

    keep: fraction of the selected entries that trains (0.08 when neither is given); count: exactly that many instead.
    steps: steps of the dense phase; None takes as many as the sparse phase has, as published.
    dense_lr: peak learning rate of the dense phase, which falls linearly to zero. A recipe does not see the run's own
        learning rate: set both alike, as published.
    freeze_norms: leave the normalisation layers frozen in both phases, as the release's task scripts do.

    The dense phase is AdamW without weight decay, clipped at 1.0, over the batches that the Tuning was given (without
    accumulation). It costs a copy of what trains beside AdamW's two, and its steps.
    """
    if keep is None and count is None:
        keep = 0.08
    return Recipe(
        scope=Scope(selected=("*",), whole=("@head?",), exclude=("@norm?",) if freeze_norms else ()),
        selector=Top(Movement(steps, lr=dense_lr, schedule="linear", clip=1.0), keep, count=count),
        update=(MaskGradient(), HoldUnselected()),
        groups=NO_DECAY,
    )


LT_SFT = Card(
    name="lt-sft",
    title="lottery-ticket sparse fine-tuning",
    citation="Ansell, Ponti, Korhonen, Vulić: Composable Sparse Fine-Tuning for Cross-Lingual Transfer. ACL 2022.",
    arxiv="2110.07560",
    one_line="Train everything, note which entries moved most, rewind, and train only those and the head.",
    answers=(
        ("scope", "every tensor but head and norms selected, embeddings too; @head whole; @norm frozen"),
        ("selector", "Top(Movement(), keep) over one pool: a dense run before step 0, then undone bit for bit"),
        ("update", "gradient masked, unselected entries held"),
    ),
    formula="w1 = dense fine-tuning of w0; M = the k largest |w1 - w0|; from w0 again: w <- w - lr * step(g * M)",
    published_grid=(
        "by the release's scripts: 14,155,776 entries (8 % of mBERT), NLI: lr 2e-5, batch 32, 5 epochs dense and 5 "
        "sparse; part-of-speech tags: lr 5e-5, batch 8, 1 and 1 epoch; linear schedule, no decay. The code's default "
        "is 1 % of the entries. The scores of the paper's tables: not found"
    ),
    leaks=None,
    differs_from_release=(
        "exactly k entries, ties by position; the release takes all at the threshold",
        "unselected entries are held bit for bit, whatever the optimizer does; the release masks gradients alone, "
        "which without weight decay is the same",
        "one round of dense phase, selection and rewind (there n_ft_iterations, 1 by default)",
        "the movement is that of the dense phase's last step; the release's task scripts load the checkpoint that was "
        "best on the validation set first",
        "the dense phase reads its batches in the same order in every pass, in full precision and without accumulation "
        "or forward rules, and its learning rate is an option of its own",
        "sparse differences are stored as new values (a delta); adding several to one model is `subnetune delta merge`",
        "a dense phase that was killed goes on from its last save (--save-steps); the release starts over",
    ),
    defaults=Defaults(lr=2e-5, warmup=0.0, weight_decay=0.0, batch_size=32, epochs=5),
    compared=(
        "the budget is that of the sparse phase; the dense one takes as many steps before it, at `dense_lr`, which is "
        "to be set as `lr` is"
    ),
)
