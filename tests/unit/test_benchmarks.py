"""The benchmarks' harness: its statistics are right, its tables go where they belong, and every suite starts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
SUITES = sorted(path.name for path in FOLDER.glob("bench_*.py"))
sys.path.append(str(FOLDER))  # the scripts import each other as they do when they are run

import harness  # noqa: E402
import machine  # noqa: E402


def test_a_ratio_is_the_median_of_paired_quotients():
    # Medians of the two lists are 3 and 2, of the quotients 1: pairs count, not lists.
    found = harness.paired([1.0, 3.0, 50.0], [1.0, 2.0, 100.0])
    assert found.median == 1.0
    assert (found.low, found.high) == (0.5, 1.5)
    assert found.pairs == 3


def test_the_interval_of_a_ratio_holds_the_truth_about_as_often_as_it_says():
    import numpy as np

    random = np.random.default_rng(5)
    inside = 0
    for _ in range(200):
        below = random.uniform(1.0, 2.0, 51)
        found = harness.paired(list(below * np.exp(random.normal(0.2, 0.3, 51))), list(below), resamples=400)
        inside += found.low <= np.exp(0.2) <= found.high
    assert 176 <= inside <= 200  # 95 % of 200 are 190


def test_a_total_counts_rare_expensive_steps():
    above, below = [1.0] * 9 + [11.0], [1.0] * 10
    assert harness.paired(above, below).median == 1.0
    found = harness.total(above, below)
    assert found.median == 2.0
    assert found.low < 2.0 < found.high


@pytest.mark.parametrize("sizes", [(0, 0), (2, 3)])
def test_samples_that_are_no_pairs_are_refused(sizes: tuple[int, int]):
    with pytest.raises(ValueError, match="pairs"):
        harness.paired([1.0] * sizes[0], [1.0] * sizes[1])


@pytest.mark.parametrize("count", [2, 3])
def test_every_way_runs_once_a_repetition_and_follows_every_other(count: int):
    order: list[str] = []
    names = "abc"[:count]
    ways = [harness.Way(name, lambda name=name: order.append(name)) for name in names]
    samples = harness.interleave(ways, repeats=2 * count, warmup=1)
    assert {name: len(seconds) for name, seconds in samples.items()} == dict.fromkeys(names, 2 * count)
    timed = order[count:]
    turns = [timed[at : at + count] for at in range(0, len(timed), count)]
    assert all(sorted(turn) == list(names) for turn in turns)
    assert {turn[0] for turn in turns} == set(names)
    assert {pair for turn in turns for pair in pairwise(turn)} == {(a, b) for a in names for b in names if a != b}


def test_what_comes_before_a_run_is_not_timed(monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr(harness.time, "perf_counter", lambda: clock[0])

    def take(seconds: float) -> None:
        clock[0] += seconds

    way = harness.Way("a", lambda: take(2.0), lambda: take(5.0))
    assert harness.interleave([way], repeats=2, warmup=0) == {"a": [2.0, 2.0]}


def test_two_ways_of_one_name_are_refused():
    ways = [harness.Way("a", int), harness.Way("a", int)]
    with pytest.raises(ValueError, match="same name"):
        harness.interleave(ways, 1)


def test_samples_of_several_processes_are_pooled_in_order():
    assert harness.pooled([{"a": [1.0], "b": [2.0]}, {"a": [3.0], "b": [4.0]}]) == {"a": [1.0, 3.0], "b": [2.0, 4.0]}
    assert harness.minus([3.0, 5.0], [1.0, 2.0]) == [2.0, 3.0]


def test_a_block_of_a_page_is_replaced_and_nothing_else(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("head\n<!-- begin: a -->\nold\n<!-- end: a -->\ntail <!-- begin: b --><!-- end: b -->\n")
    harness.write_block(page, "a", "new")
    harness.write_block(page, "a", "new")  # twice is once
    first = "head\n<!-- begin: a -->\nnew\n<!-- end: a -->\ntail <!-- begin: b --><!-- end: b -->\n"
    assert page.read_text() == first
    harness.write_block(page, "a-cuda", "gpu", after="a")
    behind = "<!-- end: a -->\n\n<!-- begin: a-cuda -->\ngpu\n<!-- end: a-cuda -->"
    assert page.read_text() == first.replace("<!-- end: a -->", behind)
    with pytest.raises(SystemExit, match="begin: c"):
        harness.write_block(page, "c", "lost")


def test_a_table_has_a_cell_for_each_column():
    text = harness.table([{"x": 1, "y": 2.5}, {"x": 3}], {"first": "x", "second": "y", "sum": lambda one: one["x"] + 1})
    assert text == "| first | second | sum |\n|---|---|---|\n| 1 | 2.5 | 2 |\n| 3 |  | 4 |"


def test_a_missed_target_is_named():
    assert harness.goal({"median": 0.96, "target": 0.95}) == "0.95 (missed)"
    assert harness.goal({"median": 0.95, "target": 0.95}) == "0.95"
    assert harness.goal({"median": 0.95}) == ""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks are read from /proc")
def test_a_peak_is_what_was_held_for_a_moment():
    size = 64 * machine.MIB

    def touch() -> None:
        bytearray(b"x" * size)  # two copies live at once

    before = machine.settle()
    found = machine.peak(touch) - before
    assert size <= found <= 2.5 * size
    assert machine.peak(int) - before < size // 4  # and it counts from anew


def test_the_page_has_the_blocks_that_the_suites_write():
    found = [re.findall(r'\breport\("(\w+)"', (FOLDER / name).read_text("utf-8")) for name in SUITES]
    names = [name for of in found for name in of]
    assert {"step", "training", "memory", "selection", "growth", "delta"} <= set(names)
    assert len(names) == len(set(names)) == len(SUITES) - 1  # bench_methods.py has a way of its own
    for name in names:
        begin, end = harness.marks(name)
        page = harness.PAGES.get(name, harness.PAGE).read_text("utf-8")
        assert page.count(begin) == page.count(end) == 1, name


def test_every_suite_has_a_page_of_help_that_loads_nothing_heavy():
    assert len(SUITES) >= 8
    # One process for all: each parser is built and printed, and torch stays unloaded.
    code = (
        "import runpy, sys\n"
        f"sys.path.insert(0, {str(FOLDER)!r})\n"
        f"for name in {SUITES!r}:\n"
        f"    sys.argv = [name, '--help']\n"
        "    try:\n"
        f"        runpy.run_path({str(FOLDER)!r} + '/' + name, run_name='__main__')\n"
        "    except SystemExit as ended:\n"
        "        assert ended.code == 0, name\n"
        "assert 'torch' not in sys.modules\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("usage: bench_") == len(SUITES)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name in SUITES if name != "bench_methods.py"])
def test_every_suite_runs_in_its_quick_form(name: str, tmp_path: Path):
    target = tmp_path / "found.json"
    command = [sys.executable, str(FOLDER / name), "--quick", "--output", str(target)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(target.read_text())
    assert found["results"]
    assert found["machine"]["torch"]
    assert "| " in ended.stdout
