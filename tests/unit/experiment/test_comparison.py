"""What a grid's rows come to: blocks, pairs, counts; on rows made by hand."""

from __future__ import annotations

import random
from dataclasses import replace
from statistics import mean, stdev

import pytest

from made_rows import made_row, made_rows
from subnetune.core.errors import UsageError
from subnetune.experiment.comparison import Block, Entry, compare_rows, statistics_csv
from subnetune.experiment.grid.rows import Row
from subnetune.experiment.statistics import holm, paired

FAILED = float("nan")


def block_of(rows: list[Row], kind: str = "task", task: str = "", size: int | None = 500) -> Block:
    found = [
        block
        for block in compare_rows(rows, "full").blocks
        if (block.kind, block.train_size) == (kind, size) and block.task.startswith(task)
    ]
    assert len(found) == 1
    return found[0]


def entry_of(block: Block, method: str) -> Entry:
    return next(entry for entry in block.entries if entry.method == method)


def test_each_method_is_described_and_paired_with_the_baseline() -> None:
    scores = {"full": [0.6, 0.7, 0.8], "bitfit": [0.7, 0.7, 0.54], "lora": [0.61, 0.72, 0.83]}
    block = block_of(made_rows("rte", scores, majority=0.53))
    assert (block.task, block.metric, block.majority) == ("rte", "accuracy", 0.53)
    assert [entry.method for entry in block.entries] == ["full", "bitfit", "lora"]
    for entry in block.entries:
        assert entry.summary.mean == pytest.approx(mean(scores[entry.method]))
        assert entry.summary.std == pytest.approx(stdev(scores[entry.method]))
        assert (entry.expected, entry.missing, entry.summary.failed, entry.summary.at_majority) == (3, 0, 0, 0)
    assert entry_of(block, "full").difference is None
    lora = entry_of(block, "lora").difference
    assert lora is not None
    assert lora.mean == pytest.approx(0.02)
    assert (lora.n, lora.wins, lora.ties, lora.losses) == (3, 3, 0, 0)
    assert lora.p == 0.25
    bitfit = entry_of(block, "bitfit").difference
    assert bitfit is not None
    assert (bitfit.p, lora.p_holm, bitfit.p_holm) == (1.0, 0.5, 1.0)


def test_holm_is_over_the_methods_of_a_block() -> None:
    draw = random.Random(1)
    scores = {name: [draw.random() for _ in range(8)] for name in ("full", "a", "b", "c")}
    found = block_of(made_rows("rte", scores) + made_rows("mrpc", {"full": [0.5], "a": [0.6]}), task="rte")
    by_hand = holm([paired(dict(enumerate(scores[name])), dict(enumerate(scores["full"]))) for name in "abc"])
    assert [entry.difference for entry in found.entries] == [None, *by_hand]


def test_failed_and_missing_cells_have_no_value_and_are_counted() -> None:
    rows = made_rows("rte", {"full": [0.6, 0.7, 0.8, None], "bitfit": [0.7, FAILED, None, 0.9]})
    found = compare_rows(rows, "full")
    assert found.cells == {"done": 5, "failed": 1, "missing": 2}
    bitfit = entry_of(found.blocks[0], "bitfit")
    assert (bitfit.summary.n, bitfit.summary.failed, bitfit.missing, bitfit.expected) == (2, 1, 1, 4)
    assert bitfit.summary.mean == pytest.approx(0.8)
    assert bitfit.difference is not None
    assert (bitfit.difference.n, bitfit.difference.mean) == (1, pytest.approx(0.1))  # seed 0 alone has both


def test_unequal_seeds_are_paired_by_what_both_have() -> None:
    rows = [made_row("rte", "full", seed, 0.5 + seed / 100) for seed in (42, 52, 57)]
    rows += [made_row("rte", "lora", seed, 0.6 + seed / 100) for seed in (57, 63, 42)]
    difference = entry_of(block_of(rows), "lora").difference
    assert difference is not None
    assert (difference.n, difference.mean) == (2, pytest.approx(0.1))


def test_a_method_without_any_finished_run_is_there_with_nothing() -> None:
    block = block_of(made_rows("rte", {"full": [0.5, 0.6], "lora": [None, FAILED]}))
    lora = entry_of(block, "lora")
    assert lora.summary == (0, None, None, None, None, None, 1, None)
    assert lora.difference == (0, None, None, None, None, None, None, 0, 0, 0)
    assert (lora.trained, lora.delta_bytes, lora.seconds, lora.peak_memory_bytes) == (0, None, None, None)


