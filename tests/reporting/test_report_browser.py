"""The report in a real browser: it asks nobody for anything, draws all, sorts, fits, stays safe."""

from __future__ import annotations

import re

import pytest
from browser_support import browser, eventually, screenshots
from report_support import HOSTILE, empty, grid, hostile, plots, published_grid

from sweepstack.reporting.report import page

pytestmark = pytest.mark.slow

__all__ = ["browser", "screenshots"]
LOCAL = ("file:", "data:", "blob:")


@pytest.fixture
def opened_in(browser, tmp_path, monkeypatch):
    """Open a study's report; at the end nothing may have been asked for or gone wrong."""
    monkeypatch.setattr(page.plots, "plots", plots)
    contexts, wrong = [], []

    def open_report(study, width=1280, scheme="light", script=""):
        path = tmp_path / "report.html"
        path.write_text(page.html(study), "utf-8")
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        if script:
            context.add_init_script(script)
        tab = context.new_page()
        tab.on("request", lambda asked: asked.url.startswith(LOCAL) or wrong.append(asked.url))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("console", lambda line: line.type == "error" and wrong.append(line.text))
        tab.goto(path.as_uri())
        return tab

    yield open_report
    for context in contexts:
        context.close()
    assert wrong == []


def draw_all(tab):
    """Scroll to every plot until it is drawn."""
    boxes = tab.locator(".plot")
    for index in range(boxes.count()):
        boxes.nth(index).scroll_into_view_if_needed()
        eventually(boxes.nth(index)).to_have_attribute("data-state", re.compile("."))
    return [boxes.nth(index).get_attribute("data-state") for index in range(boxes.count())]


def column(tab, title):
    """The shown cells of a column of the table of trials."""
    return tab.evaluate(
        """title => {
            const table = document.getElementById("trials-table");
            const heads = [...table.tHead.querySelectorAll("th")];
            const index = heads.findIndex((head) => head.textContent.startsWith(title));
            return [...table.tBodies[0].rows].map((row) => row.cells[index].textContent);
        }""",
        title,
    )


def sort_of(tab, title):
    return tab.locator("#trials-table th", has_text=re.compile(f"^{title}$")).get_attribute(
        "aria-sort"
    )


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_plots_are_drawn_and_the_page_fits(opened_in, screenshots, width, scheme):
    tab = opened_in(grid(), width, scheme)
    assert draw_all(tab) == ["drawn"] * 2
    assert tab.locator(".plot svg.main-svg").count() >= 2
    assert tab.evaluate("document.scrollingElement.scrollWidth") <= width
    tab.evaluate("scrollTo(0, 0)")
    tab.screenshot(path=screenshots / f"report-{width}-{scheme}.png", full_page=True)


def test_all_plots_are_drawn_though_nobody_scrolls(opened_in):
    tab = opened_in(published_grid(300))
    eventually(tab.locator(".plot[data-state=drawn]")).to_have_count(2)


def test_the_colours_follow_the_scheme_while_the_page_is_open(opened_in):
    tab = opened_in(grid(), scheme="light")
    draw_all(tab)
    paper = "getComputedStyle(document.body).backgroundColor"
    ink = "document.querySelector('#plot-history .xtick text').style.fill"
    light = tab.evaluate(paper), tab.evaluate(ink)
    assert light[0] == "rgb(255, 255, 255)"
    tab.emulate_media(color_scheme="dark")
    label = tab.locator("#plot-history .xtick text").first
    eventually(label).not_to_have_css("fill", light[1])
    channels = [int(number) for number in re.findall(r"\d+", tab.evaluate(paper))]
    assert max(channels) < 60
    assert min(int(number) for number in re.findall(r"\d+", tab.evaluate(ink))) > 180


