"""Words and sub-words: which sub-word carries a tag, what is lost counts as O, and padding changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from subnetune.core.errors import DataError, NumericError, UsageError
from subnetune.experiment.alignment import IGNORED
from subnetune.experiment.data import Collator, Encoded, encode, plan_epoch
from subnetune.experiment.evaluate import measure
from subnetune.experiment.fit import Fit, tags_agree
from subnetune.experiment.words import predict_words, tag_words, word_rows
from subnetune.tasks.conll import tag_set
from subnetune.tasks.ner import METRICS, tagged_split
from subnetune.tasks.types import Split, Task

TASK = Task("toy", "tokens", tag_set(("LOC", "PER")), METRICS, pair=False)
PIECES = ["new", "york", "##ers", "##s", "a", "b", "34", "470"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import BertTokenizer

    path = tmp_path_factory.mktemp("pieces") / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES]) + "\n")
    return BertTokenizer(str(path), model_max_length=64)


def byte_level(kind: str, prefix: bool = False) -> Any:
    import transformers
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters, "ĠN", "ew", "ĠNew"]
    vocabulary = {name: i for i, name in enumerate(names)}
    merges = [("Ġ", "N"), ("e", "w"), ("ĠN", "ew")]
    made = getattr(transformers, kind)(vocab=vocabulary, merges=merges, pad_token="<pad>", add_prefix_space=prefix)
    made.model_max_length = 64
    return made


def split(*rows: str, tags: list[list[str]] | None = None) -> Split:
    return tagged_split([row.split("|") for row in rows], tags, TASK, "dev")


def test_the_first_sub_word_carries_the_tag(bert: Any) -> None:
    words = split("New|Yorkers|34 470|\u200b|b", tags=[["B-LOC", "I-LOC", "O", "B-PER", "I-PER"]])
    found = encode(words, TASK, bert, 64)
    pieces = bert.convert_ids_to_tokens(found.examples[0]["input_ids"])
    assert pieces == ["[CLS]", "new", "york", "##ers", "34", "470", "b", "[SEP]"]
    assert found.examples[0]["labels"] == [IGNORED, 1, 2, IGNORED, 0, IGNORED, 4, IGNORED]
    assert found.places == [[1, 2, 4, -1, 6]]  # a zero-width space is nothing to this tokenizer
    assert (found.labels, found.counts) == (None, [4])


def test_words_beyond_the_maximum_length_are_lost(bert: Any) -> None:
    found = encode(split("a|yorkers|b|a", tags=[["O", "B-PER", "O", "B-LOC"]]), TASK, bert, 5)
    assert found.places == [[1, 2, -1, -1]]
    assert found.examples[0]["labels"] == [IGNORED, 0, 3, IGNORED, IGNORED]


def test_a_split_without_tags_has_no_labels(bert: Any) -> None:
    found = encode(split("a|b"), TASK, bert, 8)
    assert "labels" not in found.examples[0]
    assert found.places == [[1, 2]]


@pytest.mark.parametrize("kind", ["GPT2TokenizerFast", "RobertaTokenizerFast"])
def test_byte_level_words_have_the_space_that_they_have_in_a_text(kind: str) -> None:
    words = split("New|New|w", tags=[["B-LOC", "I-LOC", "O"]])
    plain, prefixed = (encode(words, TASK, byte_level(kind, prefix), 32) for prefix in (False, True))
    assert plain == prefixed
    ids = byte_level(kind).convert_ids_to_tokens(plain.examples[0]["input_ids"])
    assert [ids[place] for place in (plain.places or [])[0]] == ["ĠNew", "ĠNew", "Ġ"]


def test_tokenizers_that_cannot_be_aligned_are_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(UsageError, match="Slow does not know which word"):
        encode(split("a", tags=[["O"]]), TASK, Slow(), 8)
    with pytest.raises(DataError, match="no examples"):
        encode(split(), TASK, Slow(), 8)
    with pytest.raises(DataError, match="no words to tag"):
        encode(Split(["a"], None, None, name="dev"), TASK, Slow(), 8)


@pytest.mark.parametrize("side", ["right", "left"])
def test_labels_are_padded_where_the_tokens_are(bert: Any, side: str) -> None:
    found = encode(split("a", "a|b|b", tags=[["B-PER"], ["O", "O", "B-LOC"]]), TASK, bert, 16)
    bert.padding_side = side
    batch = Collator(bert, torch.device("cpu"))(found, [0, 1])
    bert.padding_side = "right"
    short = [IGNORED, 3, IGNORED]
    padded = [*short, IGNORED, IGNORED] if side == "right" else [IGNORED, IGNORED, *short]
    assert batch["labels"].tolist() == [padded, [IGNORED, 0, 0, 1, IGNORED]]
    assert (batch["labels"] != IGNORED).le(batch["attention_mask"].bool()).all()
    assert found.select([1, 0]).examples == found.examples[::-1]


class Echo(nn.Module):
    """Says tag 3 (B-PER) of the token `a`, tag 2 (I-LOC) of `york`, and O of all else; the loss of nothing."""

    def __init__(self, tokenizer: Any, value: float = 9.0) -> None:
        super().__init__()
        self.say = {tokenizer.convert_tokens_to_ids("a"): 3, tokenizer.convert_tokens_to_ids("york"): 2}
        self.value = value

    def forward(self, input_ids: Tensor, **_: Tensor) -> Any:
        from types import SimpleNamespace

        logits = torch.zeros(*input_ids.shape, 5)
        logits[..., 0] = 1.0
        for token, tag in self.say.items():
            logits[..., tag][input_ids == token] = self.value
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("side", ["right", "left"])
def test_what_is_said_of_words(bert: Any, side: str) -> None:
    words = split("b|a|yorkers|\u200b", "a", tags=[["B-LOC", "B-PER", "I-PER", "B-PER"], ["B-PER"]])
    found = encode(words, TASK, bert, 16)
    bert.padding_side = side
    collate = Collator(bert, torch.device("cpu"))
    said = predict_words(Echo(bert), found, collate, 2)
    scores = measure(Echo(bert), TASK, {"dev": (words, found)}, collate, 2)
    bert.padding_side = "right"
    assert [tuple(row.shape) for row in said] == [(3, 5), (1, 5)]
    assert tag_words(said, found, Fit(TASK.labels, TASK)) == [[0, 3, 2, 0], [3]]
    # True: LOC 0-0, PER 1-2, PER 3-3 (lost, so missed), PER 0-0. Said: PER 1-1, LOC 2-2, PER 0-0.
    expected = {"f1": 2 / 7, "precision": 1 / 3, "recall": 1 / 4, "token_accuracy": 2 / 5}
    assert scores["dev"] == pytest.approx(expected)
    rows = list(word_rows("dev", words, said, found, Fit(TASK.labels, TASK)))
    assert [row[:5] for row in rows[1:5]] == [
        ["dev", 0, 1, "a", "B-PER"],
        ["dev", 0, 2, "yorkers", "I-LOC"],
        ["dev", 0, 3, "\u200b", "O"],
        ["dev", 1, 0, "a", "B-PER"],
    ]
    assert rows[3][5:] == [""] * 5
    assert sum(map(float, rows[4][5:])) == pytest.approx(1.0, abs=1e-5)


def test_logits_that_are_no_numbers_are_an_error(bert: Any) -> None:
    words = split("a", tags=[["O"]])
    found = encode(words, TASK, bert, 8)
    said = predict_words(Echo(bert, float("nan")), found, Collator(bert, torch.device("cpu")), 1)
    with pytest.raises(NumericError, match="1 logits are not finite"):
        tag_words(said, found, Fit(TASK.labels, TASK))


def test_a_step_is_the_mean_over_its_labels_however_it_is_cut() -> None:
    counts = [1, 5, 2, 4]
    (together,) = plan_epoch(range(4), 4, 1, counts=counts)
    (cut,) = plan_epoch(range(4), 2, 2, counts=counts)
    assert [micro.weight for micro in together] == [1.0]
    assert [micro.weight for micro in cut] == [6 / 12, 6 / 12]
    (uneven,) = plan_epoch(range(3), 2, 2, counts=counts)
    assert [micro.weight for micro in uneven] == [6 / 8, 2 / 8]
    ranks = [plan_epoch(range(4), 1, 2, rank, 2, counts)[0] for rank in range(2)]
    assert [[micro.weight for micro in rank] for rank in ranks] == [[2 / 12, 4 / 12], [10 / 12, 8 / 12]]


def test_tags_are_matched_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    other = ("O", *TASK.labels[:0:-1])
    assert Fit.of(other, TASK).reading == (0, 4, 3, 2, 1)
    more = tag_set(("DATE", "LOC", "PER"))
    assert Fit.of(more, TASK).reading == (0, 0, 0, 1, 2, 3, 4)
    assert "does not annotate what the model tags B-DATE, I-DATE: read as O" in capsys.readouterr().err
    assert Fit.of(("O", "B-PER", "I-PER"), TASK).reading == (0, 3, 4)
    assert "the model has no tags B-LOC, I-LOC, which toy annotates" in capsys.readouterr().err
    assert Fit.of(more, TASK).columns == more
    with pytest.raises(UsageError, match="is it another task's delta"):
        Fit.of(tag_set(("DATE", "LOC")), TASK)


@pytest.mark.parametrize(
    ("one", "agree"),
    [
        (("O", "B-LOC", "I-LOC"), True),
        (("B-LOC", "I-LOC"), False),
        (("O",), False),
        (("O", "B-x", "I-x"), False),
        (("yes", "no"), False),
        (tag_set(("LOC", "ORG", "PER")), True),
        (tag_set(("LOC", "ORG")), False),
    ],
)
def test_tag_sets_agree_where_one_is_among_the_other(one: tuple[str, ...], agree: bool) -> None:
    assert tags_agree(one, TASK.labels) is tags_agree(TASK.labels, one) is agree


def test_an_encoded_split_of_texts_has_one_label_an_example() -> None:
    assert Encoded([{"input_ids": [1]}], torch.tensor([0])).counts is None


def test_a_model_across_tasks_is_of_words_or_of_texts() -> None:
    from tiny import tiny

    names = {"id2label": dict(enumerate(TASK.labels)), "label2id": {label: i for i, label in enumerate(TASK.labels)}}
    tagger, classifier = (tiny("bert", kind, **names) for kind in ("TokenClassification", "SequenceClassification"))
    text = Task("text", "classification", TASK.labels, ("accuracy",), pair=False)
    wider = Task("wider", "tokens", tag_set(("LOC", "ORG", "PER")), METRICS, pair=False)
    assert Fit.across(tagger, wider).reading == (0, 1, 2, 5, 6)
    assert Fit.across(classifier, text).classes == TASK.labels
    with pytest.raises(UsageError, match="the model labels words, text asks for labels of texts"):
        Fit.across(tagger, text)
    with pytest.raises(UsageError, match="the model labels texts, toy asks for labels of words"):
        Fit.across(classifier, TASK)
    with pytest.raises(UsageError, match="no published map"):
        Fit.across(tagger, Task("date", "tokens", tag_set(("DATE",)), METRICS, pair=False))
