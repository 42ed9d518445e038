"""Verdicts say what numbers made by hand allow, and no more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from made_rows import made_row, made_rows
from subnetune.experiment.comparison import Block, Entry, compare_rows
from subnetune.experiment.grid.rows import Row
from subnetune.experiment.statistics import Difference, Summary
from subnetune.experiment.verdicts import standing, verdicts

FAILED = float("nan")
BASE = [0.60, 0.62, 0.64, 0.66, 0.68, 0.61, 0.63, 0.65, 0.67, 0.69]
GAINS = [0.008, 0.012, 0.010, 0.009, 0.011, 0.010, 0.008, 0.012, 0.013, 0.007]  # every seed is better: p = 2 / 1024
NOISE = [0.03, -0.03, 0.02, -0.02, 0.01, -0.01, 0.04, -0.04, 0.02, -0.02]


def plus(gains: list[float], seeds: int = 10) -> list[float | None]:
    return [base + gain for base, gain in zip(BASE[:seeds], gains, strict=False)]


def said(rows: list[Row]) -> tuple[str, ...]:
    return compare_rows(rows, "full").verdicts


def test_a_method_that_is_better_with_every_seed_beats() -> None:
    (sentence,) = said(made_rows("rte", {"full": BASE, "lora": plus(GAINS)}, majority=0.53))
    assert sentence.startswith("lora beats full on rte at 500 examples: mean +1.0 points, 95 % CI 0.9 to 1.1, n = 10")
    assert sentence.endswith(" seeds, p = 0.002 after Holm.")


def test_a_method_that_is_worse_with_every_seed_is_beaten() -> None:
    (sentence,) = said(made_rows("rte", {"full": BASE, "lora": plus([-gain for gain in GAINS])}, size=None))
    assert sentence.startswith("lora is beaten by full on rte: mean -1.0 points, 95 % CI -1.1 to -0.9")


def test_noise_shows_no_difference() -> None:
    (sentence,) = said(made_rows("rte", {"full": BASE, "lora": plus(NOISE)}))
    assert sentence.startswith("lora: no difference to full can be shown on rte at 500 examples (mean 0.0 points, 95 %")
    assert sentence.endswith(", n = 10 seeds, p = 1.000 after Holm).")


@pytest.mark.parametrize(("seeds", "least"), [(2, "0.500"), (3, "0.250"), (4, "0.125"), (5, "0.062")])
def test_few_seeds_are_said_to_show_nothing_however_large_the_gain(seeds: int, least: str) -> None:
    gains = [0.2 + gain for gain in GAINS]
    first, seen = said(made_rows("rte", {"full": BASE[:seeds], "lora": plus(gains, seeds)}))
    assert first == (
        f"n = {seeds} seeds cannot show a difference to full at 5 % by this test on rte at 500 examples: "
        f"its smallest p is {least}."
    )
    assert seen.startswith(
        "Seen on rte at 500 examples (with so few seeds the intervals are too narrow): lora +21.0 points, 95 % CI 20."
    )


def test_seeds_that_are_enough_for_one_method_may_be_too_few_for_three() -> None:
    six = {"full": BASE[:6], "a": plus(GAINS, 6)}
    assert said(made_rows("rte", six))[0].startswith("a beats full")  # p = 2 / 64
    three = six | {"b": plus(NOISE, 6), "c": plus(NOISE[::-1], 6)}
    first, seen = said(made_rows("rte", three))
    assert first.endswith("its smallest p is 0.031, 0.094 after Holm.")
    assert "): a +1.0 points, 95 % CI " in seen
    assert "; b " in seen
    assert "; c " in seen


def test_one_seed_allows_no_statement() -> None:
    (sentence,) = said(made_rows("mrpc", {"full": [0.6], "lora": [0.9], "bitfit": [0.1]}, size=None))
    assert sentence == "Too few seeds (n = 1) for any statement about lora and bitfit on mrpc."


def test_one_seed_on_several_tables_is_said_once() -> None:
    rows = [row for task in ("mrpc", "rte") for row in made_rows(task, {"full": [0.6], "lora": [0.9], "bitfit": [0.7]})]
    rows += made_rows("cola", {"full": [0.3], "lora": [0.2]}, size=300)
    found = [sentence for sentence in said(rows) if sentence.startswith("Too few")]
    assert found[-2:] == [
        "Too few seeds (n = 1) for any statement about lora and bitfit on mrpc and rte at 500 examples.",
        "Too few seeds (n = 1) for any statement about lora on cola at 300 examples.",
    ]
    assert not any(" on mrpc" in sentence for sentence in found[:-2])


def test_no_common_seed_allows_no_statement() -> None:
    found = said(made_rows("mrpc", {"full": [0.6, None], "lora": [None, 0.9]}, size=None))
    assert found == (
        "2 of 4 cells are missing: what follows is incomplete.",
        "No seed is finished on mrpc that full has as well: nothing can be said about lora.",
    )


def test_identical_runs_are_called_so() -> None:
    (sentence,) = said(made_rows("rte", {"full": BASE[:3], "lora": BASE[:3]}))
    assert sentence == "lora has exactly the scores of full on rte at 500 examples (n = 3 seeds)."


def test_missing_and_failed_cells_come_first() -> None:
    rows = made_rows("rte", {"full": [0.6, None, 0.7, 0.8], "lora": [0.6, FAILED, 0.7, None]})
    found = said(rows)
    assert found[0] == "2 of 8 cells are missing, 1 failed: what follows is incomplete."
    assert found[-1] == "1 of 4 runs of lora on rte at 500 examples failed and has no score."


def test_failed_cells_alone() -> None:
    found = said(made_rows("rte", {"full": [0.6, 0.6], "lora": [FAILED, FAILED]}))
    assert found[0] == "2 of 4 cells failed: what follows is without them."
    assert found[-1] == "2 of 2 runs of lora on rte at 500 examples failed and have no score."


def test_of_nothing_nothing_is_said() -> None:
    assert said(made_rows("rte", {"full": [None], "lora": [FAILED]})) == (
        "Nothing can be said: of 2 cells 1 is missing and 1 failed.",
    )
    assert len(verdicts("full", [], {})) == 1


def test_runs_that_learned_nothing_are_counted() -> None:
    scores = {"full": [0.5271, 0.5, 0.5271, 0.6, 0.7], "lora": [0.6, 0.62, 0.61, 0.6, 0.7]}
    found = said(made_rows("rte", scores, majority=0.5271))
    wanted = "3 of 5 runs of full on rte at 500 examples learned nothing (at or below the majority level of 0.5271)."
    assert found[2:] == (wanted,)


def test_methods_share_the_sentence_about_runs_that_learned_nothing_or_failed() -> None:
    scores = {"full": [0.5, 0.5, 0.7, FAILED], "lora": [0.6, 0.6, 0.6, FAILED], "bitfit": [0.5, 0.6, 0.6, 0.6]}
    assert said(made_rows("rte", scores, majority=0.5, size=None))[-2:] == (
        "2 of 3 runs of full, 1 of 4 of bitfit on rte learned nothing (at or below the majority level of 0.5000).",
        "1 of 4 runs of full, 1 of 4 of lora on rte failed and have no score.",
    )


def test_a_task_that_no_method_learned_says_nothing_about_methods() -> None:
    rows = made_rows("rte", {"full": [0.5] * 10, "lora": [0.52] * 10}, majority=0.5271)
    assert said(rows) == (
        "rte at 500 examples was not learned: nothing can be said about the methods"
        " (all 20 runs are at or below the majority level of 0.5271).",
    )
    (pair,) = said(made_rows("rte", {"full": [0.5], "lora": [0.52]}, majority=0.5271))
    assert "(both runs are at or below" in pair


def test_a_task_is_not_learned_where_one_lucky_run_lifts_no_mean() -> None:
    rows = made_rows("rte", {"full": [0.5] * 10, "lora": [0.5] * 9 + [0.53]}, majority=0.5271)
    (sentence,) = said(rows)
    wanted = "rte at 500 examples was not learned: nothing can be said about the methods (19 of 20 runs are at or below"
    assert sentence.startswith(wanted)


def test_a_task_was_learned_where_another_metric_says_so() -> None:
    def with_accuracy(row: Row, accuracy: float) -> Row:
        assert row.result is not None
        scores, levels = {**row.result.evaluation["dev"], "accuracy": accuracy}, {"f1": 0.81, "accuracy": 0.68}
        return replace(row, result=replace(row.result, evaluation={"dev": scores}, majority={"dev": levels}))

    made = made_rows("mrpc", {"full": BASE, "lora": plus(GAINS)}, metric="f1", size=None)
    learned = said([with_accuracy(row, 0.72) for row in made])
    assert learned[0].startswith("lora beats full on mrpc: mean +1.0 points")
    assert not any("learned" in sentence for sentence in learned)
    assert said([with_accuracy(row, 0.68) for row in made])[0].startswith("mrpc was not learned")


def test_a_level_that_runs_do_not_agree_on_is_not_told() -> None:
    rows = [*made_rows("rte", {"full": [0.5]}, majority=0.5), *made_rows("rte", {"lora": [0.6]}, majority=0.51)]
    assert said(rows)[-1] == "1 of 1 run of full on rte at 500 examples learned nothing."


def test_no_method_beats_a_baseline_where_neither_learned() -> None:
    rows = made_rows("rte", {"full": [0.40] * 10, "lora": [0.41] * 10, "ours": BASE}, majority=0.5271)
    found = said(rows)
    assert "Neither full nor lora learned rte at 500 examples: nothing can be said about their difference." in found
    assert not any("lora beats" in sentence for sentence in found)
    assert found[0].startswith("ours beats full")


def test_the_mean_over_tasks_comes_before_the_tasks() -> None:
    rows = made_rows("rte", {"full": BASE, "lora": plus(GAINS)})
    rows += made_rows("mrpc", {"full": BASE, "lora": plus(NOISE)})
    found = said(rows)
    assert found[0].startswith("lora beats full on 1 of 2 tasks at 500 examples; ")
    assert "no difference to full can be shown on the mean (mean +0.5 points, 95 % CI " in found[0]
    assert found[1] == (
        "1 of 3 tables that were tested show a difference; each is tested at 5 % by itself, so where no method "
        "differed, one in twenty would still show one."
    )
    assert [sentence.split(" at 500")[0] for sentence in found[2:]] == [
        "lora beats full on rte",
        "lora: no difference to full can be shown on mrpc",
    ]


def test_differences_that_are_all_equal_count_by_the_test_alone() -> None:
    six = said(made_rows("rte", {"full": [0.5, 0.6, 0.7] * 2, "lora": [0.52, 0.62, 0.72] * 2}))
    assert six == (
        "lora beats full on rte at 500 examples: mean +2.0 points with every seed, n = 6 seeds, p = 0.031 after Holm.",
    )
    two = said(made_rows("rte", {"full": [0.5, 0.6], "lora": [0.52, 0.62]}))
    assert "n = 2 seeds cannot show a difference" in two[0]
    assert two[1] == "Seen on rte at 500 examples: lora +2.0 points with every seed."


def test_one_table_alone_is_not_one_of_many() -> None:
    assert not any("by itself" in sentence for sentence in said(made_rows("rte", {"full": BASE, "lora": plus(GAINS)})))


def test_tasks_won_and_lost_are_both_told() -> None:
    losing = plus([-3 * gain for gain in GAINS])
    rows = made_rows("rte", {"full": BASE, "lora": plus(GAINS)}) + made_rows("mrpc", {"full": BASE, "lora": losing})
    wanted = "lora beats full on 1 and is beaten by full on 1 of 2 tasks at 500 examples; mean -1.0 points, 95 % CI"
    assert said(rows)[0].startswith(wanted)


def test_a_mean_of_few_seeds_is_not_said_to_show_no_difference() -> None:
    rows = made_rows("rte", {"full": BASE, "lora": plus(GAINS)})
    rows += made_rows("cola", {"full": BASE[:3], "lora": plus(GAINS, 3)})
    wanted = "lora beats full on 1 of 2 tasks at 500 examples; on the mean n = 3 seeds cannot show a difference (+1.0 "
    assert said(rows)[0].startswith(wanted)


def test_a_gain_that_only_the_mean_shows() -> None:
    half = [0.03, -0.01] * 5
    rows = made_rows("a", {"full": BASE, "lora": plus(half)}) + made_rows("b", {"full": BASE, "lora": plus(half[::-1])})
    first = said(rows)[0]
    assert first.startswith("lora beats full on the mean of 2 tasks at 500 examples: mean +1.0 points")


def test_without_a_learned_task_there_is_no_word_about_means() -> None:
    rows = [
        row
        for task in ("rte", "mrpc")
        for row in made_rows(task, {"full": [0.5] * 6, "lora": [0.52] * 6}, majority=0.6, size=300)
    ]
    found = said(rows)
    assert found[0] == "No task was learned at 300 examples: nothing can be said about the methods."
    assert all("was not learned" in sentence for sentence in found[1:])


def test_train_sizes_are_told_apart() -> None:
    rows = [row for size in (300, None) for row in made_rows("rte", {"full": [0.5], "lora": [0.6]}, size=size)]
    assert [sentence.partition(" on ")[2] for sentence in said(rows)] == [
        "rte at 300 examples.",
        "rte with all examples.",
    ]


def test_a_single_method_has_nothing_to_be_compared_with() -> None:
    assert said(made_rows("rte", {"full": BASE})) == ("Only full was run: there is nothing to compare it with.",)


def test_transfer_sets_have_their_sentence() -> None:
    rows = [
        made_row("mnli", method, seed, 0.8, transfer={"hans": {"accuracy": 0.5 + gain + seed / 100 + gain * seed / 50}})
        for method, gain in (("full", 0.0), ("lora", 0.1))
        for seed in range(8)
    ]
    wanted = "lora beats full on hans (trained on mnli) at 500 examples"
    assert any(sentence.startswith(wanted) for sentence in said(rows))


def made_entry(low: float, high: float, p: float, n: int = 10) -> tuple[Entry, Block]:
    summary = Summary(n, 0.5, 0.1, 0.4, 0.6, 0.5, 0, 0)
    difference = Difference(n, (low + high) / 2, low, high, p, p, 1.0, n, 0, 0)
    entry = Entry("lora", summary, difference, n, 0, 1, 2, None, None, None)
    full = Entry("full", summary, None, n, 0, 2, 2, None, None, None)
    return entry, Block("task", "rte", 500, "accuracy", None, (full, entry))


@pytest.mark.parametrize(
    ("low", "high", "p", "wanted"),
    [
        (0.01, 0.02, 0.049, "beats"),
        (-0.02, -0.01, 0.049, "beaten"),
        (0.01, 0.02, 0.05, "open"),  # the interval alone is not enough
        (-0.001, 0.02, 0.049, "open"),  # nor is p
        (0.0, 0.02, 0.049, "open"),  # an end at 0 does not leave it out
    ],
)
def test_both_test_and_interval_are_needed(low: float, high: float, p: float, wanted: str) -> None:
    assert standing(*made_entry(low, high, p)) == wanted


@pytest.mark.parametrize(("p", "text"), [(0.0496, "p = 0.0496"), (0.0123, "p = 0.012"), (0.0002, "p < 0.001")])
def test_a_rounded_p_stays_on_its_side_of_five_percent(p: float, text: str) -> None:
    entry, block = made_entry(0.0004, 0.02, p)
    (sentence,) = verdicts("full", [block], {"done": 20})
    assert f" {text} after Holm" in sentence
    assert "95 % CI 0.04 to 2.0," in sentence, "an end that is not 0 does not read 0.0"
    assert entry.method in sentence