def test_runs_at_or_below_the_majority_level_are_counted() -> None:
    block = block_of(made_rows("rte", {"full": [0.53, 0.52, 0.54], "lora": [0.6, 0.53, 0.7]}, majority=0.53))
    assert [entry.summary.at_majority for entry in block.entries] == [2, 1]


def test_a_majority_level_that_runs_do_not_agree_on_is_not_told() -> None:
    rows = [made_row("rte", "full", 0, 0.6, majority=0.5), made_row("rte", "full", 1, 0.6, majority=0.51)]
    assert block_of(rows).majority is None


def test_the_mean_over_tasks_has_the_seeds_that_every_task_has() -> None:
    rows = made_rows("rte", {"full": [0.5, 0.6, 0.7, 0.8, 0.9], "lora": [0.6, FAILED, 0.7, None, 0.9]})
    rows += made_rows("cola", {"full": [0.1, 0.2, 0.3], "lora": [0.4, 0.5, 0.6]}, metric="matthews_correlation")
    block = block_of(rows, "mean")
    assert (block.task, block.metric, block.majority) == ("mean of 2 tasks", "headline metrics", None)
    full, lora = block.entries
    assert (full.summary.n, full.expected, full.missing) == (3, 3, 0)  # cola has three seeds
    assert full.summary.mean == pytest.approx(mean([0.3, 0.4, 0.5]))
    assert (lora.summary.n, lora.summary.failed, lora.missing) == (2, 1, 0)
    assert lora.difference is not None
    assert lora.difference.mean == pytest.approx(mean([0.5 - 0.3, 0.65 - 0.5]))


def test_a_seed_that_a_task_still_lacks_is_missing_from_the_mean() -> None:
    rows = made_rows("rte", {"full": [0.5, 0.6]}) + made_rows("mrpc", {"full": [0.7, None]})
    entry = block_of(rows, "mean").entries[0]
    assert (entry.summary.n, entry.missing, entry.expected) == (1, 1, 2)


def test_a_seed_that_failed_on_every_task_failed_once_in_the_mean() -> None:
    rows = made_rows("rte", {"full": [FAILED, 0.6]}) + made_rows("mrpc", {"full": [FAILED, None]})
    entry = entry_of(block_of(rows, "mean"), "full")
    assert (entry.summary.n, entry.summary.failed, entry.missing, entry.expected) == (0, 1, 1, 2)


def test_one_task_has_no_mean_over_tasks() -> None:
    rows = made_rows("rte", {"full": [0.5, 0.6]}) + made_rows("rte", {"full": [0.5]}, size=None)
    found = [(block.kind, block.task, block.train_size) for block in compare_rows(rows, "full").blocks]
    assert found == [("task", "rte", 500), ("task", "rte", None)]


def test_train_sizes_are_tables_of_their_own() -> None:
    rows = [
        row
        for size, value in ((300, 0.5), (None, 0.9))
        for task in ("rte", "mrpc")
        for row in made_rows(task, {"full": [value]}, size=size)
    ]
    blocks = compare_rows(rows, "full").blocks
    assert [(block.kind, block.train_size) for block in blocks] == [
        *(("mean", 300), ("task", 300), ("task", 300)),
        *(("mean", None), ("task", None), ("task", None)),
    ]
    assert [block.entries[0].summary.mean for block in blocks] == [0.5] * 3 + [0.9] * 3


def test_further_evaluation_splits_are_tables_of_their_own() -> None:
    splits = {"dev_matched": {"accuracy": 0.8}, "dev_mismatched": {"accuracy": 0.7}}
    rows = [made_row("mnli", "full", seed, 0.8, evaluation=splits) for seed in range(2)]
    found = [(block.kind, block.task, block.entries[0].summary.mean) for block in compare_rows(rows, "full").blocks]
    assert found == [("task", "mnli", 0.8), ("transfer", "mnli/dev_mismatched (trained on mnli)", 0.7)]


