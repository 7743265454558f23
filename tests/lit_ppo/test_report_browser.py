"""The report in a real browser: headless Chromium through chromedriver, skipped where they are not installed.

Screenshots are kept in the directory that LIT_PPO_SCREENSHOTS names, else in pytest's temporary directory.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lit_ppo.report import build as report
from lit_ppo.report.compare import compare

ROOT = Path(__file__).parents[2]
HOSTILE = '"><img src=x onerror="window.hacked=1">.csv'
ATTACK = "</script><script>window.hacked=2</script><svg onload=window.hacked=3>"
TAB, ENTER = "\ue004", "\ue007"


def load(name: str) -> Any:
    """Import a script of benchmarks/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


demo, tool = load("report_demo"), load("report_screenshot")
pytestmark = pytest.mark.skipif(bool(tool.missing_browser()), reason=tool.missing_browser())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("LIT_PPO_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on the same bars; every name in them is hostile."""
    root = tmp_path_factory.mktemp("results")
    for seed in (1, 2):
        config = {"symbol": ATTACK, f"key{ATTACK}": seed}
        demo.make_run(root, seed=seed, folds=4, test_bars=400, name=HOSTILE, config=config, stop_reason=ATTACK)
    return root


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with tool.Browser() as found:
        yield found


@pytest.fixture(scope="module")
def page(browser: Any, results: Path) -> Any:
    browser.open(report.write_report(results / "1"))
    wait_until_drawn(browser)
    return browser


def wait_until_drawn(browser: Any) -> None:
    script = """
        return new Promise((done) => {
            const start = Date.now();
            const look = () => document.documentElement.dataset.drawn || Date.now() - start > 20000
                ? done(document.documentElement.dataset.drawn || null) : setTimeout(look, 50);
            look();
        });"""
    assert browser.run(script) is not None, "the charts were not drawn within 20 s"


def test_the_page_of_a_run_that_never_traded_is_short_and_its_scripts_run(browser: Any, tmp_path: Path) -> None:
    run = demo.make_run(tmp_path, folds=2, test_bars=300)
    rows = pd.read_csv(run / "out_of_sample.csv")
    rows[["position", "gross_return", "cost", "net_return"]] = 0.0
    rows.assign(equity=1.0).to_csv(run / "out_of_sample.csv", index=False)
    browser.open(report.write_report(run))
    assert browser.console() == []
    shown = browser.run("return [...document.querySelectorAll('main > section')].map(s => s.id)")
    assert shown == ["verdict", "untraded", "features", "data", "configuration", "rerun"]
    assert browser.run("return document.querySelectorAll('.chart').length") == 0
    bottom = "return document.getElementById('untraded').getBoundingClientRect().bottom"
    assert browser.run(bottom) < 700  # verdict, why, and what to try
    assert browser.run("return document.documentElement.scrollHeight") < 1_800


def test_the_console_is_silent_and_every_section_and_chart_is_there(page: Any) -> None:
    assert page.console() == []
    assert page.run("return document.documentElement.dataset.problems || 0") == 0
    shown = page.run(
        "return [...document.querySelectorAll('main > section')].map(s => [s.id, s.getBoundingClientRect().height])"
    )
    assert [name for name, _ in shown] == [name for name, _ in report.SECTIONS if name != "seeds"]  # there is one
    assert all(height > 60 for _, height in shown)
    empty = page.run("return [...document.querySelectorAll('.chart')].filter(c => !c.querySelector('path')).length")
    assert empty == 0


def test_hostile_names_are_inert(page: Any) -> None:
    assert page.run("return window.hacked || null") is None
    assert page.run("return document.querySelectorAll('img, svg[onload], iframe, object').length") == 0
    assert page.run("return document.querySelectorAll('script').length") == 4
    assert HOSTILE.split("onerror")[0] in page.run("return document.querySelector('h1').textContent")
    assert page.run("return document.querySelector('#configuration code').textContent").count("window.hacked=2") == 2


def test_the_policy_stops_what_is_not_hashed(page: Any) -> None:
    # Through the DOM, not through the driver: the driver's own scripts are outside the policy.
    script = """
        const s = document.createElement('script'); s.textContent = 'window.injected = 1'; document.body.append(s);
        const i = document.createElement('img'); i.src = 'https://127.0.0.1:9/x.png'; document.body.append(i);
        return new Promise(done => setTimeout(() => { s.remove(); i.remove(); done(window.injected || null) }, 200));"""
    assert page.run(script) is None
    assert sum("Content Security Policy" in line for line in page.console()) >= 2


def test_the_theme_button_works_by_mouse_and_by_keyboard(page: Any) -> None:
    colours = "return [document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor]"
    before = page.run(colours)
    page.click("#theme")
    assert page.run(colours)[0] == "dark"
    assert page.run(colours)[1] != before[1]
    page.run("document.querySelector('#theme').focus()")
    page.press(ENTER)
    assert page.run(colours) == before


def test_the_price_chart_zooms_by_button_and_by_dragging(page: Any) -> None:
    status = "return document.querySelector('#price-status').textContent"
    assert "1,600 bars" in page.run(status)
    page.click("#price-in")
    assert "800 bars" in page.run(status)
    page.click("#price-later")
    page.click("#price-all")
    assert "1,600 bars" in page.run(status)
    page.run(
        "return Plotly.relayout('chart-price', {'xaxis.range[0]': '2023-01-05 00:00', 'xaxis.range[1]': '2023-01-06'})"
        ".then(() => new Promise(done => setTimeout(done, 300)))"
    )
    assert "97 bars" in page.run(status)
    page.click("#price-all")


def test_a_keyboard_reaches_the_result_the_buttons_and_the_wide_tables(page: Any, results: Path) -> None:
    page.open(results / "1" / "report.html")  # anew: the first Tab starts at the top
    wait_until_drawn(page)
    page.press(TAB)
    assert page.run("return document.activeElement.className") == "skip"
    reached = page.run(
        "return [...document.querySelectorAll('a[href], button, summary, [tabindex=\"0\"]')].map(e => e.tagName)"
    )
    assert {"A", "BUTTON", "SUMMARY", "DIV", "PRE"} <= set(reached)


def test_a_screen_reader_finds_names_captions_and_one_order_of_headings(page: Any) -> None:
    levels = page.run("return [...document.querySelectorAll('h1, h2, h3')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.run("return [...document.querySelectorAll('table')].filter(t => !t.caption).length") == 0
    unnamed = "[...document.querySelectorAll('.chart, section, [role=region]')]"
    assert page.run(f"return {unnamed}.filter(e => !e.ariaLabel && !e.getAttribute('aria-labelledby')).length") == 0
    assert page.run("return document.documentElement.lang") == "en"


@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_fits_its_window(page: Any, pictures: Path, width: int) -> None:
    page.resize(width, 900)
    page.run("return new Promise(done => setTimeout(done, 600))")
    assert page.run("return document.documentElement.scrollWidth") <= width
    for theme in ("dark", "light"):
        page.click("#theme")
        page.run("return new Promise(done => setTimeout(done, 300))")
        assert page.run("return document.documentElement.dataset.theme") == theme
        assert page.screenshot(pictures / f"report_{width}_{theme}.png").stat().st_size > 50_000
    page.resize(1200, 900)


def test_the_page_follows_a_dark_system(results: Path) -> None:
    with tool.Browser(dark=True) as dark:
        dark.open(report.write_report(results / "2"))
        wait_until_drawn(dark)
        assert dark.run("return document.documentElement.dataset.theme") == "dark"
        assert dark.console() == []


def test_the_comparison_page_is_silent_and_inert_too(browser: Any, results: Path, pictures: Path) -> None:
    target = results / "compare.html"
    compare([results / "1", results / "2"], html_path=target)
    browser.console()
    browser.open(target)
    wait_until_drawn(browser)
    assert browser.console() == []
    assert browser.run("return window.hacked || null") is None
    assert browser.run("return document.documentElement.scrollWidth") <= 1200
    browser.screenshot(pictures / "compare_1200_light.png")


def test_the_tables_of_a_comparison_fit_1400_px_and_keep_their_labels_in_sight_at_400(
    browser: Any, results: Path, pictures: Path, tmp_path: Path
) -> None:
    third = demo.make_run(tmp_path / "third", seed=3, folds=2, test_bars=300, config={"model": {"gamma": 0.9}})
    compare([results / "1", results / "2", third], html_path=tmp_path / "compare.html")
    browser.open(tmp_path / "compare.html")
    wait_until_drawn(browser)
    hidden = "return [...document.querySelectorAll('.scroll')].map(t => t.scrollWidth - t.clientWidth)"
    try:
        browser.resize(1400, 900)
        assert max(browser.run(hidden)) <= 0
        browser.resize(400, 900, mobile=True)
        assert max(browser.run(hidden)) > 0
        label = """
            const table = document.querySelector('.scroll'); table.scrollLeft = 1000;
            const label = table.querySelector('tbody th').getBoundingClientRect();
            return [label.left - table.getBoundingClientRect().left, label.width]"""
        left, width = browser.run(label)
        assert abs(left) < 2
        assert width < 200
        named = "return getComputedStyle(document.querySelector('.named td'), '::before').content"
        assert browser.run(named).endswith(': "')
        browser.screenshot(pictures / "compare_400_light.png")
    finally:
        browser.resize(1200, 900)
