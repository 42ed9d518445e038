"""Every tensor belongs to one layer and one role, in every architecture."""

from __future__ import annotations

import pytest

from subnetune.core.structure import Structure
from subnetune.experiment.analysis.parts import ROLES, layers_of, listed, roles_of
from tiny import LAYERS, tiny


@pytest.mark.parametrize(("kind", "layers"), [("bert", LAYERS), ("gpt2", LAYERS), ("t5", 2 * LAYERS), ("albert", 1)])
def test_layers_are_those_of_the_structure(kind: str, layers: int) -> None:
    structure = Structure(tiny(kind))
    found = layers_of(structure)
    assert set(found) == set(structure.names)
    numbered = [f"layer {i}" for i in range(layers)]
    other = {"other"} & set(found.values())  # a pooler, a last norm
    assert listed(found.values()) == ["embeddings", *numbered, "head", *other]
    if kind == "bert":
        assert found["bert.embeddings.LayerNorm.bias"] == "embeddings"
        assert found["bert.encoder.layer.2.output.dense.weight"] == "layer 2"
        assert found["bert.pooler.dense.weight"] == "other"
        assert found["classifier.bias"] == "head"


def test_roles_exclude_each_other() -> None:
    found = roles_of(Structure(tiny("bert")))
    assert set(found.values()) <= set(ROLES)
    assert found["bert.embeddings.LayerNorm.weight"] == "embeddings"
    assert found["bert.encoder.layer.0.output.LayerNorm.bias"] == "norm"
    assert found["bert.encoder.layer.0.output.dense.bias"] == "bias"
    assert found["bert.encoder.layer.0.output.dense.weight"] == "linear"
    assert found["classifier.weight"] == "head"
