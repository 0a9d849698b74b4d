"""`rotary-foundry report`: one HTML file that needs no network, and its charts as PNG.

plotly draws the charts; its script (4.8 MB) is in the page. Titles, tables and each chart's description are plain HTML,
so they wrap on a phone, and screen readers can read them. The page's content policy forbids every address, so the page
can neither load anything nor send what it shows.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np
import yaml

from rotary_foundry.recipe.mixtures import grouped
from rotary_foundry.recipe.schema import all_metrics
from rotary_foundry.reporting.charts import COLOURS, Chart, make_charts, run_names, words
from rotary_foundry.reporting.pictures import draw
from rotary_foundry.reporting.records import BINS, Run
from rotary_foundry.reporting.reference import find_reference
from rotary_foundry.runs.record_values import BY_TASK
from rotary_foundry.utils.errors import ConfigurationError
from rotary_foundry.utils.wording import count, number

PAGE = "report.html"
PICTURES = "report"  # folder
SWATCH = '<span class="swatch"></span>'
RECENT = 50  # updates whose median is shown at the top


def write_report(paths: list[Path], out: Path | None = None, reference: Path | None = None) -> tuple[Path, list[str]]:
    """Write the page, and the pictures into a folder beside it.

    Returns:
        the page's path, and a sentence for each damaged file, from which the page shows only the rest.

    Args:
        paths: the runs' folders.
        out: the folder for the page; by default a single run's own, else the current one.
        reference: a file of `write_reference`; by default the built-in one of the runs' recipe, if there is one.

    Raises:
        ConfigurationError: a folder has no run, the page cannot be written, or the reference is for another recipe.
        DataError: the reference is broken.
    """
    runs = [Run(path) for path in paths]
    charts = make_charts(runs, find_reference(runs, reference))
    out = out or (paths[0] if len(paths) == 1 else Path())
    try:
        (out / PICTURES).mkdir(parents=True, exist_ok=True)
        (out / PAGE).write_text(page(runs, charts), encoding="utf-8")
        draw(", ".join(run_names(runs)), charts, out / PICTURES)
    except OSError as error:
        raise ConfigurationError(f"{out / PAGE} cannot be written: {error}") from error
    return out / PAGE, [problem for run in runs for problem in run.problems]


def page(runs: list[Run], charts: list[Chart]) -> str:
    """Return the page's HTML."""
    from plotly.offline import get_plotlyjs  # slow to import

    from rotary_foundry.reporting.figures import figure

    names = run_names(runs)
    content = {
        "figures": [figure(chart, runs).to_plotly_json() for chart in charts],
        "stages": [
            [name, segments[0]["start_token"], segments[-1]["end_token"]] for name, segments in runs[0].stages.items()
        ],
        "tokens": max(1, *(max(run.plan.get("total_tokens", 0), _position(run)[0]) for run in runs)),
    }
    parts = {
        "TITLE": escape(", ".join(names)),
        "BODY": "\n".join(_body(runs, names, charts)),
        "STYLE": _file("page.css"),
        "SCRIPT": _file("page.js"),
        "CONTENT": json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "PLOTLY": get_plotlyjs(),
    }
    return re.sub(r"/\*([A-Z]+)\*/", lambda place: parts[place[1]], _file("page.html"))


def _file(name: str) -> str:
    return (files(__package__) / "page" / name).read_text(encoding="utf-8")


def _body(runs: list[Run], names: list[str], charts: list[Chart]) -> Iterable[str]:
    named, many = list(zip(runs, names, strict=True)), len(runs) > 1
    cards = "".join(_card(run, name, index, many) for index, (run, name) in enumerate(named))
    yield f'<div class="cards">{cards}</div>'
    problems = "".join(f"<li>{escape(problem)}</li>" for run in runs for problem in run.problems)
    yield _block("Not shown", f"<ul>{problems}</ul>") if problems else ""
    shown = "".join(
        f'<button type="button" class="run" data-run="{index}" aria-pressed="true" style="{_colour(index)}" '
        f'title="{escape(name)}">{SWATCH}{escape(name)}</button>'
        for index, name in enumerate(names if many else [])
    )
    yield f'<nav class="toolbar" aria-label="Zoom, and runs that are shown">{shown}</nav>'
    yield f'<div class="grid">{"".join(_figure(chart) for chart in charts)}</div>'
    for run, name in named:
        yield _block(f"Recipe, {name}" if many else "Recipe", _recipe(run))
    yield _evaluations(named)
    yield _rollbacks(named)
    if many:
        yield _block("What differs", _differences(runs, names))
    for run, name in named:
        parts = [("Environment", run.environment), ("Configuration", run.config)]
        shown = "".join(
            f"<details><summary>{title}</summary><pre>{escape(yaml.safe_dump(what, sort_keys=False))}</pre></details>"
            for title, what in parts
            if what
        )
        yield _block(f"Configuration and environment, {name}" if many else "Configuration and environment", shown)
    thinned = any(one.first < one.last for run in runs for one in run.bins)
    yield f"<footer>Written {_moment(datetime.now().astimezone())}. " + (
        f"Where a stage has more than {BINS} updates, neighbouring ones share a point: the line is their mean, and "
        "the band behind it reaches from the lowest to the highest.</footer>"
        if thinned
        else "Every update is drawn.</footer>"
    )


