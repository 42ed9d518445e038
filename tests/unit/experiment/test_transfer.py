"""A tuned model on other tasks' dev sets: the published label maps, by a model whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import shared_folder
from subnetune.core.errors import DataError, NumericError, UsageError
from subnetune.experiment.config import RunConfig
from subnetune.experiment.fit import Fit
from subnetune.experiment.transfer import transfer_scores
from subnetune.tasks import find_task, load_task
from subnetune.tasks.label_maps import OTHER_QUESTIONS, inference_reading
from tiny_run import WORDS

THREE_WAY = ("entailment", "neutral", "contradiction")
TWO_WAY = ("entailment", "not_entailment")
ALL = ("mnli", "snli", "sick", "scitail", "rte", "qqp", "hans")
ANSWERS = ("cat", "dog", "bird")  # the first word of the first text is the number of what the model answers


class Answers(nn.Module):
    """A classifier that answers by the first word: 0 for cat, 1 for dog, the last class for bird."""

    def __init__(self, classes: Sequence[str], tokenizer: Any, problem_type: str | None = None) -> None:
        super().__init__()
        table = torch.zeros(len(tokenizer), len(classes))
        for answer, word in enumerate(ANSWERS):
            table[tokenizer.convert_tokens_to_ids(word), min(answer, len(classes) - 1)] = 1.0
        self.table = nn.Parameter(table)
        self.dropout = nn.Dropout(0.5)
        labels = dict(enumerate(classes))
        self.config = SimpleNamespace(problem_type=problem_type, id2label=labels, num_labels=len(classes))
        self.seen = 0

    def forward(self, input_ids: Tensor, **other: Tensor) -> SimpleNamespace:
        self.seen += len(input_ids)
        return SimpleNamespace(logits=self.dropout(self.table)[input_ids[:, 1]])  # after [CLS]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import BertTokenizer

    file = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    file.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    return BertTokenizer(str(file), model_max_length=32)


def table(file: Path, columns: Sequence[str] | None, *rows: tuple[str, ...]) -> None:
    """Write pairs of texts, the first of which says what the model answers, and their labels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [] if columns is None else ["\t".join(columns)]
    file.write_text("\n".join([*lines, *("\t".join(row) for row in rows)]) + "\n")


def pairs(*labels: str, last: Sequence[str] = ()) -> list[tuple[str, ...]]:
    """An example for each answer in turn, and its gold label."""
    more = last or [""] * len(labels)
    return [
        (f"{ANSWERS[i % 3]} sees", f"a {WORDS[i % len(WORDS)]}", label, *filter(None, [extra]))
        for i, (label, extra) in enumerate(zip(labels, more, strict=True))
    ]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    gold = ("sentence1", "sentence2", "gold_label")
    table(root / "MNLI" / "dev_matched.tsv", gold, *pairs("entailment", "neutral", "entailment"))
    table(root / "MNLI" / "dev_mismatched.tsv", gold, *pairs(*THREE_WAY))
    table(root / "snli" / "dev.tsv", gold, *pairs("entailment", "contradiction", "-", "entailment"))
    sick = ("sentence_A", "sentence_B", "entailment_judgment")
    table(root / "SICK" / "SICK_trial.txt", sick, *pairs("NEUTRAL", "NEUTRAL", "NEUTRAL"))
    scitail = root / "SciTailV1.1" / "tsv_format" / "scitail_1.0_dev.tsv"
    table(scitail, None, *pairs("entails", "neutral", "neutral", "neutral"))
    table(root / "RTE" / "dev.tsv", ("sentence1", "sentence2", "label"), *pairs("entailment", *TWO_WAY[1:] * 2))
    table(root / "QQP" / "dev.tsv", ("question1", "question2", "is_duplicate"), *pairs("1", "0", "1"))
    heuristics = ("lexical_overlap", "lexical_overlap", "subsequence")
    hans = pairs("entailment", "non-entailment", "entailment", last=heuristics)
    table(root / "hans" / "heuristics_evaluation_set.txt", (*gold, "heuristic"), *hans)
    return root


def run(data_dir: Path, task: str = "cola") -> RunConfig:
    values = {"task": task, "data_dir": str(data_dir), "max_length": 16, "eval_batch_size": 2}
    return RunConfig.from_values(values)


def third(count: int) -> Any:
    return pytest.approx(count / 3)