def test_transfer_sets_and_probes_are_tables_with_their_first_metric() -> None:
    rows = [
        made_row(
            "mnli",
            method,
            seed,
            0.8,
            majority=0.35,
            transfer={"hans": {"accuracy": 0.5 + gain + seed / 100, "accuracy_lexical": 0.1}, "empty": {}},
            probes={"cola": {"matthews_correlation": 0.1 + gain}},
        )
        for method, gain in (("full", 0.0), ("lora", 0.1))
        for seed in (0, 1)
    ]
    hans = block_of(rows, "transfer")
    assert (hans.task, hans.metric, hans.majority) == ("hans (trained on mnli)", "accuracy", None)
    assert [entry.summary.mean for entry in hans.entries] == [pytest.approx(0.505), pytest.approx(0.605)]
    assert hans.entries[0].summary.at_majority is None  # what always the same answer scores is not known
    cola = block_of(rows, "probe")
    assert (cola.task, cola.metric) == ("cola (probe, trained on mnli)", "matthews_correlation")
    assert cola.entries[1].difference is not None
    assert cola.entries[1].difference.mean == pytest.approx(0.1)


def test_a_set_that_no_method_does_better_on_than_one_answer_says_nothing() -> None:
    rows = [
        made_row(
            *("mnli", method, seed, 0.6 + seed / 100),
            evaluation={"dev": {"accuracy": 0.6}, "dev_mismatched": {"accuracy": 0.7}},
            majority=0.35,
            transfer={"hans": {"accuracy": score + seed / 1000, "accuracy_subsequence": 0.6}},
            transfer_majority={"hans": {"accuracy": 0.5, "accuracy_subsequence": 0.5}},
            probes={"cola": {"matthews_correlation": score}},
            probe_majority={"cola": {"matthews_correlation": 0.0}},
        )
        for method, score in (("full", 0.47), ("lora", 0.48))
        for seed in range(10)
    ]
    found = compare_rows(rows, "full")
    mismatched, hans, cola = (block for block in found.blocks if block.kind != "task")
    assert (mismatched.majority, hans.majority, cola.majority) == (None, 0.5, 0.0)
    assert [entry.summary.at_majority for block in (hans, cola) for entry in block.entries] == [10, 10, 0, 0]
    said = [sentence for sentence in found.verdicts if "hans" in sentence]
    assert said == [
        "On hans (trained on mnli) at 500 examples no method does better than always the same answer: nothing can be "
        "said about the methods (all 20 runs are at or below the majority level of 0.5000)."
    ]


def test_runs_that_are_no_better_than_one_answer_elsewhere_are_counted() -> None:
    rows = [
        made_row("mnli", method, seed, 0.8, transfer={"hans": {"accuracy": score}}, transfer_majority=LEVEL)
        for method, scores in {"full": (0.49, 0.6), "lora": (0.7, 0.8)}.items()
        for seed, score in enumerate(scores)
    ]
    said = compare_rows(rows, "full").verdicts
    assert any(
        sentence == "1 of 2 runs of full on hans (trained on mnli) at 500 examples is no better than always the same "
        "answer (at or below the majority level of 0.5000)."
        for sentence in said
    )


LEVEL = {"hans": {"accuracy": 0.5}}


def test_a_cost_that_is_not_known_is_in_no_mean() -> None:
    rows = [made_row("rte", "full", seed, 0.6, peak_memory_bytes=found) for seed, found in enumerate((None, 10, 20))]
    assert block_of(rows).entries[0].peak_memory_bytes == 15
    assert block_of(rows[:1]).entries[0].peak_memory_bytes is None


def test_costs_of_several_tasks_count_each_task_alike_and_are_unknown_where_one_is() -> None:
    rows = [made_row("cola", "full", seed, 0.6, seconds=s, peak_memory_bytes=4) for seed, s in enumerate((1, 2, 30))]
    rows += [
        made_row("rte", "full", seed, 0.6, seconds=100, peak_memory_bytes=m) for seed, m in enumerate((8, None, 8))
    ]
    entry = block_of(rows, "mean").entries[0]
    assert (entry.seconds, entry.peak_memory_bytes) == (51, 6)
    unknown = [replace(row, result=replace(row.result, peak_memory_bytes=None)) for row in rows[3:] if row.result]
    assert block_of([*rows[:3], *unknown], "mean").entries[0].peak_memory_bytes is None


def test_a_level_that_some_runs_say_holds_for_those_that_do_not() -> None:
    """A grid that was begun before levels were written down goes on with runs that have them."""
    rows = [
        made_row(
            *("mnli", method, seed, 0.8 if seed else 0.4),
            transfer={"hans": {"accuracy": 0.5}},
            transfer_majority={"hans": {"accuracy": 0.5}} if seed > 2 else {},
            majority=0.4 if seed > 2 else None,
        )
        for method in ("full", "lora")
        for seed in range(5)
    ]
    (own, hans) = compare_rows(rows, "full").blocks
    assert [entry.summary.at_majority for entry in hans.entries] == [5, 5]
    assert [entry.low for entry in own.entries] == [{0}, {0}]
    assert "no method does better than always the same answer" in " ".join(compare_rows(rows, "full").verdicts)


