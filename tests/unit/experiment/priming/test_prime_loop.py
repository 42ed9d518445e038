"""A priming from options to a checkpoint of transformers: what it leaves, what it refuses, and that it resumes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny_run
from prime_case import make_prime_root, options, run_prime
from subnetune.core.errors import CheckpointError, NumericError, UsageError
from subnetune.experiment import environment
from subnetune.experiment.checkpoint import committed
from subnetune.experiment.priming import loop
from subnetune.prepare.priming.primer import Primer
from subnetune.prepare.set_dropout import SetDropout

PLAIN = {"config.json", "model.safetensors", "README.md", "tokenizer.json", "tokenizer_config.json", "vocab.txt"}
OURS = {".lock", "prime.yaml", "log.jsonl", "metrics.json", "environment.json"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_prime_root(tmp_path)


@pytest.fixture(scope="module")
def primed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a finished priming for BitFit in `primed`."""
    root = make_prime_root(tmp_path_factory.mktemp("primed"))
    run_prime(**options(root, save_steps=1))
    return root


@pytest.fixture(autouse=True)
def no_thread_change() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the process end in the middle of outer step `step`, as a kill would end it."""
    take = Primer.step

    def until(self: Primer) -> Any:
        if self.index == step:
            raise KeyboardInterrupt
        return take(self)

    monkeypatch.setattr(Primer, "step", until)


def test_it_leaves_a_plain_checkpoint_that_explains_itself(primed: Path) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    folder = primed / "primed"
    assert {path.name for path in folder.iterdir()} == PLAIN | OURS  # no checkpoints: it is finished
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert AutoConfig.from_pretrained(folder).id2label == {0: "against", 1: "for"}
    assert AutoTokenizer.from_pretrained(folder)("the cat")["input_ids"] == [2, 5, 7, 3]
    base = weights(primed / "model")
    assert {name.removeprefix("bert.") for name in model.state_dict()} == {
        *base,
        "classifier.weight",
        "classifier.bias",
    }
    moved = [name for name, tensor in base.items() if not torch.equal(tensor, model.bert.state_dict()[name])]
    assert {"encoder.layer.0.attention.self.query.weight", "embeddings.word_embeddings.weight"} <= {*moved}
    assert oct((folder / "model.safetensors").stat().st_mode) == oct((folder / "README.md").stat().st_mode)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["status"] == "finished"
    assert (metrics["steps"], metrics["gradient_evaluations"]) == (3, 3 * 2 * (2 + 1))
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [1, 2, 3]
    assert log[-1]["loss"] == metrics["loss"]
    assert log[0]["lr"] == 1e-3 > log[1]["lr"]
    assert set(log[0]) == {"step", "loss", "lr", "grad_norm", "support_loss", "seconds"}


def test_the_card_says_what_and_how_and_nothing_of_the_machine(primed: Path) -> None:
    folder = primed / "primed"
    card = (folder / "README.md").read_text()
    assert card.startswith('---\nlibrary_name: transformers\ntags: ["subnetune", "priming", "bitfit"]\n---\n')
    about = json.loads((folder / "environment.json").read_text())
    for told in ("# model, primed for bitfit", "Recipe(scope=Scope(selected=('@bias',)", "inner_lr: 0.1", "fomaml"):
        assert told in card
    for told in (about["base"], about["data"]["demo"], "| `demo` | 40 |", "gradient evaluations: 18"):
        assert told in card
    for file in PLAIN | {"environment.json", "metrics.json"}:
        assert str(primed).encode() not in (folder / file).read_bytes(), file


def test_training_starts_from_it_as_from_any_model(primed: Path) -> None:
    tiny_run.make_examples(primed / "train.csv", 12)
    tiny_run.make_examples(primed / "dev.csv", 6, offset=100)
    own = {"model": str(primed / "primed"), "method": "bitfit", "keep": None, "epochs": 1}
    assert tiny_run.run(**tiny_run.options(primed, **own)).finished


def test_a_finished_priming_is_left_alone(primed: Path) -> None:
    folder = primed / "primed"
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    result = run_prime(**options(primed, resume=True))
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    assert {**after, ".lock": None} == {**before, ".lock": None}
    assert result.loss == json.loads(before["metrics.json"][0])["loss"]
    with pytest.raises(UsageError, match="holds a finished run already; add --resume"):
        run_prime(**options(primed))
    with pytest.raises(UsageError, match="inner_lr: the run has 0.1, now 0.2"):
        run_prime(**options(primed, resume=True, inner_lr=0.2))
    assert {path.name for path in folder.iterdir()} == set(before)


@pytest.mark.parametrize(
    "changed",
    [
        {"inner_rates": "learned"},
        {"for": "lora", "head": "fresh"},
        pytest.param({"for": "child-tuning-d", "keep": 0.3, "algorithm": "reptile"}, marks=pytest.mark.slow),
        pytest.param({"for": "r-drop", "dropout": True}, marks=pytest.mark.slow),
    ],
    ids=["learned-rates", "lora-fresh", "fisher-reptile", "dropout"],
)
def test_stopped_and_resumed_ends_with_the_same_bits(
    root: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    whole = run_prime(**options(root, **changed, output=str(root / "whole")))
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(SystemExit):
            run_prime(**options(root, **changed, save_steps=1))
    folder = root / "primed"
    assert [path.name for path in committed(folder / "checkpoints")] == ["step-1", "step-2"]
    assert not {path.name for path in folder.iterdir()} & PLAIN  # what is not finished is no model
    torch.rand(3)  # no global random state counts
    resumed = run_prime(**options(root, **changed, resume=True, save_steps=1))
    assert (folder / "model.safetensors").read_bytes() == (root / "whole/model.safetensors").read_bytes()
    assert (resumed.loss, resumed.rates) == (whole.loss, whole.rates)
    logs = [(run / "log.jsonl").read_text().splitlines() for run in (folder, root / "whole")]
    assert [json.loads(line)["loss"] for line in logs[0]] == [json.loads(line)["loss"] for line in logs[1]]
    assert bool(whole.rates) == ("inner_rates" in changed)


def test_what_a_kill_while_the_model_is_written_leaves_is_no_model(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*args: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    run_prime(**options(root, output=str(root / "whole")))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_card", write)  # the weights are written by then
        with pytest.raises(SystemExit):
            run_prime(**options(root, save_steps=2))
    assert not {path.name for path in (root / "primed").iterdir()} & PLAIN
    run_prime(**options(root, resume=True, save_steps=2))
    assert (root / "primed/model.safetensors").read_bytes() == (root / "whole/model.safetensors").read_bytes()
    assert {path.name for path in (root / "primed").iterdir()} == PLAIN | OURS


def test_other_data_are_refused_on_a_resume(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(SystemExit):
            run_prime(**options(root, save_steps=1))
    tiny_run.make_model(root / "other", seed=1)
    (root / "other/model.safetensors").replace(root / "model/model.safetensors")
    with pytest.raises(CheckpointError, match="its base model were"):
        run_prime(**options(root, resume=True))


def test_without_a_checkpoint_it_starts_over(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(SystemExit):
            run_prime(**options(root))
    run_prime(**options(root, resume=True))
    assert len((root / "primed/log.jsonl").read_text().splitlines()) == 3


def test_a_loss_that_is_not_finite_marks_the_priming_failed(root: Path) -> None:
    with pytest.raises(NumericError, match=r"priming: the query loss is .* in outer step"):
        run_prime(**options(root, inner_lr=1e30))
    metrics = json.loads((root / "primed/metrics.json").read_text())
    assert metrics["status"] == "failed"
    assert metrics["error"] == "NumericError"
    assert not (root / "primed/config.json").exists()


def test_a_fresh_head_stays_out_and_the_encoder_is_the_one_that_was_primed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoConfig, AutoModel

    held: dict[str, torch.Tensor] = {}
    write = loop.write_model

    def watched(model: Any, *args: Any, **more: Any) -> None:
        held.update({name: tensor.clone() for name, tensor in model.bert.state_dict().items()})
        write(model, *args, **more)

    monkeypatch.setattr(loop, "write_model", watched)
    result = run_prime(**options(root, head="fresh"))
    model = AutoModel.from_pretrained(root / "primed")
    assert list(model.state_dict()) == list(held)
    assert all(torch.equal(tensor, held[name]) for name, tensor in model.state_dict().items())
    before, after = (AutoConfig.from_pretrained(root / name) for name in ("model", "primed"))
    assert after.to_diff_dict() == before.to_diff_dict()
    assert result.total - result.trained == 2 * 16 + 2


def test_gradient_checkpointing_changes_nothing_and_is_off_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    write = loop.write_model

    def watched(model: Any, *args: Any, **more: Any) -> None:
        seen.append(model.is_activation_checkpointing)
        write(model, *args, **more)

    run_prime(**options(root, output=str(root / "plain")))
    monkeypatch.setattr(loop, "write_model", watched)
    take = Primer.step
    monkeypatch.setattr(
        Primer, "step", lambda self: (seen.append(self.learner.model.is_activation_checkpointing), take(self))[1]
    )  # type: ignore[func-returns-value]
    run_prime(**options(root, checkpointing=True))
    assert seen == [True, True, True, False]
    for file in ("model.safetensors", "config.json"):
        assert (root / "primed" / file).read_bytes() == (root / "plain" / file).read_bytes()


def test_bfloat16_is_the_forward_passes_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_prime(**options(root, output=str(root / "whole")))
    monkeypatch.setattr(environment, "has_bf16", lambda device: True)  # emulated where the machine has none
    result = run_prime(**options(root, bf16=True))
    assert result.loss != whole.loss
    assert result.loss == pytest.approx(whole.loss, abs=0.05)
    assert {tensor.dtype for tensor in weights(root / "primed").values()} == {torch.float32}


def test_joint_training_is_the_case_without_inner_steps(root: Path) -> None:
    result = run_prime(**options(root, **{"for": "full"}, inner_steps=0, task_batch=3))
    assert result.gradient_evaluations == 3 * 3
    assert result.loss == pytest.approx(result.support_loss)


WITHOUT_US = """
import sys
sys.modules["subnetune"] = None  # importing it fails
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