def test_a_three_way_model_on_every_set(tokenizer: Any, data_dir: Path) -> None:
    model = Answers(THREE_WAY, tokenizer)
    found, skipped, levels = transfer_scores(model, tokenizer, run(data_dir), ALL)
    assert list(levels) == list(found)
    assert levels["qqp"] == {"f1": pytest.approx(0.8), "accuracy": third(2)}  # of gold 1, 0, 1 always 1
    assert levels["hans"] == {"accuracy": third(2), "accuracy_lexical_overlap": 0.5, "accuracy_subsequence": 1.0}
    assert found == {
        "mnli/dev_matched": {"accuracy": third(2)},
        "mnli/dev_mismatched": {"accuracy": 1.0},
        "snli": {"accuracy": third(2)},  # answers e, n, e to gold e, c, e: what has no gold label is left out
        "sick": {"accuracy": third(1)},
        "scitail": {"accuracy": 0.75},  # contradiction means neutral; the fourth is answered with entailment
        "rte": {"accuracy": 1.0},
        "qqp": {"f1": third(2), "accuracy": third(2)},  # answers 1, 0, 0 to gold 1, 0, 1
        "hans": {"accuracy": third(2), "accuracy_lexical_overlap": 1.0, "accuracy_subsequence": 0.0},
    }
    assert next(iter(found)) == "mnli/dev_matched"
    assert skipped == {}


def test_a_two_way_model_answers_what_asks_for_entailment_or_not(tokenizer: Any, data_dir: Path) -> None:
    found, skipped, _ = transfer_scores(Answers(TWO_WAY, tokenizer), tokenizer, run(data_dir, "rte"), ALL)
    assert set(found) == {"scitail", "qqp", "hans"}  # it was trained on RTE
    assert found["qqp"]["f1"] == third(2)
    assert set(skipped) == {"mnli", "snli", "sick"}
    assert skipped["mnli"] == (
        "no published map from the model's classes (entailment, not_entailment) to entailment, neutral, contradiction"
    )


def test_the_task_of_the_run_and_what_is_named_twice(tokenizer: Any, data_dir: Path) -> None:
    model = Answers(THREE_WAY, tokenizer)
    found, skipped, _ = transfer_scores(model, tokenizer, run(data_dir, "mnli"), ("mnli", "snli", "SNLI", "rte"))
    assert (list(found), skipped) == (["snli", "rte"], {})
    assert model.seen == 3 + 3


def test_an_absent_set_is_listed_and_a_malformed_one_is_an_error(
    tokenizer: Any, data_dir: Path, tmp_path: Path
) -> None:
    model = Answers(THREE_WAY, tokenizer)
    table(tmp_path / "RTE" / "dev.tsv", ("sentence1", "sentence2", "label"), *pairs("entailment"))
    found, skipped, _ = transfer_scores(model, tokenizer, run(tmp_path), ("qqp", "sick", "rte"))
    assert set(found) == {"rte"}
    assert skipped == {
        "qqp": "GLUE qqp, split 'dev': no such file",
        "sick": "sick, split 'dev': no such file",
    }
    table(tmp_path / "snli" / "dev.tsv", ("sentence1", "sentence2", "gold_label"), *pairs("maybe"))
    with pytest.raises(DataError, match="dev.tsv, line 2: label 'maybe'"):
        transfer_scores(model, tokenizer, run(tmp_path), ("snli",))
    with pytest.raises(UsageError, match="unknown task 'snly'"):
        transfer_scores(model, tokenizer, run(tmp_path), ("snly",))


def test_a_sample_is_the_same_for_every_run(tokenizer: Any, tmp_path: Path) -> None:
    labels = ["entailment", "neutral", "neutral", "contradiction", "entailment", "neutral"] * 5
    table(tmp_path / "snli" / "dev.tsv", ("sentence1", "sentence2", "gold_label"), *pairs(*labels))
    model = Answers(THREE_WAY, tokenizer)
    for seed in (1, 2):
        config = run(tmp_path).model_copy(update={"seed": seed, "train_seed": seed})
        found, _, _ = transfer_scores(model, tokenizer, config, ("snli",), max_examples=12)
        split = load_task("snli", tmp_path, splits=("dev",)).evaluation["dev"].take(12, seed=0)
        assert split.labels is not None
        right = [ANSWERS.index(t.split()[0]) == y for t, y in zip(split.texts, split.labels, strict=True)]
        assert found["snli"]["accuracy"] == pytest.approx(sum(right) / 12)
        assert sorted(split.labels) == [0] * 4 + [1] * 6 + [2] * 2  # stratified
    assert model.seen == 24


