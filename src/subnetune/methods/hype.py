"""HyPe (Yuan et al., ACL 2023, arXiv 2212.08853): noise on the hidden states that enter each layer.

Differs from the authors' release in: see the card.
"""

from __future__ import annotations

from subnetune.core.recipe import Recipe, Scope
from subnetune.forward.noisy_layers import NoisyLayers
from subnetune.methods.card import NO_DECAY, Card, Defaults
from subnetune.prepare.set_dropout import SetDropout


def hype(sigma: float = 1e-5, noise: str = "uniform", dropout: float | None = 0.0) -> Recipe:
    """Return fine-tuning of everything with noise before each layer.

    sigma, noise: size and kind of the noise, "uniform" or "normal".
    dropout: the rate of all dropout, 0 as published; None leaves the model's.
    """
    return Recipe(
        scope=Scope(selected=("*",), whole=("@head?",)),
        forward=(NoisyLayers(sigma, noise),),
        prepare=() if dropout is None else (SetDropout(dropout),),
        groups=NO_DECAY,
    )


HYPE = Card(
    name="hype",
    title="hidden representation perturbation",
    citation=(
        "Yuan, Yuan, Tan, Huang, Huang: HyPe: Better Pre-trained Language Model Fine-tuning with Hidden Representation "
        "Perturbation. ACL 2023, pp. 3246-3264."
    ),
    arxiv="2212.08853",
    one_line="Small random noise is added to the hidden states before each layer in training, instead of dropout.",
    answers=(
        ("scope", "everything trains: the pretrained tensors selected, without a selector, the head whole"),
        ("forward", "NoisyLayers: noise on the input of each block of @layers"),
        ("prepare", "SetDropout(0)"),
    ),
    formula="h_l = layer_l(h_(l-1) + z), z ~ U(-sigma, sigma) or N(0, sigma^2), dropout 0",
    published_grid=(
        "sigma in {1e-4, 1e-5}, normal or uniform; AdamW betas (0.9, 0.99), epsilon 1e-5, weight decay 0.1, linear "
        "decay, lr {1, 2, 3, 4}e-5, 3 seeds in the paper; epsilon 1e-6, weight decay 0.01, lr 2e-5, batch 16, 3 epochs "
        "in the README. BERT-large, normal noise: STS-B 90.37, CoLA 66.26, MRPC 91.98, RTE 74.37, mean 80.75 (plain: "
        "79.15); memory at batch 16 about 11 GB, R-Drop and R3F 16 GB"
    ),
    leaks=None,
    differs_from_release=(
        "uniform noise is drawn from (-sigma, sigma), as in the paper; the release draws from [0, sigma)",
        "layers are found from the model's structure, without a model class per architecture; of an encoder-decoder "
        "both stacks get noise",
        "the README's weight decay and learning rate, torch's AdamW with beta2 0.999 and epsilon 1e-8",
        "noise is drawn in the dtype of the hidden states; in half precision sigma is mostly below their rounding",
    ),
    defaults=Defaults(lr=2e-5),
    own=("dropout",),
    compared="noise in the place of dropout is the method",
)
