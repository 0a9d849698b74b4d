"""The page in a real browser: Debian's Chromium, headless."""

import json
from pathlib import Path

import pytest

from rotary_foundry.reporting.charts import make_charts, words
from rotary_foundry.reporting.records import Run
from rotary_foundry.reporting.reference import find_reference
from rotary_foundry.reporting.report_page import page
from rotary_foundry.runs.run_folder import RunFolder
from tests.reporting.browser import EXECUTABLE, Browser
from tests.reporting.made_run import write_result, write_run

NANO, BASE, LARGE = "yamls/main/nano.yaml", "yamls/main/base.yaml", "yamls/main/large.yaml"
LINES = "document.querySelectorAll('#chart-loss .scatterlayer path.js-line').length"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if EXECUTABLE is None:
        pytest.skip("the page is tested in Chromium, which is not here: apt-get install chromium")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def address_of(*paths: Path) -> str:
    """The address of the page of some runs, written without its pictures."""
    runs = [Run(path) for path in paths]
    path = paths[0].parent / "report.html"
    path.write_text(page(runs, make_charts(runs, find_reference(runs))), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def large_run(tmp_path_factory) -> Path:
    """A run that was rolled back once."""
    return write_run(tmp_path_factory.mktemp("runs") / "large", LARGE, every=200)


@pytest.fixture(scope="module")
def large(large_run) -> str:
    return address_of(large_run)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> str:
    """The address of the page of two runs, one of them half way."""
    folder = tmp_path_factory.mktemp("two")
    one = write_run(folder / "one", BASE, "run_name=one", every=400)
    other = write_run(folder / "other", BASE, "run_name=other", every=400, until=0.5)
    return address_of(one, other)


def opened(browser: Browser, address: str, width: int = 1280, dark: bool = False) -> Browser:
    """The browser with a page all of whose charts are drawn; it stays if the test before has only read it."""
    shown = address, width, 900, dark
    if browser.shows != shown:
        browser.open(*shown)
        browser.run("all")
    return browser


def ticks(browser: Browser, chart: str) -> list[str]:
    """What stands at a chart's axes."""
    return browser.run(
        f"[...document.querySelectorAll('#chart-{chart} :is(.xtick, .ytick) text')].map((one) => one.textContent)"
    )


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_it_loads_without_a_complaint_and_asks_for_nothing(browser, large, two, dark, width):
    for address in (two, large):
        opened(browser, address, width, dark)
        assert browser.run("document.querySelectorAll('path.js-line').length") > 10
        assert browser.errors == []
        assert browser.requests == [address]
        if width == 390:  # a telephone, on which nothing stands out at the side
            assert browser.run("document.documentElement.scrollWidth") == 390
            out = (
                "[...document.querySelectorAll('svg, svg text')].filter((it) => it.getBoundingClientRect().right > 390)"
            )
            assert browser.run(f"{out}.map((one) => one.outerHTML.slice(0, 200))") == []


def test_every_chart_has_a_text_in_its_place(browser, large, large_run):
    opened(browser, large)
    said = browser.run("plots.map((one) => [one.getAttribute('role'), one.ariaLabel])")
    assert said == [["img", words(chart)] for chart in make_charts([Run(large_run)])]


def test_stages_and_what_a_rollback_abandoned_lie_behind_the_lines(browser, large, large_run):
    opened(browser, large)
    back = json.loads((large_run / "rollbacks.jsonl").read_text())
    stages = browser.run("content.stages")
    for shapes in browser.run("plots.map((one) => one.layout.shapes.map(({type, x0, x1}) => [type, x0, x1]))"):
        assert shapes[-1] == ["rect", back["to_token"], back["token"]]
        assert shapes[:-1] == [["line", start, start] for _, start, _ in stages[1:]]


@pytest.mark.parametrize("dark", [False, True])
def test_it_is_light_or_dark_as_the_reader_has_it_and_readable_in_both(browser, large, dark):
    def brightness(selector: str, of: str) -> int:
        said = browser.run(f"getComputedStyle(document.querySelector('{selector}')).{of}")
        return sum(int(part) for part in said.removeprefix("rgb(").removesuffix(")").split(","))

    opened(browser, large, dark=dark)
    for selector, of in (("h2", "color"), ("#chart-loss .xtick text", "fill"), ("#chart-loss .legendtext", "fill")):
        text, behind = brightness(selector, of), brightness("#chart-loss", "backgroundColor")
        assert text - behind > 300 if dark else behind - text > 300


@pytest.mark.long
def test_a_million_updates_are_a_page_that_loads_as_any_other(browser, tmp_path):
    """The time is printed only: it depends on what else the machine does. What the browser gets is held to that of a
    twentieth of the updates, of which each stage has more than 500 as well."""
    smaller = ["stages.pretrain.batch_size_ramp=null", "stages.pretrain.global_train_batch_size=1780"]
    sizes, drawn = [], []
    for name, every in (("million", 1), ("twentieth", 20)):
        run = write_run(tmp_path / name / "run", BASE, *smaller, every=every)
        if every == 1:
            with open(RunFolder(run).metrics, "rb") as lines:
                assert sum(1 for _ in lines) > 1_000_000
        address = address_of(run)
        for _ in range(3):
            browser.open(address)
            loaded = browser.run("performance.getEntriesByType('navigation')[0].loadEventEnd")
            whole = browser.run("all.then(() => performance.now())")
            print(f"{name}: loaded after {loaded:.0f} ms, all charts drawn after {whole:.0f} ms")
        assert browser.errors == []
        sizes.append((run.parent / "report.html").stat().st_size)
        drawn.append(browser.run("document.querySelector('main').outerHTML.length"))
    assert sizes[0] < 8_000_000
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)
    assert drawn[0] == pytest.approx(drawn[1], rel=0.1)


