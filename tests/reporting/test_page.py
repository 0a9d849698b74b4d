"""The page in a real browser: Debian's Chromium, headless."""

import http.client
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from rotary_foundry.reporting import watch
from rotary_foundry.reporting.charts import report
from rotary_foundry.reporting.records import Run
from rotary_foundry.reporting.report_page import page
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.utils.errors import ConfigurationError
from tests.reporting.browser import EXECUTABLE, Browser
from tests.reporting.made_run import write_result, write_run

NANO, BASE, LARGE = "yamls/main/nano.yaml", "yamls/main/base.yaml", "yamls/main/large.yaml"
LINES = "document.querySelectorAll('#chart-loss path.line').length"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if EXECUTABLE is None:
        pytest.skip("the page is tested in Chromium, which is not here: apt-get install chromium")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def address_of(*runs: Path) -> str:
    """Of the page of some runs, without its pictures."""
    path = runs[0].parent / "report.html"
    path.write_text(page(report([Run(run) for run in runs])), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> str:
    """The address of the page of a run that went back once."""
    return address_of(write_run(tmp_path_factory.mktemp("runs") / "large", LARGE, every=200))


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> str:
    """The address of the page of two runs, one of them half way."""
    folder = tmp_path_factory.mktemp("two")
    one = write_run(folder / "one", BASE, "run_name=one", every=400)
    other = write_run(folder / "other", BASE, "run_name=other", every=400, until=0.5)
    return address_of(one, other)


def labels(browser: Browser, chart: str) -> list[str]:
    """What stands at a chart's axes."""
    return browser.run(f"[...document.querySelectorAll('#chart-{chart} .axis text')].map((one) => one.textContent)")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_it_loads_without_a_complaint_and_asks_for_nothing(browser, large, two, dark, width):
    for address in (large, two):
        browser.open(address, width=width, dark=dark)
        assert browser.run("document.querySelectorAll('path.line').length") > 10
        assert browser.errors == []
        assert browser.requests == [address]


@pytest.mark.long
def test_a_million_updates_are_a_page_that_loads_as_any_other(browser, tmp_path):
    """How long it takes is printed, and no more: what else the machine does is in that time. What the browser gets and
    makes of it is held to that of a twentieth of the updates, of which each stage has more than 500 as well."""
    smaller = ["stages.pretrain.batch_size_ramp=null", "stages.pretrain.global_train_batch_size=1780"]
    sizes, drawn = [], []
    for name, every in (("million", 1), ("twentieth", 20)):
        run = write_run(tmp_path / name / "run", BASE, *smaller, every=every)
        if every == 1:
            with open(RunFolder(run).metrics, "rb") as lines:
                assert sum(1 for _ in lines) > 1_000_000
        browser.open(address_of(run))
        assert browser.run("document.querySelectorAll('path.line').length") > 10
        assert browser.errors == []
        print(name, browser.run("performance.getEntriesByType('navigation')[0].loadEventEnd"), "ms to load")
        sizes.append((run.parent / "report.html").stat().st_size)
        drawn.append(browser.run("document.querySelector('main').outerHTML.length"))
    assert sizes[0] < 1_000_000
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)
    assert drawn[0] == pytest.approx(drawn[1], rel=0.1)


def test_it_is_light_or_dark_as_the_reader_has_it(browser, large):
    brightness = []
    for dark in (False, True):
        browser.open(large, dark=dark)
        said = browser.run("getComputedStyle(document.body).backgroundColor")
        brightness.append(sum(int(part) for part in said.removeprefix("rgb(").removesuffix(")").split(",")))
    assert brightness[0] > 600 > 150 > brightness[1]


def test_on_a_telephone_nothing_stands_out_at_the_side(browser, large, two):
    for address in (large, two):
        browser.open(address, width=390, height=844)
        assert browser.run("document.documentElement.scrollWidth") == 390
        wide = "[...document.querySelectorAll('svg')].filter((one) => one.getBoundingClientRect().right > 390).length"
        assert browser.run(wide) == 0


def test_every_picture_has_a_text_in_its_place(browser, large):
    browser.open(large)
    said = browser.run("[...document.querySelectorAll('svg')].map((one) => [one.getAttribute('role'), one.ariaLabel])")
    assert len(said) > 10
    assert all(role == "img" and any(sign.isdigit() for sign in label) for role, label in said)


def test_the_legend_takes_a_line_away_and_brings_it_back(browser, large):
    browser.open(large)
    before = browser.run(LINES)
    assert before == 2  # what was kept, and what was abandoned
    browser.click("#chart-loss .entry")
    assert browser.run(LINES) == 0
    assert browser.run("document.querySelector('#chart-loss .entry').getAttribute('aria-pressed')") == "false"
    assert browser.run("document.querySelectorAll('#chart-loss path.points').length") == 1
    browser.click("#chart-loss .entry")
    assert browser.run(LINES) == before


