"""ULMFiT (Howard, Ruder, ACL 2018, arXiv 1801.06146): fine-tune from the top down, lower layers at lower rates.

Differs from the authors' release in: see the card. Each part is usable by itself. Gradual unfreezing is
`gradual_unfreezing()`; discriminative rates are `ulmfit(unfreeze=False, pooling=False)`, or one more group in any
recipe, `Group("*", per_layer=2.6)`; the slanted triangular schedule is a run's `--schedule stlr`, and in a loop of
one's own `torch.optim.lr_scheduler.LambdaLR(optimizer, schedule_factor("stlr", 0.1, steps))` with the function of
`subnetune.experiment.schedules`; the head is the preparation `ConcatPooling()`.
"""

from __future__ import annotations

from subnetune.core.recipe import Recipe, Scope
from subnetune.methods.card import NO_DECAY, Card, Defaults
from subnetune.methods.gradual_unfreezing import CITATION, by_layer
from subnetune.prepare.concat_pooling import ConcatPooling
from subnetune.select.top_down import TopDown
from subnetune.update.hold_unselected import HoldUnselected
from subnetune.update.skip_unselected import SkipUnselected


def ulmfit(
    unfreeze: bool = True,
    every: float | None = None,
    within: float | None = None,
    per_layer: float = 2.6,
    pooling: bool = True,
    hidden: int = 50,
    dropout: float = 0.4,
) -> Recipe:
    """Return ULMFiT's classifier fine-tuning: gradual unfreezing, discriminative rates and a concat-pooling head.

    unfreeze: gradual unfreezing; `every` and `within` as in `gradual_unfreezing`.
    per_layer: what the rate is divided by for each layer from the topmost down, and once more for the embeddings.
    pooling: the head on [h_T, maximum, mean] with `hidden` units, and `dropout` of what it pools.

    The slanted triangular schedule belongs to the run: it is the default of this method's runs. On a model whose head
    cannot be replaced pooling is a `UsageError` on binding.
    """
    return Recipe(
        scope=Scope(selected=("*",), whole=("@head?",)),
        selector=TopDown(every=every, within=within) if unfreeze else None,
        update=(HoldUnselected(), SkipUnselected()) if unfreeze else (),
        prepare=(ConcatPooling(hidden=hidden, dropout=dropout),) if pooling else (),
        groups=(*NO_DECAY, *by_layer(per_layer)),
    )


ULMFIT = Card(
    name="ulmfit",
    title="from the top down, lower layers at lower rates",
    citation=CITATION,
    arxiv="1801.06146",
    one_line="Layers thaw from the top down, lower ones at lower rates, under a head that pools over all tokens.",
    answers=(
        ("scope", "everything selected, the head whole"),
        ("selector", "TopDown: whole tensors by depth, thawed one layer at a time, embeddings last"),
        ("update", "SkipUnselected: the optimizer leaves frozen tensors out; HoldUnselected against whatever is added"),
        ("prepare", "ConcatPooling: a new head, [h_T, max, mean] -> two blocks of BatchNorm, dropout, linear"),
        ("groups", "the rate divided by 2.6 for each layer from the topmost down, and for the embeddings once more"),
    ),
    formula=(
        "w_l <- w_l - lr_t / 2.6^(L - l) * step(g_l) from step s_l on; lr_t = lr * (1 + 31 p) / 32, where p rises from "
        "0 to 1 over the first tenth of the steps and falls back to 0"
    ),
    published_grid=(
        "an AWD-LSTM of 3 layers: factor 2.6, cut_frac 0.1, ratio 32, lr 0.01, Adam beta1 0.7, beta2 0.99, batch 64, "
        "hidden 50, dropout 0.4, 50 epochs; test error, both directions: IMDb 4.6, TREC-6 3.6, AG 5.01, DBpedia 0.80, "
        "Yelp-bi 2.16, Yelp-full 29.98; figures for transformers: not found"
    ),
    leaks=None,
    differs_from_release=(
        "language-model fine-tuning on the target text, chunks of long documents with carried state (BPT3C) and the "
        "backward model are not part of it",
        "one thaw each share of the run and one schedule over all of it; the release thaws in three steps (head, one "
        "layer, all) with a new cycle each time",
        "h_T is what the model itself classifies from: the first token of an encoder, through its pooler where it has "
        "one, the last of a decoder",
        "torch's AdamW with its own betas; no activation regularisation; clipping at 1 (the release: 25)",
        "the rate of 1e-4, batch 16 and 3 epochs are ours, for transformers",
        "the last batch of an epoch must not be a single example: BatchNorm has no spread then, an error",
    ),
    defaults=Defaults(lr=1e-4, schedule="stlr", warmup=0.1, weight_decay=0.0),
    own=("schedule", "warmup"),
    compared="the slanted triangular schedule is one of the method's parts",
)
