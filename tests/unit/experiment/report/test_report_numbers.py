"""Numbers of a report as text: three-number tables of what a reader sees."""

from __future__ import annotations

from typing import Any

import pytest

from subnetune.experiment.report import numbers
from subnetune.experiment.report.markdown import escaped
from subnetune.experiment.report.reproduce import repeatable_columns


@pytest.mark.parametrize(
    ("function", "arguments", "text"),
    [
        (numbers.score, (0.65342,), "0.6534"),
        (numbers.score, (-0.05,), "−0.0500"),
        (numbers.score, (None,), "–"),
        (numbers.points, (0.0082,), "+0.82"),
        (numbers.points, (-0.0082,), "−0.82"),
        (numbers.points, (-0.00001,), "0.00"),
        (numbers.interval, (-0.002, 0.0144), "−0.20 to +1.44"),
        (numbers.interval, (None, None), "–"),
        (numbers.probability, (0.00001,), "< 0.0001"),
        (numbers.probability, (0.0499,), "0.0499"),
        (numbers.share, (1, 3), "33.3 %"),
        (numbers.share, (1, 900), "0.11 %"),
        (numbers.share, (0, 0), "–"),
        (numbers.size, (999,), "999 B"),
        (numbers.size, (14_390_512,), "14.4 MB"),
        (numbers.size, (None,), "–"),
        (numbers.duration, (38.04,), "38.0 s"),
        (numbers.duration, (99.96,), "1 min 40 s"),
        (numbers.duration, (119.9,), "2 min 00 s"),
        (numbers.duration, (207,), "3 min 27 s"),
        (numbers.duration, (3599.7,), "1 h 00 min"),
        (numbers.duration, (7500,), "2 h 05 min"),
        (numbers.plural, (1, "run"), "1 run"),
        (numbers.plural, (1234, "run"), "1,234 runs"),
        (numbers.train_size, (None,), "all"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_numbers_read_as_they_should(function: Any, arguments: tuple[Any, ...], text: str) -> None:
    assert function(*arguments) == text


def test_markdown_shows_names_as_they_are() -> None:
    assert escaped("<b>|`*_[a](b)\n# x") == "&lt;b&gt;&#124;&#96;\\*\\_\\[a\\](b) \\# x"
    assert escaped("child-tuning-d: 0.5") == "child-tuning-d: 0.5"


def test_columns_that_differ_from_run_to_run_are_left_out() -> None:
    text = "task,seconds,value,peak_memory_bytes,data_path,host\nrte,1.5,0.6,7,/a,b\n"
    assert repeatable_columns(text) == "task,value\nrte,0.6\n"
