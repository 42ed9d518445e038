"""The hidden states of every layer, whatever the architecture calls them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from subnetune.experiment.analysis.representations import hidden_states
from subnetune.experiment.data import Collator, Encoded
from tiny import LAYERS, tiny


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_each_layer_is_the_mean_over_its_tokens(kind: str) -> None:
    model = tiny(kind)
    rows = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
    if kind == "t5":  # it finds the end of each text by its end token
        rows = [[*row, 1] for row in rows]
    examples = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]
    tokenizer = SimpleNamespace(pad_token_id=0, pad_token_type_id=0, padding_side="right")
    collate = Collator(tokenizer, torch.device("cpu"))
    found = hidden_states(model, Encoded(examples, None), collate, batch_size=2)
    assert model.training
    layers = [f"layer {i}" for i in range(LAYERS)]
    second = ["decoder embeddings", *(f"layer {LAYERS + i}" for i in range(LAYERS))]
    assert list(found) == ["embeddings", *layers, *(second if kind == "t5" else [])]
    model.eval()
    with torch.no_grad():
        for i, row in enumerate(rows):  # alone, so that there is no padding
            output = model(input_ids=torch.tensor([row]), output_hidden_states=True)
            states = output.encoder_hidden_states if kind == "t5" else output.hidden_states
            for name, tokens in zip(["embeddings", *layers], states, strict=True):
                torch.testing.assert_close(found[name][i], tokens[0].mean(0), atol=1e-5, rtol=1e-4)


def test_a_model_without_hidden_states_has_none() -> None:
    class Plain(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, output_hidden_states: bool) -> SimpleNamespace:
            return SimpleNamespace(logits=input_ids)

    collate = Collator(SimpleNamespace(pad_token_id=0, pad_token_type_id=0, padding_side="right"), torch.device("cpu"))
    assert hidden_states(Plain(), Encoded([{"input_ids": [1, 2]}], None), collate, batch_size=2) == {}