def test_the_table_sorts_filters_and_turns_pages(opened_in):
    tab = opened_in(published_grid(250))
    tab.wait_for_selector("#trials-table[data-state=drawn]")
    assert tab.locator("#range").inner_text() == "1–100 of 250"
    for event, rows in (("beforeprint", 250), ("afterprint", 100)):
        tab.evaluate(f"dispatchEvent(new Event('{event}'))")
        assert len(column(tab, "number")) == rows
        assert tab.locator("#range").inner_text() == f"1–{rows} of 250"
        if event == "beforeprint":  # all columns fit on A4
            tab.emulate_media(media="print")
            tab.set_viewport_size({"width": 700, "height": 900})
            assert tab.evaluate("document.querySelector('#trials-table').scrollWidth") <= 700
            tab.emulate_media(media="screen")
    tab.get_by_role("button", name="Next").click()
    assert column(tab, "number")[0] == "100"
    assert sort_of(tab, "train_loss") == "none"
    tab.get_by_role("button", name="train_loss").click()
    assert sort_of(tab, "train_loss") == "descending"
    assert tab.locator("#range").inner_text() == "1–100 of 250"
    assert column(tab, "number")[:3] == ["249", "248", "247"]
    # Again, by the keyboard: the heading kept the focus.
    tab.keyboard.press("Enter")
    assert sort_of(tab, "train_loss") == "ascending"
    assert column(tab, "number")[:3] == ["0", "1", "2"]
    tab.get_by_label("Filter").fill("adam lr=0.01 number<100")
    rows = column(tab, "name")
    assert rows
    assert all("-0.01-" in name and "-adam-" in name for name in rows)
    assert all(int(number) < 100 for number in column(tab, "number"))
    tab.get_by_label("Filter").fill("nothing like this")
    assert tab.locator("#range").inner_text() == "no trial matches"
    assert column(tab, "number") == []


def test_columns_that_few_look_for_are_shown_when_asked_for(opened_in):
    tab = opened_in(published_grid(20))
    tab.wait_for_selector("#trials-table[data-state=drawn]")
    heads = tab.locator("#trials-table thead")
    assert "worker" not in heads.inner_text()
    tab.get_by_label("all columns").check()
    assert "worker" in heads.inner_text()


def test_missing_values_stay_last_and_infinity_is_a_number(opened_in):
    tab = opened_in(hostile())
    tab.wait_for_selector("#trials-table[data-state=drawn]")
    tab.locator("#trials-table thead button", has_text="value ").first.click()
    assert column(tab, "number")[0] == "3"


def test_hostile_text_is_shown_and_does_not_run(opened_in, monkeypatch):
    monkeypatch.setattr(page.plots, "plots", lambda _: plots(hostile_text=HOSTILE))
    tab = opened_in(hostile())
    assert draw_all(tab) == ["drawn"] * 2
    tab.wait_for_selector("#trials-table[data-state=drawn]")
    tab.get_by_label("Filter").fill("onerror")
    assert tab.evaluate("window.hacked") is None
    assert tab.locator("img").count() == 0
    assert "onerror=window.hacked=1" in tab.locator("h1").inner_text()
    assert "onerror=window.hacked=1" in tab.locator("#trials-table").inner_text()


def test_a_script_that_is_not_the_pages_own_is_refused(opened_in, browser):
    context = browser.new_context()
    tab = context.new_page()
    tab.set_content(
        page.html(grid()).replace("<main", "<script>window.hacked = 1</script><main", 1)
    )
    tab.wait_for_selector("#trials-table[data-state=drawn]")
    assert tab.evaluate("window.hacked") is None
    context.close()


def test_an_old_browser_is_told(opened_in):
    tab = opened_in(grid(), script="delete window.DecompressionStream")
    assert "DecompressionStream" in tab.locator("#message").inner_text()


def test_an_empty_study_opens(opened_in, monkeypatch):
    monkeypatch.setattr(page.plots, "plots", lambda _: [])
    tab = opened_in(empty(), width=400)
    assert "no trials yet" in tab.locator("main").inner_text()
    assert tab.evaluate("document.scrollingElement.scrollWidth") <= 400


def test_on_paper_all_plots_are_there_and_dark_on_white(opened_in):
    tab = opened_in(grid(), scheme="dark")
    eventually(tab.locator(".plot[data-state=drawn]")).to_have_count(2)
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    ink = tab.evaluate("document.querySelector('#plot-history .xtick text').style.fill")
    assert max(int(number) for number in re.findall(r"\d+", ink)) < 80
    tab.emulate_media(media="print", color_scheme="dark")
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == "rgb(255, 255, 255)"