def test_nothing_of_the_model_or_the_random_state_changes(tokenizer: Any, data_dir: Path) -> None:
    model = Answers(THREE_WAY, tokenizer).train()
    before, state = model.table.detach().clone(), torch.get_rng_state()
    transfer_scores(model, tokenizer, run(data_dir), ALL)
    assert model.training
    assert model.dropout.training
    assert torch.equal(model.table, before)
    assert model.table.grad is None
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("classes", "problem_type", "task", "reason"),
    [
        (("score",), "regression", "snli", "the model predicts scores, snli asks for the other"),
        (THREE_WAY, None, "stsb", "the model predicts classes, stsb asks for the other"),
        (("LABEL_0", "LABEL_1", "LABEL_2"), None, "snli", "no published map from the model's classes (LABEL_0"),
        (("not_equivalent", "equivalent"), None, "qqp", "no published map from the model's classes (not_equivalent"),
        (("contradiction", "neutral", "entailment"), None, "rte", "no published map from the model's classes (contr"),
        (THREE_WAY, None, "qnli", "no published map"),
    ],
)
def test_classes_that_no_map_leads_to(
    tokenizer: Any, data_dir: Path, classes: tuple[str, ...], problem_type: str | None, task: str, reason: str
) -> None:
    model = Answers(classes, tokenizer, problem_type)
    found, skipped, _ = transfer_scores(model, tokenizer, run(data_dir), (task,))
    assert found == {}
    assert skipped[task].startswith(reason)


def test_logits_that_are_not_numbers(tokenizer: Any, data_dir: Path) -> None:
    model = Answers(THREE_WAY, tokenizer)
    model.table.data.fill_(float("nan"))
    with pytest.raises(NumericError, match="qqp: 9 logits"):
        transfer_scores(model, tokenizer, run(data_dir), ("qqp",))


def test_the_maps_name_the_tasks_own_classes() -> None:
    for name in OTHER_QUESTIONS:
        reading = inference_reading(find_task(name))
        assert reading is not None
        assert set(reading) == set(find_task(name).labels)
    for name in ("rte", "hans", "scitail"):
        assert inference_reading(find_task(name)) == find_task(name).labels
    for name in ("mnli", "snli", "sick", "qnli", "wnli", "mrpc"):
        assert inference_reading(find_task(name)) is None


def test_what_a_map_makes_of_each_output() -> None:
    assert Fit(THREE_WAY, find_task("qqp")).reading == (1, 0, 0)
    assert Fit(TWO_WAY, find_task("qqp")).reading == (1, 0)
    assert Fit(TWO_WAY, find_task("qqp")).columns == TWO_WAY  # the model's outputs are not the task's, in order
    assert Fit(THREE_WAY, find_task("hans")).reading == (0, 1, 1)
    assert Fit(THREE_WAY, find_task("snli")).reading == (0, 1, 2)
    assert Fit(TWO_WAY, find_task("scitail")).columns == ("entails", "neutral")
    logits = torch.tensor([[0.0, 0.0, 1.0], [2.0, 1.0, 0.0], [0.0, 3.0, 0.0]])
    assert Fit(THREE_WAY, find_task("qqp")).predictions(logits).tolist() == [0, 1, 0]
    assert Fit((), find_task("stsb")).predictions(logits[:, :1]).tolist() == [[0.0], [2.0], [0.0]]


@pytest.mark.slow
def test_real_sets_by_a_model_that_always_says_entailment(tokenizer: Any) -> None:
    model = Answers(THREE_WAY, tokenizer)
    model.table.data[:, 0] = 2.0
    found, skipped, _ = transfer_scores(model, tokenizer, run(shared_folder("data"), "sst2"), ALL)
    assert {name: scores["accuracy"] for name, scores in found.items()} == pytest.approx(
        {
            "mnli/dev_matched": 333 / 1000,
            "mnli/dev_mismatched": 350 / 1000,
            "snli": 3329 / 9842,
            "rte": 146 / 277,
            "qqp": 383 / 1000,
            "hans": 1 / 2,
        }
    )
    heuristics = ("lexical_overlap", "subsequence", "constituent")
    assert all(found["hans"][f"accuracy_{name}"] == 1 / 2 for name in heuristics)
    assert skipped == {name: f"{name}, split 'dev': no such file" for name in ("sick", "scitail")}
