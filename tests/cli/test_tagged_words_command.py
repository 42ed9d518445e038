"""Token classification by the commands: train, evaluate (also elsewhere), predict, score and resume."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import minilm_folder, shared_folder
from ended import Ended
from ended import call as call_command
from subnetune.delta import Delta
from subnetune.experiment.config import RunConfig
from subnetune.experiment.grid.config import GridConfig
from tagged_case import make_tagged_root, sentences, write_conll
from tiny_run import run as run_here

Call = Callable[..., Ended]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def command(*arguments: object) -> Ended:
        return call_command(capsys, *arguments)

    return command


def options(root: Path, **changed: object) -> dict[str, object]:
    """A run of 14 steps on the files of `root`."""
    values: dict[str, object] = {
        "model": str(root / "model"),
        "train_file": str(root / "train.conll"),
        "dev_file": str(root / "dev.conll"),
        "method": "bitfit",
        "lr": 5e-3,
        "epochs": 2,
        "batch_size": 2,
        "accumulate": 2,
        "max_length": 16,
        "threads": 1,
        "output": str(root / "run"),
    }
    return values | changed


def named(root: Path, **changed: object) -> dict[str, object]:
    """The same on the tiny `ner:en` of `root`."""
    values = {k: v for k, v in options(root).items() if not k.endswith("_file")}
    return values | {"task": "ner:en", "data_dir": str(root / "data"), "output": str(root / "run-en")} | changed


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and tagged words, a run on own files in `run`, and one on `ner:en` in `run-en`."""
    root = make_tagged_root(tmp_path_factory.mktemp("words"))
    run_here(**options(root, method="full", epochs=6, lr=1e-2))
    run_here(**named(root))
    return root


def test_training_learns_and_evaluation_repeats_it(root: Path, call: Call) -> None:
    metrics = json.loads((root / "run/metrics.json").read_text())
    assert list(metrics["metrics"]) == ["f1", "precision", "recall", "token_accuracy"]
    assert metrics["value"] == metrics["metrics"]["f1"] > 0.5
    labels = json.loads((root / "run/labels.json").read_text())
    assert labels["kind"] == "tokens"
    assert labels["labels"] == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    found = call("evaluate", "--model", root / "model", "--dev-file", root / "dev.conll", "--delta", root / "run")
    assert found.code == 0, found.err
    assert found.last == f"f1 {metrics['value']:.6f}"
    assert f"dev token_accuracy {metrics['metrics']['token_accuracy']:.6f}" in found.out
    info = Delta.load(root / "run").info
    assert info.task_class == "BertForTokenClassification"
    assert list((info.labels or {}).values()) == labels["labels"]


def test_predictions_are_a_row_per_word(root: Path, call: Call, tmp_path: Path) -> None:
    file = write_conll(tmp_path / "words.conll", sentences(3, offset=100), "{0}")  # no tags
    found = call("predict", "--model", root / "model", "--dev-file", file, "--delta", root / "run")
    assert found.code == 0, found.err
    rows = list(csv.DictReader(io.StringIO(found.out)))
    words = [(str(i), str(k), word) for i, row in enumerate(sentences(3, 100)) for k, (word, _) in enumerate(row)]
    assert [(row["row"], row["word"], row["text"]) for row in rows] == words
    tags = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    assert list(rows[0]) == ["split", "row", "word", "text", "label", *tags]
    assert all(row["label"] == max(tags, key=lambda tag: float(row[tag])) for row in rows)


def test_scores_and_masks_of_a_run_on_words(root: Path, call: Call, tmp_path: Path) -> None:
    flags = ("--model", root / "model", "--train-file", root / "train.conll", "--max-length", 16, "--keep", 0.1)
    for estimator in ("batch", "per-sample"):
        output = tmp_path / f"{estimator}.safetensors"
        found = call("score", *flags, "--set", f"estimator={estimator}", "--batch-size", 8, "--output", output)
        assert found.code == 0, found.err
        assert re.fullmatch(r"sha256 [0-9a-f]{64}", found.last)


def test_a_tagger_is_evaluated_on_another_language_and_tag_set(root: Path, call: Call) -> None:
    flags = ("--model", root / "model", "--delta", root / "run-en", "--data-dir", root / "data")
    here = call("evaluate", *flags, "--task", "ner:de")
    assert here.code == 0, here.err
    assert here.last.startswith("f1 ")
    more = call("evaluate", *flags, "--task", "ner:masakhaner/yor")
    assert more.code == 0
    assert "the model has no tags B-DATE, I-DATE, which ner:masakhaner/yor annotates" in more.err
    other = call("evaluate", *flags, "--task", "ner:wnut17")
    assert (other.code, "is it another task's delta" in other.err) == (2, True)


def test_words_and_texts_do_not_mix(root: Path, call: Call, tmp_path: Path) -> None:
    (tmp_path / "RTE").mkdir()
    (tmp_path / "RTE/dev.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n")
    flags = ("--model", root / "model", "--delta", root / "run-en", "--data-dir", tmp_path)
    found = call("evaluate", *flags, "--task", "rte")
    assert (found.code, "the delta labels words, task 'rte' asks for labels of texts" in found.err) == (2, True)


def test_own_words_have_no_columns(root: Path, call: Call) -> None:
    flags = ("--model", root / "model", "--train-file", root / "train.conll", "--output", root / "none")
    found = call("train", *flags, "--label", "tag")
    assert (found.code, "no columns to name; leave out label" in found.err) == (2, True)
    found = call("train", *flags, "--text", "word", "--label", "tag", "--holdout", 0.2)
    assert (found.code, "for tagged words, which have no columns to name" in found.err) == (3, True)
    assert not RunConfig.from_values({"train_file": "a.csv", "text": "a"}).own_words