def _card(run: Run, name: str, index: int, many: bool) -> str:
    token, batch = _position(run)
    total = run.plan.get("total_tokens", 0)
    done = min(1.0, token / total) if total else 0.0
    speed, kept = _recent(run, "tokens_per_second"), [line for line in run.evaluations if line["kept"]]
    facts = [
        ("loss", _recent(run, "loss"), "{:.3f}".format),
        ("held-out", kept[-1]["loss"] if kept else None, "{:.3f}".format),
        ("tokens/s", speed, count),
        ("MFU", _recent(run, "mfu"), "{:.1%}".format),
        ("rollbacks", len(run.rollbacks) or None, str),
        ("to go, at this rate", (total - token) / speed if speed and done < 1 else None, _duration),
    ]
    shown = "".join(
        f"<div><dt>{key}</dt><dd>{escape(show(value))}</dd></div>" for key, value, show in facts if value is not None
    )
    state = "no update yet" if not batch else "finished" if done == 1 else f"{math.floor(1000 * done) / 10:.1f} %"
    written = f"; the last one written {_moment(run.last_written)}" if run.last_written else ""
    progress = f"{token:,} of {total:,} tokens"
    return (
        f'<section class="card" style="{_colour(index)}">'
        f"<header><h2>{SWATCH if many else ''}{escape(name)}</h2><span>{state}</span></header>"
        f'<progress max="1" value="{done}" aria-label="{progress}"></progress>'
        f"<p>{progress} in {batch:,} updates{written}</p><dl>{shown}</dl></section>"
    )


def _colour(index: int) -> str:
    return f"--c:{COLOURS[index % len(COLOURS)]}"


def _figure(chart: Chart) -> str:
    said = escape(words(chart))
    return (
        f'<figure id="chart-{escape(chart.key)}"{" class=wide" if chart.wide else ""}>'
        f"<figcaption><h3>{escape(chart.title)} <small>{escape(chart.unit)}</small></h3>"
        f'<p>{escape(chart.about)}</p></figcaption><div class="plot" role="img" aria-label="{said}"></div>'
        f"<details><summary>In words</summary><p>{said}</p></details></figure>"
    )


def _recipe(run: Run) -> str:
    rows = []
    of_tasks = {one.stage for one in run.bins for name in one.values if name.partition("/")[0] in BY_TASK}
    for stage, segments in run.stages.items():
        first, last = segments[0], segments[-1]
        theta = np.ravel([segment["knobs"]["rope_theta"] for segment in segments if "rope_theta" in segment["knobs"]])
        highest = max(segment[end] for segment in segments for end in ("lr_start", "lr_end"))
        rates = dict.fromkeys((first["lr_start"], highest, last["lr_end"]))
        mixture = ", ".join(f"{source} {share:g}" for source, share in grouped(first["mixture"] or {}).items())
        rows.append(
            [
                stage,
                f"{last['end_token'] - first['start_token']:,}",
                f"{sum(segment['updates'] for segment in segments):,}",
                _span(f"{first['rows']:,}", f"{last['rows']:,}"),
                f"{first['row_length']:,}",
                _span(f"{theta[0]:,.0f}", f"{theta[-1]:,.0f}") if len(theta) else None,
                " → ".join(map(number, rates)),
                _span(number(first["weight_decay"]), number(last["weight_decay"])),
                mixture or ("the tasks' weights" if stage in of_tasks else "every row once"),
            ]
        )
    heads = ["stage", "tokens", "updates", "rows", "length", "theta", "learning rate", "weight decay", "mixture"]
    return _table(heads, rows)


def _evaluations(runs: list[tuple[Run, str]]) -> str:
    held_out = [
        [
            name,
            line["stage"] if line["batch"] else "first weights",
            f"{line['batch']:,}",
            f"{line['token']:,}",
            f"{line['row_length']:,}" if "row_length" in line else None,
            f"{line['loss']:.4f}",
            None if _tasks_of(line) else f"{math.exp(min(line['loss'], 700)):.4g}",
            next((f"{line[name]:.1%}" for name in all_metrics() if name in line and name != "loss"), None),
            "" if line["kept"] else "abandoned",
        ]
        for run, name in runs
        for line in run.evaluations
        if line["loss"] is not None
    ]
    results = [
        [name, one["model"], one["suite"], one["name"], *_interval(one["value"], one["low"], one["high"])]
        for run, name in runs
        for one in run.results
    ]
    heads = ["run", "after", "update", "tokens", "length", "held-out loss", "perplexity", "accuracy", ""]
    shown = _table(heads, held_out, skip=len(runs) == 1) if held_out else ""
    by_task = [
        [name, line["stage"], task, f"{line[f'loss/{task}']:.4f}", f"{line[f'examples_right/{task}']:.1%}"]
        for name, line in ((name, line) for run, name in runs for line in run.evaluations if line["kept"])
        for task in _tasks_of(line)
    ]
    if by_task:
        shown += _table(["run", "after", "task", "held-out loss", "right"], by_task, "texts", skip=len(runs) == 1)
    if results:
        shown += "<p>Measured by rotary-foundry evaluate, with 95 % intervals where they are known:</p>"
        heads = ["run", "model", "suite", "measure", "value", "95 % interval"]
        shown += _table(heads, results, "texts", skip=len(runs) == 1)
    return _block("Evaluations", shown) if shown else ""