def test_a_run_is_taken_out_of_all_charts_at_once(browser, two):
    browser.open(two)
    lines = (
        "[...document.querySelectorAll('figure')].map((one) => one.hidden ? 0 : one.querySelectorAll('.line').length)"
    )
    before = browser.run(lines)
    browser.click("button[data-run='1']")
    after = browser.run(lines)
    assert sum(after) == pytest.approx(sum(before) / 2, abs=1)
    assert browser.run("document.querySelector('#chart-loss .legend').innerText.includes('other')") is False


def test_dragging_over_a_chart_zooms_all_of_them_and_escape_brings_the_whole_run_back(browser, large):
    browser.open(large)
    before = {name: labels(browser, name) for name in ("loss", "lr")}
    browser.drag("#chart-loss svg", 0.4, 0.5)
    zoomed = {name: labels(browser, name) for name in ("loss", "lr")}
    assert all(zoomed[name] != before[name] for name in before)
    # from 0.4 to 0.5 of the picture's width: about from 0.79 T to 1 T of 2.02 T tokens
    low, high = browser.run("view.zoomed")
    assert low == pytest.approx(0.37 * 2.019e12, rel=0.06)
    assert high == pytest.approx(0.47 * 2.019e12, rel=0.06)
    browser.run("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))")
    assert {name: labels(browser, name) for name in before} == before


def test_a_stage_s_button_zooms_to_it(browser, large):
    browser.open(large)
    browser.click(".toolbar button:nth-child(4)")
    assert browser.run("document.querySelector('.toolbar [aria-pressed=true]').textContent") == "decay"
    assert set(labels(browser, "row_length")) & {"8,000", "5,000"}
    assert "1.5 T" not in labels(browser, "lr")
    assert max(float(label) for label in labels(browser, "lr") if "T" not in label) <= 5e-5


def test_the_cursor_tells_the_values_of_all_charts_at_its_token(browser, large):
    browser.open(large)
    browser.hover("#chart-loss svg", 0.3)
    said = browser.run("document.querySelector('.position').textContent")
    token = int(said.removeprefix("token ").replace(",", ""))
    assert token == pytest.approx(0.27 * 2.019e12, rel=0.06)
    value = "document.querySelector('#chart-{} output').textContent"
    assert browser.run(value.format("lr")) == "5e-4"
    assert browser.run(value.format("rows")) == "4,928"


def test_what_an_evaluation_found_stands_under_evaluations(browser, tmp_path):
    run = write_run(tmp_path / "run", NANO)
    write_result(run, "ba40", "needle", found=(0.0312, 0.0201, 0.0444))
    write_result(run, "export", "masked_lm", loss=(5.5913, 5.4021, 5.774), perplexity=(float("nan"), None, None))
    browser.open(address_of(run))
    rows = "[...document.querySelectorAll('#evaluations table:last-of-type tbody tr')].map((row) => row.innerText)"
    assert [row.split("\t") for row in browser.run(rows)][-3:] == [
        ["ba40", "needle", "found", "0.0312", "0.0201 to 0.0444"],
        ["export", "masked_lm", "loss", "5.591", "5.402 to 5.774"],
        ["export", "masked_lm", "perplexity", "–", "–"],
    ]
    assert browser.errors == []


def test_a_name_that_is_a_script_is_shown_and_not_run(browser, tmp_path):
    name = "</script><img src=x onerror=document.title='run'>"
    run = write_run(tmp_path / "run", NANO)
    plan = json.loads((run / "plan.json").read_text())
    (run / "plan.json").write_text(json.dumps(plan | {"name": name}))
    browser.open(address_of(run))
    assert browser.run("document.querySelector('h2').textContent") == name
    assert browser.run("document.title") == f"{name} · Rotary Foundry"
    assert browser.run("document.images.length") == 0
    assert browser.errors == []


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A server of the page of a run in progress; the run's folder, and the port."""
    monkeypatch.setattr(watch, "SECONDS", 0.2)
    run = write_run(tmp_path / "runs" / "run", NANO, "loggers.wandb={api_key: planted-secret}")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:50]))
    (tmp_path / "runs" / "secret.txt").write_text("planted-secret")
    with watch.server([run], 0) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield run, running.server_port, lines
        running.shutdown()
        thread.join()