@pytest.mark.parametrize("method", ["bitfit", "child-tuning-d", "r-drop"])
def test_a_resumed_run_on_words_has_the_same_bits(root: Path, tmp_path: Path, method: str) -> None:
    whole = run_here(**named(root, method=method, save_steps=3, output=str(tmp_path / "whole")))
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    part = tmp_path / "part"
    for name in ("metrics.json", "delta.safetensors"):
        (part / name).unlink()
    for folder in (part / "checkpoints").iterdir():
        if folder.name != "step-3":
            shutil.rmtree(folder)
    again = run_here(**named(root, method=method, save_steps=3, output=str(part), resume=True))
    assert again.value == whole.value
    assert (part / "delta.safetensors").read_bytes() == (tmp_path / "whole/delta.safetensors").read_bytes()


def test_accumulated_batches_train_as_whole_ones(root: Path, tmp_path: Path) -> None:
    """Sentences have 3 to 12 words: the mean of the batches' means would be another gradient."""
    from transformers import AutoConfig

    shutil.copytree(root / "model", tmp_path / "model")
    config = AutoConfig.from_pretrained(tmp_path / "model")
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    config.save_pretrained(tmp_path / "model")
    same = {"model": str(tmp_path / "model"), "method": "full", "max_steps": 1, "clip": 0.0, "warmup": 0}
    deltas = []
    for size, accumulate in ((8, 1), (2, 4)):
        values = {"batch_size": size, "accumulate": accumulate, "output": str(tmp_path / f"run-{size}")}
        run_here(**named(root, **same, **values))
        log = (tmp_path / f"run-{size}/log.jsonl").read_text().splitlines()
        deltas.append(next(entry for line in log if "grad_norm" in (entry := json.loads(line))))
    assert deltas[0]["grad_norm"] == pytest.approx(deltas[1]["grad_norm"], rel=1e-4)
    assert deltas[0]["loss"] == pytest.approx(deltas[1]["loss"], rel=1e-5)


def test_sentences_without_a_known_word_are_left_out_of_training(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_conll(tmp_path / "train.conll", [[("\u200b", "B-PER")], *sentences(3), [("cat", "I-PER"), ("dog", "I-LOC")]])
    values = options(root, train_file=str(tmp_path / "train.conll"), batch_size=1, output=str(tmp_path / "run"))
    assert torch.isfinite(torch.tensor(run_here(**values, max_steps=4).value))
    said = capsys.readouterr().err
    assert "1 examples have no word that the tokenizer knows: left out" in said
    assert "train: 2 tags I-X follow no B-X or I-X" in said


def test_a_primed_head_is_kept_and_another_is_not(root: Path, tmp_path: Path, call: Call) -> None:
    """A checkpoint that was tuned for the same tags goes on with its head; for other tags it gets a new one."""
    merged = call("delta", "apply", root / "run-en", "--model", root / "model", "--output", tmp_path / "tuned")
    assert merged.code == 0, merged.err
    kept = run_here(**named(root, model=str(tmp_path / "tuned"), task="ner:de", output=str(tmp_path / "kept")))
    assert not Delta.load(kept.path).new
    drawn = run_here(**options(root, model=str(tmp_path / "tuned"), output=str(tmp_path / "drawn")))
    assert sorted(Delta.load(drawn.path).new) == ["classifier.bias", "classifier.weight"]
    for result, more in (
        (kept, ("--task", "ner:de", "--data-dir", root / "data")),
        (drawn, ("--dev-file", root / "dev.conll")),
    ):
        found = call("evaluate", "--model", tmp_path / "tuned", "--delta", result.path, *more)
        assert found.last == f"f1 {result.value:.6f}", found.err


def test_grids_of_words_take_no_probes() -> None:
    values = {"tasks": ["ner:en", "ner:de"], "methods": ["full"], "seeds": [1], "data_dir": "data"}
    assert GridConfig.from_values({**values, "transfer": ["ner:nl"]}).transfer == ("ner:nl",)
    own = {"mine": {"train_file": "a.conll", "dev_file": "b.conll"}}
    assert "mine" in GridConfig.from_values({**values, "tasks": own}).tasks
    for wrong, message in (
        ({"probes": ["cola"]}, "models of 'ner:en' label words"),
        ({"probes": ["ner:nl"], "tasks": ["rte"]}, "ner:nl labels words"),
        ({"probes": ["cola"], "tasks": own}, "models of 'mine' label words"),
        ({"transfer": ["ner:xx"]}, "unknown task 'ner:xx'"),
    ):
        with pytest.raises(ValueError, match=message):
            GridConfig.from_values({**values, **wrong})


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::subnetune.tasks.DataWarning")  # WikiAnn has sentences in train and dev
def test_english_entities_are_learned_and_carried_to_german(tmp_path: Path, call: Call) -> None:
    minilm_folder()
    data = shared_folder("data", "ner").parent
    flags = ("--model", "minilm", "--data-dir", data, "--max-length", 32, "--max-eval", 100)
    tuning = ("--method", "full", "--max-train", 200, "--epochs", 4, "--batch-size", 8, "--lr", "3e-4", "--threads", 1)
    trained = call("train", *flags, *tuning, "--task", "ner:en", "--output", tmp_path / "run")
    assert trained.code == 0, trained.err
    assert float(trained.last.split()[1]) > 0.25
    german = call("evaluate", *flags, "--task", "ner:de", "--delta", tmp_path / "run")
    assert german.code == 0
    assert float(german.last.split()[1]) > 0.1
