"""The ways to keep what was trained that `bench_delta.py` compares: the delta, a checkpoint, COO, PEFT's adapters."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

OURS, FLOOR = "delta", "plain bytes"
NEW = ("classifier.weight", "classifier.bias")


class Format(NamedTuple):
    """A way to keep what was trained: `save` to a path, `load` from it, `apply` what was loaded, `reset` the model."""

    name: str
    trained: int
    save: Callable[[Path], object]
    load: Callable[[Path], Any]
    apply: Callable[[Any], object]
    reset: Callable[[], object] = lambda: None


# -- what is saved ---------------------------------------------------------------------------------------------------


def base_model(which: str) -> Any:
    """Return the packaged encoder, or random weights in BERT-base shapes (or tiny ones), with a head of two labels."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    if which == "minilm":
        from subnetune.delta import load_pretrained

        return load_pretrained("minilm", "AutoModelForSequenceClassification", labels={0: "a", 1: "b"})[0]
    tiny = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    config = BertConfig(num_labels=2, **(tiny | {"vocab_size": 1000} if which == "tiny" else {}))
    return BertForSequenceClassification(config).eval()


def moved(model: Any, keep: float) -> dict[str, Any]:
    """Move a random share `keep` of every tensor but the head; return where, by name."""
    import torch

    from subnetune.core.hashing import bernoulli_mask
    from subnetune.core.types import placement

    masks = {}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name not in NEW:
                masks[name] = bernoulli_mask(0, 0, name, keep, placement(p), tuple(p.shape))
                p.add_(torch.where(masks[name], p.abs() * 0.01 + 1e-3, 0.0))
    return masks


def bounds(delta: Any) -> dict[str, int]:
    """Return the bytes that values and the entropy of their positions take, and the bound of docs/design.md."""
    from subnetune.delta.codec import entropy_bytes

    parts = [*delta.touched.values()]
    values = [part.values for part in parts] + [*delta.new.values()]
    stored = sum(value.numel() * value.element_size() for value in values)
    positions = sum(entropy_bytes(e.index.moved, e.index.entries) for e in delta.entries.values())
    return {"entropy": round(stored + positions), "bound": round(stored + 1.15 * positions + 512 * len(values) + 1024)}


# -- the formats -----------------------------------------------------------------------------------------------------


def plain(size: int, model: Any) -> Format:
    """As many bytes as the delta has, hashed once."""
    import torch

    data = torch.randint(0, 256, (size,), dtype=torch.uint8).numpy().data

    def save(path: Path) -> None:
        hashlib.sha256(data)
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def load(path: Path) -> Any:
        found = torch.empty(size, dtype=torch.uint8)
        with path.open("rb", buffering=0) as file:
            file.readinto(found.numpy().data)  # type: ignore[attr-defined]
        return hashlib.sha256(found.numpy().data)

    return Format(FLOOR, 0, save, load, lambda _: None)


def checkpoint(model: Any) -> Format:
    """The whole model in one safetensors file."""
    from safetensors.torch import load_file, save_file

    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    entries = sum(tensor.numel() for tensor in state.values())
    return Format(
        "full safetensors",
        entries,
        lambda path: save_file(state, path),
        lambda path: load_file(path),
        lambda loaded: model.load_state_dict(loaded),
    )


def sparse(model: Any, masks: Mapping[str, Any]) -> Format:
    """The moved entries as sparse COO tensors, in torch's own file."""
    import torch

    parameters = dict(model.named_parameters())
    coo: dict[str, Any] = {name: parameters[name].detach().clone() for name in NEW}
    for name, mask in masks.items():
        where, p = mask.nonzero().T.contiguous(), parameters[name].detach()
        coo[name] = torch.sparse_coo_tensor(where, p[mask], p.shape, is_coalesced=True)

    def apply(loaded: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for name, tensor in loaded.items():
                if tensor.is_sparse:
                    parameters[name][tuple(tensor.indices())] = tensor.values()
                else:
                    parameters[name].copy_(tensor)

    trained = sum(t.values().numel() if t.is_sparse else t.numel() for t in coo.values())
    return Format("torch.save, COO", trained, lambda path: torch.save(coo, path), torch.load, apply)


def adapter(kind: str, model: Any, keep: float) -> Format:
    """An adapter of PEFT on all linear layers, with about as many entries as the share `keep` of the model."""
    import peft
    import torch

    linear = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "classifier"]
    per_rank = sum(module.in_features + module.out_features for module in linear)
    rank = max(1, round(keep * sum(p.numel() for p in model.parameters()) / per_rank))
    most = min(min(m.in_features, m.out_features) for m in linear) // 2  # SHiRA: no more than there are entries
    made = {"LoRA": peft.LoraConfig, "SHiRA": peft.ShiraConfig}[kind]
    config = made(r=min(rank, most), target_modules="all-linear", modules_to_save=["classifier"])
    tuned = peft.get_peft_model(model, config)
    trained = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    return Format(
        f"PEFT {kind}, r {config.r}",
        trained,
        lambda path: tuned.save_pretrained(str(path), save_embedding_layers=False),
        lambda path: peft.load_peft_weights(str(path), device="cpu"),
        lambda loaded: peft.set_peft_model_state_dict(tuned, loaded),
    )


def formats(options: Any, keep: float) -> tuple[list[Format], Any, Any]:
    """Return all formats, the delta's first, with the delta and its base."""
    from subnetune.core.fingerprint import Fingerprint
    from subnetune.delta import Delta

    base = base_model(options.model)
    tuned = copy.deepcopy(base)
    masks = moved(tuned, keep)
    before = {name: p.detach() for name, p in base.named_parameters() if name not in NEW}
    delta = Delta.between(before, tuned, fingerprint=Fingerprint.of(base, exclude=NEW), new=NEW)
    handles: list[Any] = []

    def reset() -> None:
        while handles:
            handles.pop().remove()

    every = [
        Format(OURS, delta.stored, delta.save, Delta.load, lambda loaded: handles.append(loaded.apply(base)), reset),
        checkpoint(copy.deepcopy(tuned)),
        sparse(copy.deepcopy(tuned), masks),
    ]
    if importlib.util.find_spec("peft") is None:
        print("PEFT is not installed: its rows are left out", flush=True)
    else:
        every += [adapter(kind, copy.deepcopy(base), keep) for kind in ("LoRA", "SHiRA")]
    return every, delta, base
