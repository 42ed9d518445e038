"""The primed model as a plain checkpoint of transformers: weights, configuration and tokenizer, and a card."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import nn

from subnetune.core.errors import UsageError
from subnetune.delta.models import copy_tokenizer, quiet, resolve_model

# What a head says in a model's configuration. A model that is saved without a head says what its base says.
_OF_HEADS = ("id2label", "label2id", "problem_type")


def check_base(model: nn.Module, head: str) -> None:
    """Raise UsageError where the head is to be left out and the model is no encoder with a head on it."""
    if head == "fresh" and getattr(model, "base_model", model) is model:
        raise UsageError(
            f"--head fresh leaves the head out of the checkpoint, and {type(model).__name__} has no base model apart "
            "from its head; take --head shared"
        )


def write_model(model: nn.Module, name: str, folder: Path, *, head: bool) -> None:
    """Write the model, without its head unless `head`, and the tokenizer's files of the model `name` into `folder`."""
    from transformers import AutoConfig

    source = Path(resolve_model(name))
    whole: Any = model
    with quiet():
        if head:
            whole.save_pretrained(folder, max_shard_size="1TB")
        else:
            encoder: Any = whole.base_model
            kept, encoder.config = encoder.config, deepcopy(encoder.config)
            try:
                before = AutoConfig.from_pretrained(source, local_files_only=True)
                for attribute in _OF_HEADS:
                    setattr(encoder.config, attribute, getattr(before, attribute, None))
                encoder.save_pretrained(folder, max_shard_size="1TB")
            finally:
                encoder.config = kept
    copy_tokenizer(source, folder)
