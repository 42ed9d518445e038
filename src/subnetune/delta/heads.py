"""Whether a checkpoint's own head is the one that is wanted, and loading without it where it is not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from subnetune.core.randomness import forked_randomness
from subnetune.core.roles import role_names
from subnetune.core.structure import Structure

# Classes of transformers whose heads share their tensors' names, so that one could be taken for another.
_WITH_HEADS = ("Classification", "MultipleChoice")


def own_labels(config: Any) -> tuple[str, ...]:
    """Return the names of a configuration's labels in order of their ids; "" for an id without a name."""
    return tuple(config.id2label.get(i, "") for i in range(config.num_labels))


def listed(labels: Iterable[str]) -> str:
    """Return labels for a message, the first six where there are more."""
    names = tuple(labels)
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def describe_head(folder: str) -> str:
    """Return what the checkpoint in `folder` says of its head: `BertForTokenClassification of O, B-LOC, I-LOC`."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    classes = "/".join(getattr(config, "architectures", None) or ("one",))
    return f"{classes} of {listed(own_labels(config))}"


def other_head(folder: str, cls: Any, labels: Mapping[int, str]) -> tuple[str, ...]:
    """Return the names of the head's tensors where the checkpoint in `folder` may hold a head of something else, or ().

    `cls` is a class of transformers, `labels` names what its head is to predict. A head is the wanted one where it
    belongs to the same model class, and its labels have the same names in the same order, or were never named
    (LABEL_0, LABEL_1, ...) and are as many.
    """
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    architectures = tuple(getattr(config, "architectures", None) or ())
    if architectures and not any(part in name for part in _WITH_HEADS for name in architectures):
        return ()
    own = own_labels(config)
    named = own in (tuple(labels.values()), tuple(f"LABEL_{i}" for i in range(len(labels))))
    with forked_randomness(), torch.device("meta"):
        build = getattr(cls, "from_config", cls)  # of an Auto class, or the model class itself
        model = build(config)
    if named and (not architectures or type(model).__name__ in architectures):
        return ()
    return tuple(sorted(role_names(Structure(model), "@head")))


def without_head(cls: Any, folder: str, fresh: Collection[str], **options: Any) -> tuple[Any, dict[str, Any], set[str]]:
    """Load a model whose tensors `fresh` are drawn anew, whatever the checkpoint in `folder` holds under their names.

    Returns the model, the report on loading as transformers gives it, and which of `fresh` the checkpoint held. The
    draws are those of a checkpoint that lacks these tensors. Raises as `from_pretrained` does.
    """
    with forked_randomness():
        donor, report = cls.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    differing = {str(entry[0]) for entry in report["mismatched_keys"]}
    lacking = {str(key) for key in report["missing_keys"]}
    tensors = donor.state_dict()
    held = (set(fresh) & set(tensors)) - lacking
    if not held:
        return donor, report, held
    kept = {name: tensor for name, tensor in tensors.items() if name not in held | lacking}
    dtype = options.get("dtype")
    model, again = type(donor).from_pretrained(
        None, config=donor.config, state_dict=kept, output_loading_info=True, dtype=dtype
    )
    model.name_or_path = model.config.name_or_path = donor.name_or_path  # from a folder all the same
    mismatched = [entry for entry in report["mismatched_keys"] if str(entry[0]) in differing - held]
    return model, {**again, "mismatched_keys": mismatched}, held
