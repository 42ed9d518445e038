"""Tiny random models of every architecture whose roles must resolve, and batches for them."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

LAYERS, WIDTH, VOCABULARY = 4, 32, 53


def configuration(kind: str, **changes: Any) -> Any:
    """Return the configuration of a four-layer model of this architecture."""
    common = {"vocab_size": VOCABULARY, "pad_token_id": 0}
    shape = {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 37,
        "max_position_embeddings": 40,
    }
    gpt2 = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 2, "n_positions": 40, "bos_token_id": 1, "eos_token_id": 2}
    t5 = {"d_model": WIDTH, "d_kv": 16, "d_ff": 37, "num_layers": LAYERS, "num_heads": 2, "decoder_start_token_id": 0}
    distilbert = {"dim": WIDTH, "n_layers": LAYERS, "n_heads": 2, "hidden_dim": 37, "max_position_embeddings": 40}
    deberta = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
    table: dict[str, tuple[str, dict[str, Any]]] = {
        "bert": ("BertConfig", shape),
        "minilm": ("BertConfig", {**shape, "num_hidden_layers": 6}),
        "roberta": ("RobertaConfig", shape),
        "deberta-v2": ("DebertaV2Config", {**shape, **deberta}),
        "electra": ("ElectraConfig", {**shape, "embedding_size": 16}),
        "albert": ("AlbertConfig", {**shape, "embedding_size": 16}),
        "distilbert": ("DistilBertConfig", distilbert),
        "xlm-roberta": ("XLMRobertaConfig", shape),
        "gpt2": ("GPT2Config", gpt2),
        "llama": ("LlamaConfig", {**shape, "num_key_value_heads": 2}),
        "qwen2": ("Qwen2Config", {**shape, "num_key_value_heads": 2}),
        "t5": ("T5Config", t5),
    }
    name, own = table[kind]
    return getattr(transformers, name)(**{**common, **own, **changes})


KINDS = (
    "bert roberta deberta-v2 electra albert distilbert minilm xlm-roberta gpt2 llama qwen2 t5"  # DESIGN 2's list
).split()


def tiny(kind: str, task: str = "SequenceClassification", seed: int = 0, **changes: Any) -> nn.Module:
    """Return a tiny random model in training mode, with dropout as configured."""
    config = configuration(kind, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, f"AutoModelFor{task}").from_config(config, attn_implementation="eager")
    return model.train()


def without_dropout(model: nn.Module) -> nn.Module:
    """Set every dropout probability of the model to zero, in place."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def batch(task: str = "SequenceClassification", seed: int = 0, rows: int = 4, columns: int = 9) -> dict[str, Tensor]:
    """Return one random batch with a padded tail and labels of the task."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (rows, columns), generator=random)
    attention = torch.ones_like(ids)
    attention[0, -2:] = 0
    ids[0, -2:] = 0
    labels = {
        "SequenceClassification": torch.randint(0, 2, (rows,), generator=random),
        "CausalLM": ids,
        "MaskedLM": ids,
        "Seq2SeqLM": torch.randint(3, VOCABULARY, (rows, 5), generator=random),
    }[task]
    return {"input_ids": ids, "attention_mask": attention, "labels": labels}


def batches(count: int, task: str = "SequenceClassification", seed: int = 0, rows: int = 4) -> list[dict[str, Tensor]]:
    """Return a list of different random batches."""
    return [batch(task, seed=1000 * seed + i, rows=rows) for i in range(count)]


def bits(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the model's parameters by name (the same with an adapter around), for comparing bit by bit."""
    return {name.replace(".base_layer.", "."): p.detach().clone() for name, p in model.named_parameters()}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Return the names whose bits differ."""
    return [n for n in a if a[n].dtype != b[n].dtype or not torch.equal(*(_as_bytes(x[n]) for x in (a, b)))]


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.unsqueeze(-1).contiguous().view(torch.uint8)  # a scalar has no last dimension to split
