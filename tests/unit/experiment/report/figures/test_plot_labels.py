"""Labels that do not lie on each other."""

from __future__ import annotations

import itertools

import pytest

from subnetune.experiment.report.figures.canvas import literal, short
from subnetune.experiment.report.figures.labels import place, spread


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ([], []),
        ([5.0], [5.0]),
        ([1.0, 9.0], [1.0, 9.0]),
        ([5.0, 5.0], [4.0, 6.0]),
        ([6.0, 5.0], [6.5, 4.5]),
        ([0.0, 0.0], [0.0, 2.0]),
        ([10.0, 10.0, 10.0], [6.0, 8.0, 10.0]),
    ],
)
def test_labels_on_a_line_stand_apart_and_near(wanted: list[float], found: list[float]) -> None:
    assert spread(wanted, 2.0, 0.0, 10.0) == pytest.approx(found)


def test_without_room_they_stand_closer() -> None:
    assert spread([5.0] * 11, 2.0, 0.0, 10.0) == pytest.approx(list(range(11)))


def test_labels_of_points_cover_neither_points_nor_each_other() -> None:
    points = [(100.0 + 3 * i, 80.0 + (i * 37 % 11)) for i in range(9)]
    texts = [f"method-{i}" for i in range(9)]
    places = place(points, texts, (0, 0, 400, 170), 10)
    boxes = []
    for (x, y), text, where in zip(points, texts, places, strict=True):
        wide = len(text) * 6.0
        left = x + where.dx - {"left": 0, "center": wide / 2, "right": wide}[where.align]
        boxes.append((left, y + where.dy - 5.75, left + wide, y + where.dy + 5.75))
    for one, other in itertools.combinations(boxes, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    assert all(box[0] >= 0 and box[1] >= 0 and box[2] <= 400 and box[3] <= 170 for box in boxes)
    assert places == place(points, texts, (0, 0, 400, 170), 10)


def test_names_become_one_line_of_what_xml_can_hold() -> None:
    assert literal("a\nb\t c\x00\ud800\u202e") == "a b c���"
    assert short("child-tuning-d", 14) == "child-tuning-d"
    assert short("child-tuning-d lr=0.001 keep=0.2", 20) == "child-tuning-…ep=0.2"
    assert len(short("x" * 99, 12)) == 12
