"""A checkpoint's own head is kept where it predicts the same labels; else it is drawn as if there had been none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from subnetune.core.errors import CheckpointError
from subnetune.delta import Delta, load, load_base
from subnetune.delta.models import load_with_head
from subnetune.tuning import Tuning
from tiny import KINDS, tiny

TAGS = ("O", "B-A", "I-A")
HEAD = ("classifier.weight", "classifier.bias")
SAID = "a new one is drawn for this task's labels"
Save = Callable[..., str]


def config(labels: tuple[str, ...] | None = TAGS, count: int = 3) -> Any:
    from transformers import BertConfig

    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    names = {"num_labels": count} if labels is None else {"id2label": dict(enumerate(labels))}
    return BertConfig(vocab_size=30, max_position_embeddings=16, **shape, **names)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write(kind: str, **labels: Any) -> str:
        import transformers

        torch.manual_seed(0)
        model = getattr(transformers, kind)(config(**labels))
        folder = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}"
        model.save_pretrained(folder)
        return str(folder)

    return write


def token_classifier(folder: str, labels: tuple[str, ...] = TAGS) -> tuple[Any, tuple[str, ...]]:
    torch.manual_seed(7)
    return load_with_head(folder, "AutoModelForTokenClassification", dict(enumerate(labels)))


@pytest.mark.parametrize(
    ("labels", "count"), [pytest.param(TAGS, 3, id="same-names"), pytest.param(None, 3, id="never-named")]
)
def test_a_head_of_the_same_labels_is_kept(
    save: Save, capsys: pytest.CaptureFixture[str], labels: tuple[str, ...] | None, count: int
) -> None:
    from transformers import BertForTokenClassification

    folder = save("BertForTokenClassification", labels=labels, count=count)
    model, new = token_classifier(folder)
    assert new == ()
    assert torch.equal(model.classifier.weight, BertForTokenClassification.from_pretrained(folder).classifier.weight)
    assert model.config.id2label == dict(enumerate(TAGS))
    assert SAID not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        pytest.param("BertForTokenClassification", {"labels": ("B-A", "O", "I-A")}, id="other-order"),
        pytest.param("BertForTokenClassification", {"labels": ("O", "B-X", "I-X")}, id="other-names"),
        pytest.param("BertForTokenClassification", {"labels": ("O", "B-A")}, id="fewer"),
        pytest.param("BertForTokenClassification", {"labels": None, "count": 5}, id="more-never-named"),
        pytest.param("BertForSequenceClassification", {"labels": TAGS}, id="of-texts"),
        pytest.param("BertForMultipleChoice", {"labels": None}, id="of-choices"),
    ],
)
def test_any_other_head_is_drawn_as_if_there_were_none(
    save: Save, capsys: pytest.CaptureFixture[str], kind: str, labels: dict[str, Any]
) -> None:
    folder = save(kind, **labels)
    model, new = token_classifier(folder)
    assert sorted(new) == sorted(HEAD)
    told = capsys.readouterr().err
    assert SAID in told
    assert f"is {kind} of {(labels['labels'] or ('LABEL_0',))[0]}, " in told
    assert "not O, B-A, I-A: " in told
    bare, drawn = token_classifier(save("BertModel"))
    assert drawn == new
    assert SAID not in capsys.readouterr().err
    assert torch.equal(model.classifier.weight, bare.classifier.weight)
    from transformers import AutoModel

    encoder = AutoModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(tensor, encoder[name]) for name, tensor in model.bert.state_dict().items())
    assert model.config.name_or_path == folder


@pytest.mark.parametrize("kind", KINDS)
def test_heads_of_every_architecture_are_told_from_the_rest(kind: str, tmp_path: Path) -> None:
    before = tiny(kind, num_labels=3)
    before.save_pretrained(tmp_path)
    names = {i: f"x{i}" for i in range(5)}
    model, new = load_with_head(str(tmp_path), "AutoModelForTokenClassification", names)
    held = before.state_dict()
    rest = {name: tensor for name, tensor in model.state_dict().items() if name not in new}
    assert new
    assert rest
    assert all(torch.equal(tensor, held[name]) for name, tensor in rest.items())


def test_ids_without_a_name_are_another_head(save: Save, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    folder = Path(save("BertForTokenClassification", labels=None, count=3))
    values = json.loads((folder / "config.json").read_text())
    names = {str(i): f"x{i}" for i in (1, 2, 3)}  # counted from one
    (folder / "config.json").write_text(json.dumps({**values, "id2label": names, "label2id": {}}))
    _, new = token_classifier(str(folder))
    assert sorted(new) == sorted(HEAD)
    assert SAID in capsys.readouterr().err


def test_sizes_that_differ_elsewhere_are_refused(save: Save) -> None:
    import json

    for labels in (TAGS, ("O", "B-X", "I-X")):
        folder = Path(save("BertForTokenClassification", labels=labels))
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**values, "vocab_size": 31}))
        with pytest.raises(CheckpointError):
            token_classifier(str(folder))


@pytest.mark.parametrize(
    ("labels", "carried"),
    [pytest.param(TAGS, False, id="kept"), pytest.param(("O", "B-X", "I-X", "B-Y"), True, id="new")],
)
def test_a_delta_carries_the_head_whole_only_where_it_is_new(
    save: Save, tmp_path: Path, labels: tuple[str, ...], carried: bool
) -> None:
    from subnetune import methods

    folder = save("BertForTokenClassification", labels=labels)
    model, new = token_classifier(folder)
    recipe = methods.get("bitfit").preset()
    tuning = Tuning(recipe, model, new=new)
    optimizer = tuning.optimizer(torch.optim.AdamW, lr=0.1)
    batch = {"input_ids": torch.arange(12).view(2, 6), "labels": torch.tensor([[-100, 1, 2, 0, 1, -100]] * 2)}
    tuning.forward(batch).loss.backward()
    tuning.step(optimizer)
    Delta.of(tuning, base_name="b").save(tmp_path / "d.safetensors")
    delta = Delta.load(tmp_path / "d.safetensors")
    assert (set(delta.new) == set(HEAD)) is carried
    assert bool(delta.new) is carried
    tuned = load(folder, delta)
    for name, tensor in tuning.model.state_dict().items():
        assert torch.equal(tuned.state_dict()[name], tensor), name
    base = load_base(folder, delta)
    assert base.config.id2label == dict(enumerate(TAGS))
