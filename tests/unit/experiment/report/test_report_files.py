"""The files of a report: one page that fetches nothing and in which names stay text, and twins that say the same."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import io
import itertools
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from report_case import EVIL_ERROR, EVIL_METHOD, EVIL_TASK, VALUES, write_grid
from subnetune.experiment.report.write import write_report

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
NAMES = ["report.html", "report.md", "results.csv", "statistics.csv"]


class Page(HTMLParser):
    """What stands in a page: its tags with attributes, its text, what is inside its script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open[-1:] == ["script"] else self.text).append(data)

    def all(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_grid(tmp_path_factory.mktemp("files") / "grid").path
    assert [file.name for file in write_report(path)] == NAMES
    return path


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_fetches_nothing_and_runs_its_own_script_alone(folder: Path, page: Page) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    (script,) = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy
    addresses = set(re.findall(r"https?://[^\s\"'<>]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\((?!#)", text)
    assert not page.all("link", "img", "iframe", "object", "embed", "base", "form")
    assert len(page.all("script")) == 1
    assert all("src" not in attributes for _, attributes in page.tags)
    assert {link["href"] for link in page.all("a") if not (link["href"] or "").startswith("#")} == set(NAMES[1:])
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_names_that_look_like_markup_are_text(page: Page) -> None:
    text = "".join(page.text)
    for name in (EVIL_TASK, EVIL_METHOD, EVIL_ERROR):
        assert name in text
    places = [value for _, attributes in page.tags for value in attributes.values() if value and EVIL_TASK in value]
    assert places  # filters ask for it


def test_headings_tables_and_drawings_are_named_for_those_who_do_not_see_them(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert {"header", "nav", "main", "footer"} <= {tag for tag, _ in page.tags}
    assert len(page.all("table")) == len(page.all("caption")) > 8
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    drawings = page.all("svg")
    assert all(d.get("aria-hidden") == "true" or d.get("role") == "img" for d in drawings)
    assert sum(d.get("role") == "img" for d in drawings) >= 8
    ids = Counter(attributes["id"] for _, attributes in page.tags if "id" in attributes)
    assert not [name for name, count in ids.items() if count > 1]
    pointed = [a[n] for _, a in page.tags for n in ("aria-labelledby", "aria-describedby") if n in a]
    assert all(name in ids for names in pointed for name in (names or "").split())


def test_every_cell_is_on_the_page(folder: Path) -> None:
    text = html.unescape((folder / "report.html").read_text(encoding="utf-8"))
    assert "71 of 80" in text
    assert text.count(">failed</span>") == 2
    assert text.count(">missing</span>") == 7
    assert "stsb, 300 examples, bitfit: seeds 63, 78" in text


def test_markdown_and_csv_say_the_same(folder: Path) -> None:
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    outside = re.sub(r"^(```+)\w*\n.*?^\1$", "", markdown, flags=re.M | re.S)
    assert "<" not in outside
    assert EVIL_TASK in html.unescape(outside)
    assert "71 of 80 cells are done, 2 failed, 7 missing" in markdown
    results = list(csv.DictReader(io.StringIO((folder / "results.csv").read_text(encoding="utf-8"))))
    assert Counter(row["state"] for row in results) == {"done": 71, "missing": 7, "failed": 2}
    assert {row["task"] for row in results} >= {EVIL_TASK}
    digest = hashlib.sha256((folder / "results.csv").read_bytes()).hexdigest()
    assert digest in markdown
    assert digest in (folder / "report.html").read_text(encoding="utf-8")


def test_every_table_of_the_markdown_page_is_whole(folder: Path) -> None:
    lines = (folder / "report.md").read_text(encoding="utf-8").splitlines()
    rules = [index for index, line in enumerate(lines) if re.fullmatch(r"\|(\s*-{3,}:?\s*\|)+", line)]
    assert len(rules) > 8
    for index in rules:
        cells = lines[index].count("|")
        assert lines[index - 1].count("|") == cells
        body = [line for line in lines[index + 1 : index + 3] if line]
        assert all(line.count("|") == cells for line in body)


@pytest.mark.slow
def test_the_same_runs_give_the_same_bytes_with_every_plot(tmp_path: Path) -> None:
    grids = [write_grid(tmp_path / name, plotted=VALUES["tasks"]).path for name in ("one", "other")]
    first, again = [write_report(grid, tmp_path / "reports" / grid.name) for grid in grids]
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in again]
    text = first[0].read_text(encoding="utf-8")
    assert all(f'<section id="{key}"' in text for key in ("distributions", "pareto", "curves", "analysis"))
    drawings = Page(text).all("svg")
    assert sum(drawing.get("role") == "img" for drawing in drawings) > 30
