"""Labels drawn from a model's own predictive distribution, for the true Fisher information instead of the empirical."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from subnetune.core.embeddings import embedding_module
from subnetune.core.errors import DataError, UsageError
from subnetune.core.types import Batch, Setting, unwrap
from subnetune.score.examples import IGNORED, labelled


def sampled_labels(setting: Setting, singly: bool = False) -> Callable[[Batch], Batch]:
    """Return a function that replaces a batch's labels by ones drawn from the model's prediction without dropout.

    `singly` draws example by example, so that the labels do not depend on how the examples are batched; one without a
    label keeps none, and takes no draw.
    Draws come from a generator of their own, seeded with the setting's seed: no global random state is touched, and
    the same labels are drawn on every device. Raises `UsageError` for language models: the label of one position is
    the input of the next, so drawing labels means generating text, not one forward pass.
    """
    model = unwrap(setting.model)
    if embedding_module(model, "output") is not None:
        raise UsageError(
            f"labels='sampled' cannot serve {type(model).__name__}: in a language model the label of one position is "
            "the input of another, so labels from the model's own distribution need generation; use labels='true'"
        )
    generator = torch.Generator().manual_seed(setting.seed)

    def relabel(batch: Batch) -> Batch:
        if not isinstance(batch.get("labels"), Tensor):
            raise DataError(f"labels='sampled' replaces batch['labels'], but the batch holds {sorted(batch)}")
        modes = [(module, module.training) for module in setting.model.modules()]
        setting.model.eval()
        with torch.no_grad():
            logits = setting.forward(setting.model, batch).logits.detach().float().cpu()
        for module, mode in modes:
            module.training = mode
        labels = batch["labels"]
        if not (singly and labels.dim() and logits.dim() and logits.shape[0] == labels.shape[0]):
            return {**batch, "labels": draw(logits, labels, generator)}
        rows = zip(torch.split(logits, 1), torch.split(labels, 1), labelled(batch).tolist(), strict=True)
        drawn = [draw(row, label, generator) if counts else label for row, label, counts in rows]
        return {**batch, "labels": torch.cat(drawn)}

    return relabel


def draw(logits: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return labels of the shape, dtype and device of `labels`, drawn from the distribution that `logits` describe.

    (B, C) logits with (B,) integer labels: one class each. (B, L, C) with (B, L): one class per position that counts.
    Floating labels of the logits' size, with one output per example: N(logits, 1). Anything else is a `UsageError`.
    """
    if labels.is_floating_point() or logits.shape[-1] == 1:
        if logits.numel() != labels.numel() or logits.numel() != labels.shape[0]:
            raise UsageError(
                f"labels='sampled' knows regression to one number per example; got logits {tuple(logits.shape)} and "
                f"labels {tuple(labels.shape)} of {labels.dtype} (several labels or numbers per example)"
            )
        noise = torch.randn(logits.numel(), generator=generator)
        drawn = (logits.reshape(-1) + noise).reshape(labels.shape)
        return drawn.to(labels.device, labels.dtype if labels.is_floating_point() else torch.float32)
    if logits.shape[:-1] != labels.shape:
        raise UsageError(
            f"labels='sampled' knows one class per example or position; got logits {tuple(logits.shape)} and labels "
            f"{tuple(labels.shape)}"
        )
    probabilities = torch.softmax(logits.reshape(-1, logits.shape[-1]), dim=-1)
    drawn = torch.multinomial(probabilities, 1, generator=generator).reshape(labels.shape).to(labels.device)
    return torch.where(labels == IGNORED, labels, drawn.to(labels.dtype))
