"""The report in a real, headless Chromium: sorting, filtering, narrow screens, dark mode, nothing leaves the page."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from report_case import EVIL_METHOD, EVIL_TASK, VALUES, write_grid

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
pytest.importorskip("selenium", reason="selenium drives the browser: pip install selenium")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no Chromium with its driver (apt-get install chromium chromium-driver)"
)
FLAGS = (
    *("--headless=new", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--force-prefers-reduced-motion"),
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from subnetune.experiment.report.write import write_report

    values = {**VALUES, "tasks": {task: VALUES["tasks"][task] for task in ("rte", EVIL_TASK)}}
    return write_report(write_grid(tmp_path_factory.mktemp("chromium") / "grid", values=values).path)[0]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in FLAGS:
        options.add_argument(flag)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium's sandbox does not start as root
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(executable_path=DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def open_page(chromium: Any, page: Path) -> Any:
    """A fresh page at 1280 px in light mode."""
    emulate(chromium)
    chromium.get(page.as_uri())
    return chromium


def emulate(driver: Any, width: int = 1280, scheme: str = "light", media: str = "") -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def column(driver: Any, table: str, name: str) -> list[str]:
    """The values of a column in the rows that are shown, in their order."""
    script = """
        const table = document.querySelector(`#table-${arguments[0]} table`);
        const heads = [...table.tHead.rows[0].cells].map(head => head.textContent.trim());
        const column = heads.indexOf(arguments[1]);
        return [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[column].dataset.v ?? "");
    """
    return list(driver.execute_script(script, table, name))


def header(driver: Any, table: str, name: str) -> Any:
    from selenium.webdriver.common.by import By

    heads = driver.find_elements(By.CSS_SELECTOR, f"#table-{table} thead th")
    return next(head for head in heads if head.text.strip().startswith(name))


def sorted_numbers(values: list[str], *, down: bool) -> bool:
    known = [float(value) for value in values if value]
    return known == sorted(known, reverse=down) and values == [*filter(None, values), *(v for v in values if not v)]


def test_it_opens_without_errors_and_without_requests(open_page: Any, page: Path) -> None:
    assert open_page.get_log("browser") == []
    # The browser's own pages, such as the one of a new tab, ask for their parts.
    sent = [json.loads(entry["message"])["message"] for entry in open_page.get_log("performance")]
    asked = {
        message["params"]["request"]["url"]
        for message in sent
        if message["method"] == "Network.requestWillBeSent" and message["params"]["documentURL"] == page.as_uri()
    }
    assert asked == {page.as_uri()}
    assert "4 methods on 2 tasks" in open_page.title


def test_what_would_be_fetched_is_refused(open_page: Any) -> None:
    script = """
        const done = arguments[0];
        document.addEventListener("securitypolicyviolation", event => done(event.effectiveDirective), { once: true });
        fetch("https://example.org/").catch(() => {});
        setTimeout(() => done("nothing was refused"), 2000);
    """
    assert open_page.execute_async_script(script) == "connect-src"


def test_a_click_sorts_and_a_second_one_turns_it_round(open_page: Any) -> None:
    before = column(open_page, "scores", "mean")
    button = header(open_page, "scores", "mean").find_element("tag name", "button")
    button.click()
    down = column(open_page, "scores", "mean")
    assert down != before
    assert sorted(down) == sorted(before)
    assert sorted_numbers(down, down=True)
    assert header(open_page, "scores", "mean").get_attribute("aria-sort") == "descending"
    button.click()
    assert sorted_numbers(column(open_page, "scores", "mean"), down=False)
    assert header(open_page, "scores", "mean").get_attribute("aria-sort") == "ascending"
    assert "sorted by mean, ascending" in open_page.find_element("id", "live").get_attribute("textContent")


def test_the_keyboard_sorts(open_page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    before = column(open_page, "runs", "method")
    button = header(open_page, "runs", "score").find_element("tag name", "button")
    open_page.execute_script("arguments[0].focus()", button)
    button.send_keys(Keys.ENTER)
    assert sorted_numbers(column(open_page, "runs", "score"), down=True)
    button.send_keys(Keys.TAB)
    open_page.switch_to.active_element.send_keys(Keys.SPACE)  # the next header
    assert header(open_page, "runs", "score").get_attribute("aria-sort") == "none"
    assert column(open_page, "runs", "method") != before


def test_filters_narrow_all_tables_and_say_how_many_rows_are_left(open_page: Any) -> None:
    from selenium.webdriver.support.ui import Select

    status = open_page.find_element("id", "filter-status")
    all_rows = status.text
    Select(open_page.find_element("id", "filter-task")).select_by_visible_text("rte")
    assert set(column(open_page, "runs", "task")) == set(column(open_page, "scores", "task")) == {"rte"}
    assert len(column(open_page, "runs", "task")) == 20
    open_page.find_element("id", "filter-text").send_keys("BITFIT failed")
    assert column(open_page, "runs", "seed") == ["57"]
    assert open_page.find_element("css selector", "[data-count=runs]").text == "1 of 40 rows"
    assert status.text.startswith("1 of ")
    open_page.find_element("id", "filter-clear").click()
    assert status.text == all_rows
    Select(open_page.find_element("id", "filter-method")).select_by_visible_text(EVIL_METHOD)
    assert set(column(open_page, "runs", "method")) == {EVIL_METHOD}


def test_nothing_but_wide_tables_and_plots_scrolls_sideways(open_page: Any) -> None:
    open_page.execute_script("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    named = "document.querySelectorAll('.lead, .verdicts li, .contents a, .note, figcaption, .lines li, h3')"
    open_page.execute_script(f"{named}.forEach(one => {{ one.textContent = 'a-long-name'.repeat(18); }})")
    for width in (320, 390, 768, 1280):
        emulate(open_page, width)
        wide = open_page.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
        assert wide[0] <= wide[1] == width
    script = "return [...document.querySelectorAll('.scroll')].every(one => one.tabIndex === 0 && one.ariaLabel)"
    assert open_page.execute_script(script)


def test_words_of_plots_can_be_read_on_a_phone(open_page: Any) -> None:
    emulate(open_page, 390)
    widths = "return [...document.querySelectorAll('.drawing svg')].map(one => one.getBoundingClientRect().width)"
    shown = [width for width in open_page.execute_script(widths) if width]
    assert shown
    assert min(shown) >= 480


def test_heads_of_tables_are_on_every_printed_page(open_page: Any) -> None:
    """What Chromium repeats on further pages lacks buttons, and what is inside them unless they make no box."""
    emulate(open_page, 794, media="print")
    display = "return getComputedStyle(document.querySelector('thead .sort')).display"
    assert open_page.execute_script(display) == "contents"


def test_dark_mode_follows_the_system_and_the_button(open_page: Any) -> None:
    def colours() -> tuple[str, ...]:
        script = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        return tuple(open_page.execute_script(script))

    light = colours()
    button = open_page.find_element("id", "theme")
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    dark = colours()
    assert dark != light
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert colours() == light
    open_page.refresh()
    emulate(open_page, scheme="dark")
    assert colours() == dark
    emulate(open_page, scheme="dark", media="print")
    assert colours()[0] == "rgb(255, 255, 255)"


def test_text_stands_out_from_its_ground_in_both_modes(open_page: Any) -> None:
    script = """
        const number = text => text.match(/[\\d.]+/g).map(Number);
        const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
            .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
            .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
        const ground = element => {
            for (let one = element; one; one = one.parentElement) {
                const colour = number(getComputedStyle(one).backgroundColor);
                if (colour.length === 3 || colour[3] === 1) return colour;
            }
            return [255, 255, 255];
        };
        const low = [];
        for (const element of document.querySelectorAll("body *")) {
            const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
            if (!own || element.closest("svg, script, style, [hidden]") || !element.getClientRects().length) continue;
            const [a, b] = [light(number(getComputedStyle(element).color)), light(ground(element))];
            const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            if (ratio < 4.5) low.push([element.outerHTML.slice(0, 80), ratio]);
        }
        return low;
    """
    for scheme in ("light", "dark"):
        emulate(open_page, scheme=scheme)
        assert open_page.execute_script(script) == []


def test_names_like_scripts_stay_text(open_page: Any) -> None:
    from selenium.common.exceptions import NoAlertPresentException

    with pytest.raises(NoAlertPresentException):
        _ = open_page.switch_to.alert.text
    body = open_page.execute_script("return document.body.innerText")
    assert EVIL_TASK in body
    assert EVIL_METHOD in body
    assert open_page.execute_script("return document.scripts.length") == 1
    assert open_page.execute_script("return document.images.length") == 0
    assert open_page.execute_script(
        "return [...document.querySelectorAll('svg title')].some(t => t.textContent.includes('<script>'))"
    )


def test_screen_readers_find_headings_and_names(open_page: Any) -> None:
    nodes = open_page.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    found: dict[str, list[dict[str, Any]]] = {}
    for node in nodes:
        if not node.get("ignored"):
            found.setdefault(node["role"]["value"], []).append(node)
    for role in ("image", "table", "region", "button", "link", "combobox", "textbox", "columnheader", "rowheader"):
        assert found[role], role
        unnamed = [node for node in found[role] if not node["name"]["value"].strip()]
        assert not unnamed, (role, unnamed[:2])
    for role in ("banner", "navigation", "main", "search", "contentinfo"):
        assert len(found[role]) == 1, role
    levels = [
        next(p["value"]["value"] for p in node["properties"] if p["name"] == "level") for node in found["heading"]
    ]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_the_first_tab_stop_skips_to_the_results(open_page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page.find_element("tag name", "body").send_keys(Keys.TAB)
    assert open_page.switch_to.active_element.text == "Skip to the results"
    open_page.switch_to.active_element.send_keys(Keys.ENTER)
    assert open_page.switch_to.active_element.get_attribute("id") == "main"
