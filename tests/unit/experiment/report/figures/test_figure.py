"""What every plot has to be: well-formed, the same bytes each time, alone on its page, literal in its text."""

from __future__ import annotations

import builtins
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from figure_cases import SVG, compared, grid, ids, overlaps, scores, texts

from subnetune.core.errors import UsageError
from subnetune.experiment.report.figures import Figure, analysis, curves, distributions, pareto
from subnetune.experiment.report.figures.figure import key_of

NASTY = ("<script>alert(1)</script>", "$x^2$", 'a"b&c\x00\x1b\u202e')


METHODS = ("<b>bold</b>", "$\\frac{1}{2}$ 50%")


def every_figure(path: Path) -> list[Figure]:
    """Two tasks of two methods; the first has logs and analyses."""
    first, second, third = NASTY
    folder, rows = grid(path, {(first, 300): {m: scores(i, 0, 3) for i, m in enumerate(METHODS)}}, steps=40)
    _, more = grid(path / "more", {(second, 300): {METHODS[0]: [0.6, "failed", 0.7], METHODS[1]: [0.6, 0.7, None]}})
    rows += more
    comparison = compared(rows)
    found = distributions(comparison, rows) + pareto(comparison, rows) + curves(folder, rows[:6])
    return found + analysis(folder, rows[:6], overlaps(METHODS, ["42", "52"], third))


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> list[Figure]:
    return every_figure(tmp_path_factory.mktemp("nasty"))


def test_every_kind_of_plot_is_there(nasty: list[Figure]) -> None:
    kinds = {figure.key.split("-")[0] for figure in nasty}
    assert kinds == {"scores", "cost", "loss", "evaluation", "overlap", "layers", "roles", "cka", "surface", "plane"}


def test_the_same_data_give_the_same_bytes(nasty: list[Figure], tmp_path: Path) -> None:
    folder, rows = grid(tmp_path, {(NASTY[0], 300): {m: scores(i, 0, 3) for i, m in enumerate(METHODS)}}, steps=40)
    again = {figure.key: figure for figure in analysis(folder, rows, {}) + curves(folder, rows)}
    assert len(again) == 7
    assert again == {figure.key: figure for figure in nasty if figure.key in again}


def test_an_svg_is_one_element_of_a_page(nasty: list[Figure]) -> None:
    for figure in nasty:
        root = ET.fromstring(figure.svg)
        assert figure.svg.startswith("<svg ")
        assert root.tag == f"{SVG}svg"
        assert root.attrib["role"] == "img"
        assert "height" not in root.attrib
        assert root.attrib["width"] == "100%"
        first, second = root[0], root[1]
        assert (first.tag, first.text, first.attrib["id"]) == (
            f"{SVG}title", figure.title, root.attrib["aria-labelledby"],
        )  # fmt: skip
        assert (second.tag, second.text, second.attrib["id"]) == (
            f"{SVG}desc", figure.caption, root.attrib["aria-describedby"],
        )  # fmt: skip
        for unwanted in ("<style", "<metadata", "DejaVu", "font-family", "DOCTYPE", "<?xml", "<!--", "xlink"):
            assert unwanted not in figure.svg
        assert len(figure.svg) < 60_000


def test_ids_are_unique_on_a_page_and_references_point_to_them(nasty: list[Figure]) -> None:
    every = [name for figure in nasty for name in ids(figure)]
    assert len(every) == len(set(every))
    assert len({figure.key for figure in nasty}) == len(nasty)
    for figure in nasty:
        assert re.fullmatch(r"[a-z][a-z0-9-]*", figure.key)
        own = set(ids(figure))
        used = re.findall(r"url\(#([^)]+)\)", figure.svg) + re.findall(r'href="#([^"]+)"', figure.svg)
        assert set(used) <= own
        assert used or figure.key.startswith(("roles", "overlap"))  # squares and text alone refer to nothing


def test_names_are_literal_text(nasty: list[Figure]) -> None:
    for figure in nasty:
        root = ET.fromstring(figure.svg)
        assert {element.tag for element in root.iter()} <= {
            f"{SVG}{name}" for name in ("svg", "title", "desc", "g", "defs", "path", "use", "clipPath", "rect", "text")
        }
    everything = [text for figure in nasty for text in texts(figure)]
    assert "<b>bold</b>" in everything
    assert "$\\frac{1}{2}$ 50%" in everything
    titles = " ".join(figure.title for figure in nasty)
    assert "<script>alert(1)</script>" in titles
    assert "$x^2$" in titles
    assert not any(sign in figure.svg for figure in nasty for sign in "\x00\x1b\u202e")
    cells = {cell for figure in nasty for row in figure.table for cell in row}
    assert "<b>bold</b>" in cells


def test_every_colour_is_a_variable(nasty: list[Figure]) -> None:
    for figure in nasty:
        colours = re.findall(r"(?:fill|stroke): ([^;\"]+)", figure.svg)
        assert colours
        assert {colour for colour in colours if not colour.startswith("var(--")} <= {"none"}


def test_tables_say_the_same_and_are_rectangles(nasty: list[Figure]) -> None:
    for figure in nasty:
        assert len(figure.table) > 1
        assert len({len(row) for row in figure.table}) == 1
        assert figure.title
        assert figure.caption.endswith(".")


def test_the_settings_of_the_program_around_stay(tmp_path: Path) -> None:
    import matplotlib

    _, rows = grid(tmp_path, {("rte", None): {"full": [0.6]}})
    comparison = compared(rows)
    with matplotlib.rc_context({"lines.linewidth": 7.0, "svg.fonttype": "path", "axes.grid": False}):
        before = dict(matplotlib.rcParams.items())
        ours = distributions(comparison, rows)
        assert dict(matplotlib.rcParams.items()) == before
    assert ours == distributions(comparison, rows)


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest, **more)

    _, rows = grid(tmp_path, {("rte", None): {"full": [0.6]}})
    comparison = compared(rows)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UsageError, match=r"pip install 'subnetune\[report\]'"):
        distributions(comparison, rows)


def test_keys_tell_apart_what_looks_alike() -> None:
    assert key_of("scores", "rte", "300") == "scores-rte-300"
    keys = {key_of("scores", task, "all") for task in ("a b", "a-b", "A-b", "<a>b", "é", "è", "")}
    assert len(keys) == 7
    assert len(key_of("scores", "x" * 500)) < 80


def test_colours_can_be_seen_on_light_and_on_dark_ground() -> None:
    from subnetune.experiment.report.figures.palette import MUTED, SERIES, VARIABLES

    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour in (*SERIES, MUTED):
        assert 1.05 / (light(colour) + 0.05) >= 3
        assert (light(colour) + 0.05) / (light("#121212") + 0.05) >= 3
    assert len(set(SERIES)) == len(SERIES)
    assert "#000000" not in VARIABLES, "matplotlib leaves black out: it could not be replaced"
