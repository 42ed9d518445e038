"""A run's options: ranges in the user's words, files and flags, defaults from the card (faults 46 to 49)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from subnetune.core.errors import UsageError
from subnetune.experiment.config import RunConfig, build_recipe, load_config, resolve
from subnetune.experiment.names import run_name
from subnetune.experiment.strict_yaml import parse_mapping
from subnetune.methods import METHODS, bitfit, child_tuning_d

NAN, INF = float("nan"), float("inf")


def run(**values: object) -> RunConfig:
    return RunConfig.from_values({"task": "rte", **values})


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        *(("keep", value, "a number in (0, 1]") for value in (0, -0.1, 1.5, NAN, INF, "abc", True, "0.3")),
        *(("cycle", value, "a number in (0, 1]") for value in (0.0, 1.01, True)),
        *(("lr", value, "a number above 0") for value in (-1e-5, 0, NAN, INF, "2e-5", "no", True)),
        *(("epochs", value, "an integer of at least 1") for value in (0, -3, 1.5, True, "3")),
        *(("batch_size", value, "an integer of at least 1") for value in (0, -1, 2.0, True)),
        *(("eval_batch_size", value, "an integer of at least 1") for value in (0, None)),
        *(("accumulate", value, "an integer of at least 1") for value in (0, -1, True)),
        *(("max_steps", value, "an integer of at least 1") for value in (0, -1, True)),
        *(("max_length", value, "an integer from 4") for value in (0, 3, 10**7)),
        *(("weight_decay", value, "a number in [0, 1]") for value in (-0.1, 1.1, NAN)),
        *(("clip", value, "a number of at least 0") for value in (-1, NAN, INF)),
        *(("warmup", value, "steps from 0, or a share") for value in (-1, -0.1, 1.0, 2.5, NAN, True, "0.1")),
        *(("seed", value, "an integer from 0") for value in (-1, 2**32, 1.0, True)),
        *(("schedule", value, "linear, constant or stlr") for value in ("lineer", 1)),
        *(("policy", value, "last or best") for value in ("first",)),
        *(("engine", value, "auto, reference, packed or fused") for value in ("quick", True)),
        *(("gradients", value, "dense, lean or selected") for value in ("none",)),
        *(("holdout", value, "a number in (0, 1)") for value in (0, 1, 1.0, True)),
        *(("bf16", value, "true or false") for value in ("no", 1, 0)),
        *(("resume", value, "true or false") for value in ("yes",)),
        *(("with", value, "names of pieces") for value in (True, 1)),
        *(("output", value, "a folder") for value in ("", 3)),
        *(("model", value, "a name or folder") for value in ("", None, 7)),
    ],
)
def test_a_value_outside_its_range_is_refused_with_the_range(name: str, value: object, allowed: str) -> None:
    with pytest.raises(UsageError) as error:
        run(**{name: value})
    message = str(error.value)
    assert message.startswith(f"{name}: got {value!r}, allowed is {allowed}")
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("keep", 1),
        ("keep", 1e-6),
        ("warmup", 0),
        ("warmup", 100),
        ("warmup", 0.1),
        ("clip", 0),
        ("lr", 1e-5),
        ("seed", 0),
    ],
)
def test_a_value_on_the_edge_of_its_range_is_kept(name: str, value: float) -> None:
    assert getattr(run(**{name: value}), name) == value
    assert not isinstance(getattr(run(**{name: value}), name), bool)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(UsageError) as error:
        run(keep=2, lr=-1, lrr=1)
    assert str(error.value).splitlines() == [
        "keep: got 2, allowed is a number in (0, 1]",
        "lr: got -1, allowed is a number above 0 and at most 10",
        "unknown option 'lrr'; did you mean 'lr'?",
    ]


def test_a_run_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        run().lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"train_file": "a.csv"}, "own files need the name of their text column"),
        ({"task": "rte", "train_file": "a.csv", "text": ["a"]}, "task 'rte' knows its own files"),
        ({"task": "rte", "label": "gold"}, "task 'rte' knows its own files and columns; leave out label"),
        ({"text": ["a"], "label": "b"}, "describe own files; give --train-file or --dev-file"),
        ({"train_file": "a.csv", "dev_file": "b.csv", "text": ["a"], "holdout": 0.1}, "leave out dev_file"),
        ({"train_file": "a.csv", "text": ["a", "b", "c"]}, "text: got ['a', 'b', 'c'], allowed is one or two columns"),
    ],
)
def test_options_that_do_not_go_together(values: dict[str, object], what: str) -> None:
    with pytest.raises(UsageError) as error:
        RunConfig.from_values(values)
    assert what in str(error.value)


def test_the_errors_of_a_file_have_lines_and_flags_win(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("task: rte\nlr: 1e-5\nkeep: 3\noptions:\n  per: tensor\n  mode: eval\n")
    with pytest.raises(UsageError, match=r"run.yaml, line 3: keep: got 3, allowed is a number in \(0, 1\]"):
        load_config(file, {})
    found = load_config(file, {"keep": 0.3, "options": {"mode": "train"}})
    assert (found.lr, found.keep) == (1e-5, 0.3)
    assert found.options == {"per": "tensor", "mode": "train"}
    with pytest.raises(UsageError, match=r"^keep: got 5"):  # the flag's fault, not the file's
        load_config(file, {"keep": 5})
    file.write_text("task: rte\n\nkep: 0.3\n")
    with pytest.raises(UsageError, match=r"run.yaml, line 3: unknown option 'kep'; did you mean 'keep'"):
        load_config(file, {})
    file.write_text("task: rte\nset: {keep: 0.3}\n")
    with pytest.raises(UsageError, match=r"line 2: unknown option 'set'; what --set gives is `options:"):
        load_config(file, {})


def test_one_name_in_a_file_stands_for_a_list_of_one(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("train_file: a.csv\nholdout: 0.2\ntext: first, second\nwith: hold-unselected\n")
    run = load_config(file, {})
    assert run.text == ("first", "second")
    assert run.with_ == ("hold-unselected",)


def test_what_is_written_back_is_the_same_run(tmp_path: Path) -> None:
    whole = resolve(
        RunConfig.from_values(
            {
                "train_file": "no",
                "text": ["yes", "1e-5"],
                "label": "010",
                "method": "child-tuning-d",
                "keep": 0.2,
                "options": {"per": "tensor", "samples": 12, "exact": True},
                "with": [],
                "output": str(tmp_path / "a: b # c"),
            }
        )
    )
    file = tmp_path / "config.yaml"
    file.write_text(whole.to_yaml(), encoding="utf-8")
    assert load_config(file, {}) == whole
    assert RunConfig.from_values(parse_mapping(whole.to_yaml(), "x").values).values() == whole.values()


@pytest.mark.parametrize("method", METHODS)
def test_the_card_fills_what_is_unset_and_nothing_else(method: str) -> None:
    defaults = METHODS[method].card.defaults
    found = resolve(run(method=method))
    assert (found.lr, found.schedule, found.warmup) == (defaults.lr, defaults.schedule, defaults.warmup)
    assert (found.batch_size, found.epochs, found.weight_decay) == (
        *(defaults.batch_size, defaults.epochs),
        defaults.weight_decay,
    )
    assert found.clip == (defaults.clip or 0.0)
    assert resolve(found) == found
    chosen = resolve(run(method=method, lr=0.5, warmup=7, epochs=9, clip=0))
    assert (chosen.lr, chosen.warmup, chosen.epochs, chosen.clip) == (0.5, 7, 9, 0.0)


def test_options_reach_the_preset() -> None:
    values: dict[str, Any] = {"method": "child-tuning-d", "keep": 0.2, "options": {"per": "tensor", "samples": 3}}
    assert build_recipe(run(**values)) == child_tuning_d(keep=0.2, per="tensor", samples=3)
    assert build_recipe(run(method="bitfit", options={"terms": "query"})) == bitfit(terms=("query",))
    assert build_recipe(run(method="bitfit", options={"terms": ["query", "key"]})) == bitfit(terms=("query", "key"))


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"method": "child-tuning-e"}, "did you mean 'child-tuning-"),
        ({"task": "rtee"}, "did you mean 'rte'"),
        ({"method": "bitfit", "keep": 0.3}, "method 'bitfit' has no option 'keep'; it has terms"),
        ({"method": "full", "options": {"kep": 1}}, "method 'full' has no option 'kep'"),
        ({"method": "child-tuning-d", "options": {"exat": True}}, "did you mean 'exact'"),
        (
            {"method": "child-tuning-d", "options": {"exact": "no"}},
            "option 'exact' of method 'child-tuning-d': got 'no'",
        ),
        (
            {"method": "child-tuning-d", "options": {"samples": 1.5}},
            "option 'samples' of method 'child-tuning-d': got 1.5",
        ),
        ({"method": "child-tuning-d", "options": {"keep": 0.1}, "keep": 0.2}, "keep is given twice"),
        ({"method": "child-tuning-d", "options": {"per": "rows"}}, "per must be one of"),
        ({"with": ["hold"]}, "unknown piece 'hold'"),
    ],
)
def test_names_and_options_that_are_not_there(values: dict[str, object], what: str) -> None:
    with pytest.raises(UsageError) as error:
        resolve(run(**values))
    assert what in str(error.value)


def test_a_run_without_a_task_is_refused() -> None:
    with pytest.raises(UsageError, match="no task: give --task NAME"):
        resolve(RunConfig())


def test_a_run_is_named_by_what_differs_from_the_defaults() -> None:
    assert run_name(run()) == "rte-full"
    assert run_name(run(seed=42, model="minilm", output="x", threads=1)) == "rte-full"
    named = run(method="child-tuning-d", keep=0.3, seed=7, model="a/b/bert", options={"per": "row"})
    assert run_name(named) == "rte-child-tuning-d-modelbert-keep0.3-optionsper=row-seed7"
    assert resolve(named).output == Path("runs") / run_name(named)


def test_engines_are_called_as_in_python() -> None:
    from subnetune.engine.choice import ENGINES
    from subnetune.engine.lean import GRADIENTS

    for name, values in {"engine": ENGINES, "gradients": GRADIENTS}.items():
        field = RunConfig.model_fields[name]
        assert get_args(field.annotation) == values
        assert all(value in str(field.description) for value in values)