def asked(port: int, path: str, host: str | None = None) -> tuple[int, str]:
    """The status and the body that a raw request line gets: no client tidies the path up."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: {host or f'127.0.0.1:{port}'}\r\n\r\n".encode())
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status, answer.read().decode()


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/..%2fsecret.txt",
        "/%2e%2e/secret.txt",
        "/....//secret.txt",
        "/..\\secret.txt",
        "//etc/passwd",
        "/etc/passwd",
        "http://127.0.0.1/../../../../etc/passwd",
        "file:///etc/passwd",
        "/recipe.yaml",
        "/./recipe.yaml",
        "/content.json/../recipe.yaml",
        "/checkpoints/",
        "/?file=/etc/passwd",
    ],
)
def test_there_is_no_way_to_a_file(served, path):
    status, body = asked(served[1], path)
    assert status == 404
    assert "planted" not in body and "root:" not in body


def test_what_is_served_holds_no_secret(served):
    for path in ("/", "/content.json"):
        status, body = asked(served[1], path)
        assert status == 200
        assert "(redacted)" in body and "planted-secret" not in body


def test_a_page_elsewhere_cannot_read_it_by_a_name_that_leads_here(served):
    assert asked(served[1], "/", host="elsewhere.example")[0] == 403


def test_it_listens_on_loopback_alone(served):
    own = [one.address for of in psutil.net_if_addrs().values() for one in of if one.family == socket.AF_INET]
    for address in {*own, "127.0.0.2"} - {"127.0.0.1"}:
        with pytest.raises(OSError):
            socket.create_connection((address, served[1]), timeout=5)


def test_a_taken_port_is_said(served):
    with pytest.raises(ConfigurationError, match=f"--port {served[1]}"):
        watch.serve([served[0]], served[1])


def test_the_command_says_where_it_serves_and_ends_when_it_is_interrupted(tmp_path):
    command = [Path(sys.executable).parent / "rotary-foundry", "report", write_run(tmp_path / "run", NANO), "--watch"]
    serving = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    port = int(re.search(r"http://127.0.0.1:(\d+)/", serving.stdout.readline()).group(1))
    assert asked(port, "/")[0] == 200
    serving.send_signal(signal.SIGINT)
    assert serving.communicate(timeout=60) == ("", "")
    assert serving.returncode == 0
    assert not (tmp_path / "run" / "report.html").exists()


def test_what_is_shown_is_made_anew_when_a_file_has_changed_and_not_before(served, monkeypatch):
    run, port, lines = served
    made = []
    monkeypatch.setattr(watch, "report", lambda *arguments: made.append(1) or report(*arguments))
    shown = []

    def ask() -> None:
        shown.append(json.loads(asked(port, "/content.json")[1])["runs"][0]["batch"])

    for _ in range(2):
        ask()
        assert asked(port, "/")[0] == 200
    assert len(made) == 1
    (run / "metrics.jsonl").write_text("".join(lines[:60]))
    (run / "eval.jsonl").write_text("no JSON\n")
    assert asked(port, "/content.json")[0] == 500
    (run / "eval.jsonl").unlink()
    ask()
    ask()
    assert shown == [50, 50, 60, 60]
    assert len(made) == 2


def test_a_page_that_watches_follows_the_run_and_keeps_its_zoom(browser, served):
    run, port, lines = served
    browser.open(f"http://127.0.0.1:{port}/")
    shown = "document.querySelector('.card .small').textContent"
    assert " in 50 updates" in browser.run(shown)
    browser.drag("#chart-loss svg", 0.2, 0.6)
    zoomed = browser.run("view.zoomed")
    (run / "metrics.jsonl").write_text("".join(lines[:70]) + lines[70][:50])
    until = "new Promise((done) => {{ const look = () => {} ? done(true) : setTimeout(look, 50); look(); }})"
    assert browser.run(until.format(f"{shown}.includes(' in 70 updates')"))
    assert browser.run("view.zoomed") == zoomed
    assert browser.errors == []


def test_a_page_that_watches_says_what_the_server_says_and_that_it_has_ended(browser, served):
    run, port, lines = served
    browser.open(f"http://127.0.0.1:{port}/")
    trouble = "document.querySelector('.trouble').textContent"
    until = "new Promise((done) => {{ const look = () => {} ? done(true) : setTimeout(look, 50); look(); }})"
    assert browser.run(trouble) == ""
    (run / "metrics.jsonl").write_text("no JSON\n")
    assert browser.run(until.format(f"{trouble}.includes('metrics.jsonl, line 1: no JSON')"))
    (run / "metrics.jsonl").write_text("".join(lines[:70]))
    assert browser.run(until.format(f"{trouble} === ''"))
    assert " in 70 updates" in browser.run("document.querySelector('.card .small').textContent")
    browser.run("window.fetch = () => Promise.reject(new TypeError('Failed to fetch'))")
    assert browser.run(until.format(f"{trouble}.includes('the server has ended')"))


def test_a_client_that_goes_away_is_no_traceback(served, monkeypatch, capfd):
    run, port, _ = served
    answering, gone, over = threading.Event(), threading.Event(), threading.Event()

    def slow(*arguments) -> dict:
        answering.set()
        assert gone.wait(20)
        return report(*arguments)

    monkeypatch.setattr(watch, "report", slow)
    shutdown = watch.Server.shutdown_request
    monkeypatch.setattr(watch.Server, "shutdown_request", lambda *arguments: (shutdown(*arguments), over.set()))
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing it is a reset
    connection.sendall(f"GET / HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
    assert answering.wait(20)
    connection.close()
    gone.set()
    assert over.wait(20)
    assert capfd.readouterr().err == ""
    (run / "plan.json").write_text("{}")
    assert asked(port, "/")[0] == 500  # others are answered still