def _tasks_of(evaluation: dict) -> list[str]:
    """Return the tasks of a multi-task stage, from a line of eval.jsonl; empty for other stages."""
    return [key.removeprefix("loss/") for key in evaluation if key.startswith("loss/")]


def _interval(value: float, low: float | None, high: float | None) -> tuple[str, str | None]:
    """Format a value and its interval, with as many decimals as in the tables of `evaluate`."""
    decimals = 3 if max(abs(one or 0) for one in (value, low, high)) >= 0.1 else 4
    shown = ["–" if one is None or not math.isfinite(one) else f"{one:.{decimals}f}" for one in (value, low, high)]
    return shown[0], None if low is None and high is None else f"{shown[1]} to {shown[2]}"


def _rollbacks(runs: list[tuple[Run, str]]) -> str:
    rows = [
        [
            name,
            str(back["number"]),
            back.get("trigger"),
            f"{back['token']:,}",
            f"{back['to_token']:,}",
            *("as it was" if back.get(key) is None else number(back[key]) for key in ("lr", "weight_decay")),
            back.get("data"),
            back.get("why"),
        ]
        for run, name in runs
        for back in run.rollbacks
    ]
    heads = ["run", "", "trigger", "from token", "back to", "learning rate", "weight decay", "data", "why"]
    return _block("Rollbacks", _table(heads, rows, skip=len(runs) == 1)) if rows else ""


def _differences(runs: list[Run], names: list[str]) -> str:
    rows = [[key, *values] for key, values in differences(runs).items()]
    if not rows:
        return "<p>Nothing: the runs have the same configuration.</p>"
    return _table(["key", *names], rows, "texts")


def differences(runs: list[Run]) -> dict[str, list[str | None]]:
    """Return the values of the configuration and environment that differ between runs, by dotted key."""
    flat = [_flat(run.config) | _flat({"environment": run.environment}) for run in runs]
    keys = dict.fromkeys(key for one in flat for key in one)
    found = {key: [str(one[key]) if key in one else None for one in flat] for key in keys}
    return {key: values for key, values in found.items() if len(set(values)) > 1}


def _flat(config: object, above: str = "") -> dict[str, object]:
    """Flatten a nested configuration to dotted keys; stages in a list are keyed by their names."""
    if isinstance(config, list) and config and all(isinstance(item, dict) and "name" in item for item in config):
        config = {item["name"]: item for item in config}
    if not isinstance(config, dict):
        return {above: config}
    found: dict[str, object] = {}
    for key, value in config.items():
        found |= _flat(value, f"{above}.{key}" if above else str(key))
    return found


def _position(run: Run) -> tuple[int, int]:
    """Return the token and the update that the run has reached."""
    last = next((one for one in reversed(run.bins) if one.kept), None)
    return (last.token, last.last) if last else (0, 0)


def _recent(run: Run, key: str) -> float | None:
    """Return the median of about the last RECENT updates that have a number."""
    values: list[float] = []
    updates = 0
    for one in reversed([one for one in run.bins if one.kept and key in one.values]):
        if updates >= RECENT:
            break
        values.append(one.values[key][0])
        updates += one.last - one.first + 1
    return float(np.median(values)) if values else None


def _table(heads: Sequence[str], rows: Sequence[Sequence[str | None]], kind: str = "", skip: bool = False) -> str:
    """Return a table as HTML; `skip` leaves out the first column, the run's name, for a single run."""
    first = 1 if skip else 0
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads[first:])
    cells = [["–" if cell is None else str(cell) for cell in row[first:]] for row in rows]
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in cells)
    return f'<div class="scroll {kind}"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _block(title: str, content: str) -> str:
    return f'<section class="block"><h2>{escape(title)}</h2>{content}</section>'


def _span(first: str, last: str) -> str:
    return first if first == last else f"{first} → {last}"


def _moment(when: datetime) -> str:
    return when.strftime("%-d %B %Y, %H:%M")


def _duration(seconds: float) -> str:
    for unit, size, least in (("days", 86400, 172800), ("h", 3600, 5400), ("min", 60, 90)):
        if seconds >= least:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.0f} s"