folder = sys.argv[1]
model, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
assert not report["missing_keys"] and not report["unexpected_keys"], report
adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2))
batch = AutoTokenizer.from_pretrained(folder)(["the cat", "a dog sees"], padding=True, return_tensors="pt")
adapted(**batch, labels=torch.tensor([0, 1])).loss.backward()
assert any("lora_" in name and p.grad is not None for name, p in adapted.named_parameters())
print("loaded")
"""


@pytest.mark.slow
def test_primed_for_lora_it_loads_without_this_package(root: Path) -> None:
    result = run_prime(**options(root, **{"for": "lora"}))
    assert result.adapted != result.total  # the adapter and the head, not the model
    plain = run_prime(**options(root, output=str(root / "bitfit")))
    assert plain.total == result.total
    assert list(weights(root / "primed")) == list(weights(root / "bitfit"))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_US, str(root / "primed")], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "loaded", done.stderr


def test_dropout_and_modes_of_the_tower_are_put_back(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[set[float]] = []
    write = loop.write_model

    def watched(model: Any, *args: Any, **more: Any) -> None:
        rates.append({m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)})
        write(model, *args, **more)

    monkeypatch.setattr(loop, "write_model", watched)
    run_prime(**options(root, steps=1))
    assert rates == [{0.1}]
    assert SetDropout(0.0).p == 0.0