def test_a_set_that_is_both_has_a_table_of_each_name() -> None:
    scores = {"rte": {"accuracy": 0.5}}
    found = compare_rows([made_row("mnli", "full", 0, 0.8, transfer=scores, probes=scores)], "full").blocks
    assert [block.task for block in found] == ["mnli", "rte (trained on mnli)", "rte (probe, trained on mnli)"]


def test_a_finished_run_without_the_set_is_missing_there_and_a_failed_one_failed() -> None:
    rows = [
        made_row("mnli", "full", 0, 0.8, transfer={"mnli/dev_matched": {"accuracy": 0.8}}),
        made_row("mnli", "full", 1, 0.8, transfer={"mnli/dev_matched": {"accuracy": None}}),
        made_row("mnli", "full", 2, 0.8),
        made_row("mnli", "full", 3, FAILED),
        made_row("mnli", "full", 4, None),
    ]
    entry = block_of(rows, "transfer").entries[0]
    assert (entry.summary.n, entry.summary.failed, entry.missing, entry.expected) == (1, 1, 3, 5)


def test_two_training_tasks_have_tables_of_their_own_for_one_set() -> None:
    rows = [made_row(task, "full", 0, 0.8, transfer={"hans": {"accuracy": 0.5}}) for task in ("mnli", "snli")]
    found = [block.task for block in compare_rows(rows, "full").blocks if block.kind == "transfer"]
    assert found == ["hans (trained on mnli)", "hans (trained on snli)"]


def test_cost_is_the_mean_over_finished_runs() -> None:
    rows = [
        made_row("rte", "full", 0, 0.5, seconds=1.0, delta_bytes=10, peak_memory_bytes=100, trained=5, total=9),
        made_row("rte", "full", 1, 0.6, seconds=4.0, delta_bytes=20, peak_memory_bytes=300, trained=5, total=9),
        made_row("rte", "full", 2, FAILED),
    ]
    entry = block_of(rows).entries[0]
    assert (entry.seconds, entry.delta_bytes, entry.peak_memory_bytes) == (2.5, 15.0, 200.0)
    assert (entry.trained, entry.total) == (5, 9)


def test_settings_are_those_that_all_runs_share() -> None:
    rows = [made_row("rte", "full", seed, 0.5, settings={"lr": 1e-4, "epochs": 3, "keep": None}) for seed in (0, 1)]
    rows += [made_row("mrpc", "full", seed, 0.5, settings={"lr": 5e-5, "epochs": 3}) for seed in (0, 1)]
    blocks = compare_rows(rows, "full").blocks
    assert [block.entries[0].settings for block in blocks] == [
        {"epochs": 3},
        {"lr": 1e-4, "epochs": 3},
        {"lr": 5e-5, "epochs": 3},
    ]


def test_settings_of_runs_to_come_are_what_the_search_chose() -> None:
    rows = made_rows("rte", {"full": [None, None]}, setting={"lr": 2e-5})
    assert block_of(rows).entries[0].settings == {"lr": 2e-5}


def test_the_order_of_rows_changes_no_number() -> None:
    draw = random.Random(2)
    scores = {name: [draw.random() for _ in range(6)] for name in ("full", "lora", "bitfit")}
    rows = made_rows("rte", scores, majority=0.3, transfer={"hans": {"accuracy": 0.1}})
    rows += made_rows("mrpc", {name: values[:4] for name, values in scores.items()}, transfer={"hans": {"f1": 0.2}})
    rows += made_rows("rte", scores, size=None)
    lines = sorted(statistics_csv(compare_rows(rows, "full")).splitlines())
    for _ in range(3):
        draw.shuffle(rows)
        assert sorted(statistics_csv(compare_rows(rows, "full")).splitlines()) == lines


def test_no_rows_are_no_tables() -> None:
    found = compare_rows([], "full")
    assert (found.blocks, found.cells) == ((), {"done": 0, "failed": 0, "missing": 0})


def test_a_baseline_that_is_no_method_is_refused() -> None:
    with pytest.raises(UsageError, match="'ful' is none of the methods full, lora; did you mean 'full'"):
        compare_rows(made_rows("rte", {"full": [0.5], "lora": [0.5]}), "ful")


def test_a_run_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="rte, full: 2 runs have seed 0"):
        compare_rows(made_rows("rte", {"full": [0.5]}) * 2, "full")