@pytest.mark.long
def test_it_follows_a_reader_who_turns_to_dark_later(browser, large):
    text = "getComputedStyle(document.querySelector('#chart-loss .xtick text')).fill"
    opened(browser, large)
    light = browser.run(text)
    browser.prefer(dark=True)
    assert browser.run(text) != light


@pytest.mark.long
def test_the_legend_takes_a_line_away_and_brings_it_back(browser, large):
    opened(browser, large)
    before = browser.run(LINES)
    assert before > 2
    for expected in (before - 2, before):  # the line and its band
        browser.click("#chart-loss .legendtoggle")
        browser.run("new Promise((done) => setTimeout(done, 700))")  # plotly waits for a second click
        assert browser.run(LINES) == expected


@pytest.mark.long
def test_a_run_is_taken_out_of_all_charts_at_once(browser, two):
    opened(browser, two)
    lines = "plots.map((one) => one.querySelectorAll('path.js-line').length)"
    before = browser.run(lines)
    browser.click("button[data-run='1']")
    after = browser.run(lines)
    assert [2 * count for count in after[:5]] == before[:5]
    browser.click("button[data-run='1']")
    assert browser.run(lines) == before


@pytest.mark.long
def test_dragging_over_a_chart_zooms_all_of_them_and_escape_brings_the_whole_run_back(browser, large):
    opened(browser, large)
    before = {name: ticks(browser, name) for name in ("loss", "lr")}
    browser.drag("#chart-loss .nsewdrag", 0.4, 0.5)
    low, high = browser.run("view")
    assert (low, high) == (pytest.approx(0.4 * 2.019e12, rel=0.02), pytest.approx(0.5 * 2.019e12, rel=0.02))
    ranges = browser.run("plots.map((one) => one.layout.xaxis.range)")
    assert ranges == [[low, high]] * len(ranges)
    assert all(ticks(browser, name) != before[name] for name in before)
    browser.run("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))")
    assert {name: ticks(browser, name) for name in before} == before


@pytest.mark.long
def test_a_stage_s_button_zooms_to_it_and_the_values_fit(browser, large):
    opened(browser, large)
    browser.click(".toolbar button:nth-child(4)")
    assert browser.run("document.querySelector('.toolbar [aria-pressed=true]').textContent") == "decay"
    assert browser.run("view") == browser.run("content.stages[2].slice(1)")
    assert browser.run("document.querySelector('#chart-lr .plot').layout.yaxis.range[1]") == pytest.approx(5.3e-5)


@pytest.mark.long
def test_a_reference_is_a_band_behind_the_run(browser, tmp_path):
    opened(browser, address_of(write_run(tmp_path / "run", NANO)))
    filled = browser.run("[...document.querySelectorAll('#chart-loss path.js-fill')].map((one) => one.style.fill)")
    assert filled == ["rgb(130, 134, 143)"]
    names = browser.run("[...document.querySelectorAll('#chart-loss .legendtext')].map((one) => one.textContent)")
    assert names[0] == "reference, 5 seeds"


def test_what_an_evaluation_found_stands_under_evaluations(browser, tmp_path):
    run = write_run(tmp_path / "run", NANO)
    write_result(run, "ba40", "needle", found=(0.0312, 0.0201, 0.0444))
    write_result(run, "export", "masked_lm", loss=(5.5913, 5.4021, 5.774), perplexity=(float("nan"), None, None))
    browser.open(address_of(run))
    rows = "[...document.querySelectorAll('.texts tbody tr')].map((row) => row.innerText)"
    assert [row.split("\t") for row in browser.run(rows)] == [
        ["ba40", "needle", "found", "0.0312", "0.0201 to 0.0444"],
        ["export", "masked_lm", "loss", "5.591", "5.402 to 5.774"],
        ["export", "masked_lm", "perplexity", "–", "–"],
    ]


def test_a_name_that_is_a_script_is_shown_and_not_run(browser, tmp_path):
    name = "</script><img src=x onerror=document.title='run'>"
    run = write_run(tmp_path / "run", NANO)
    (run / "plan.json").write_text((run / "plan.json").read_text().replace('"pretrain"', json.dumps(name)))
    plan = json.loads((run / "plan.json").read_text())
    (run / "plan.json").write_text(json.dumps(plan | {"name": name}))
    opened(browser, address_of(run))
    assert browser.run("document.querySelector('h2').textContent") == name
    assert browser.run("document.title") == f"{name} · Rotary Foundry"
    assert browser.run("document.querySelector('.toolbar button:nth-child(2)').textContent") == name
    assert browser.run("document.images.length") == 0
    assert browser.errors == []
