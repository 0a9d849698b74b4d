"""What the page shows, as plain data: runs, charts with their lines, tables, and each chart in words.

The page and the PNGs are drawn from the same. A line has at most BUCKETS points for each stage of a run, however long
the run is: beyond that an update shares a bucket with its neighbours, which has their mean for the line, and their
lowest and highest for a band behind it. So nothing that stands out is lost, and a stage of a hundredth of the tokens
has as many points as the others when one zooms to it. What changes only here and there (batch size, theta) keeps its
corners to the update.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from rotary_foundry.recipe.schema import all_knobs, all_metrics
from rotary_foundry.reporting.records import SHARES, Run, Track

BUCKETS = 500
DIGITS = 4  # of a number in the page
COLOURS = 7  # in the page's style; further runs take them again
NO_RUN = -1
GREY = 7  # the one after them, a reference's


@dataclass(frozen=True)
class Quantity:
    """A column of the metrics that has a chart."""

    key: str
    title: str
    unit: str
    about: str = ""
    log: bool = False
    percent: bool = False
    zero: bool = False  # the axis begins at 0
    steps: bool = False  # it is set for an update, not measured at its end
    exact: bool = False  # whole numbers, shown in full


LOSS = Quantity(
    "loss", "Loss", "nats a predicted token", "Lines: training. Diamonds: held-out, at the ends of stages.", True
)
QUANTITIES = (
    *(
        Quantity(metric.name, metric.title, "", f"In training: {metric.meaning}.", percent=True)
        for metric in all_metrics().values()
        if metric.name != "loss"
    ),
    Quantity("lr", "Learning rate", "", zero=True, steps=True),
    Quantity("rows", "Batch size", "rows", zero=True, steps=True, exact=True),
    Quantity("row_length", "Row length", "tokens", zero=True, steps=True, exact=True),
    *(
        Quantity(name, name, knob.meaning, zero=True, steps=True, exact=knob.high > 1)
        for name, knob in all_knobs().items()
    ),
    Quantity("tokens_per_second", "Throughput", "tokens a second", "Real tokens, all devices.", zero=True),
    Quantity("mfu", "MFU", "", "Share of the devices' peak, for the model's own operations.", percent=True, zero=True),
    Quantity("memory_gb", "Memory", "GB", "Peak of the device; on CPU, of the process.", zero=True),
    Quantity("grad_norm", "Gradient norm", "", log=True),
    Quantity("update_norm", "Update norm", "", log=True),
    Quantity("loss_spike_score", "Loss-spike score", "robust deviations"),
    Quantity("slowest_lag", "Slowest rank", "", "Its own work over the median's, less one.", percent=True, zero=True),
)  # fmt: skip
STEP_PARTS = {
    "data_seconds": "waiting for data",
    "forward_seconds": "forward",
    "backward_seconds": "backward",
    "optimizer_seconds": "optimizer",
    "communication_seconds": "communication",
}


def report(runs: list[Run], reference: dict | None = None) -> dict:
    """The content of the page, as plain JSON types; with a reference behind the lines that it has (reference.py)."""
    names = _names(runs)
    charts = [_loss_chart(runs, names), *(_chart(quantity, runs, names) for quantity in QUANTITIES)]
    for chart in charts if reference is not None else ():
        chart["series"] = [*_reference_lines(reference, chart["id"]), *chart["series"]]
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        of_run = f", {name}" if len(runs) > 1 else ""
        charts += [_step_chart(run, index, of_run), *_mixture_charts(run, index, of_run)]
    charts = [chart for chart in charts if chart["series"]]
    for chart in charts:
        chart["words"] = _words(chart)
    return {
        "title": ", ".join(names),
        "written": datetime.now().astimezone().isoformat(timespec="seconds"),
        "buckets": BUCKETS,
        "thinned": any(len(track.token) > BUCKETS for run in runs for track in run.tracks.values()),
        "runs": [_run(run, name) for run, name in zip(runs, names, strict=True)],
        "tokens": _shared_tokens(charts),
        "charts": charts,
        "differences": _differences(runs) if len(runs) > 1 else [],
    }


def _reference_lines(reference: dict, key: str) -> Iterator[dict]:
    """The band of a chart that the reference knows, and its held-out numbers, each from lowest to highest."""
    if key not in reference:
        return
    label = f"reference, {len(reference['seeds'])} seeds"
    band = {name: reference[key][of] for name, of in (("y", "mean"), ("low", "low"), ("high", "high"))}
    yield _series(label, NO_RUN, GREY) | {"x": reference["token"]} | band
    if key == LOSS.key:
        values = [line[key] for line in reference["held_out"]]
        yield _series(f"{label}, held-out", NO_RUN, GREY, points=True) | {
            "x": [line["token"] for line in reference["held_out"]],
            "y": [_round(sum(seeds) / len(seeds)) for seeds in values],
            "low": [min(seeds) for seeds in values],
            "high": [max(seeds) for seeds in values],
        }


def _shared_tokens(charts: list[dict]) -> list[list[int]]:
    """The tokens of all series, once each: most lie at the same. A series then has the number of its own."""
    found: dict[tuple, int] = {}
    for chart in charts:
        for series in chart["series"]:
            series["tokens"] = found.setdefault(tuple(series.pop("x")), len(found))
    return [list(tokens) for tokens in found]


def _names(runs: list[Run]) -> list[str]:
    """The runs' names, with their folders where two have the same."""
    names = [run.name for run in runs]
    return [
        name if names.count(name) == 1 else f"{name} ({os.path.basename(run.folder.path.resolve())}, {index})"
        for index, (run, name) in enumerate(zip(runs, names, strict=True), 1)
    ]


def _run(run: Run, name: str) -> dict:
    """What the page says of a run outside its charts."""
    trained = next(((track, part.stop) for track, part in reversed(run.kept) if part.stop), None)
    token = trained[0].token[trained[1] - 1] if trained else 0
    evaluations = [line for line in run.evaluations if line["kept"]]
    return {
        "name": name,
        "token": token,
        "batch": trained[0].batch[trained[1] - 1] if trained else 0,
        "total": run.plan.get("total_tokens", 0),
        "last_written": run.last_written and run.last_written.isoformat(timespec="seconds"),
        "loss": _recent(trained, "loss"),
        "held_out": evaluations[-1]["loss"] if evaluations else None,
        "tokens_per_second": _recent(trained, "tokens_per_second"),
        "mfu": _recent(trained, "mfu"),
        "segments": run.plan.get("segments", []),
        "rollbacks": run.rollbacks,
        "evaluations": run.evaluations,
        "results": run.results,
        "config": run.config,
        "environment": run.environment,
    }


def _recent(trained: tuple[Track, int] | None, key: str) -> float | None:
    """The median of the last 50 updates that have a number."""
    if trained is None or key not in trained[0].columns:
        return None
    last = np.array(trained[0].columns[key][max(0, trained[1] - 50) : trained[1]])
    last = last[np.isfinite(last)]
    return _round(np.median(last)) if len(last) else None


def _loss_chart(runs: list[Run], names: list[str]) -> dict:
    chart = _chart(LOSS, runs, names) | {"wide": True}
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        for kept in (True, False):
            found = [line for line in run.evaluations if line["kept"] == kept and _finite(line["loss"])]
            if found:
                label = "held-out" if len(runs) == 1 else f"{name}, held-out"
                series = _series(label, index, 5 if len(runs) == 1 else index, points=True, abandoned=not kept)
                series["x"] = [line["token"] for line in found]
                series["y"] = [_round(line["loss"]) for line in found]
                chart["series"].append(series)
    return chart


def _chart(quantity: Quantity, runs: list[Run], names: list[str]) -> dict:
    chart = _empty(quantity)
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        label = name if len(runs) > 1 else "training" if quantity is LOSS else quantity.title.lower()
        chart["series"] += _lines(run, quantity.key, label, index, index)
    return chart


def _step_chart(run: Run, index: int, of_run: str) -> dict:
    chart = _empty(Quantity("step", f"Step time{of_run}", "seconds", "Where an update's time goes.", zero=True))
    for colour, (key, label) in enumerate(STEP_PARTS.items()):
        chart["series"] += _lines(run, key, label, index, colour)
    return chart | {"id": f"step-{index}"}


def _mixture_charts(run: Run, index: int, of_run: str) -> Iterator[dict]:
    about = "Solid: the share of the stage's tokens drawn so far. Dashed: what the recipe asks for."
    chart = _empty(Quantity("mixture", f"Mixture{of_run}", "", about, percent=True, zero=True))
    names = {name for track in run.tracks.values() for name in track.columns}
    sources = sorted({name.split("/", 1)[1] for name in names if "/" in name})
    for colour, source in enumerate(sources):
        for kind in reversed(SHARES):
            for series in _lines(run, f"{kind}/{source}", source, index, colour):
                chart["series"].append(series | {"dashed": kind == "asked"})
    yield chart | {"id": f"mixture-{index}", "wide": len(sources) > 6}


def _empty(quantity: Quantity) -> dict:
    return {
        "id": quantity.key,
        "title": quantity.title,
        "unit": quantity.unit,
        "about": quantity.about,
        "log": quantity.log,
        "percent": quantity.percent,
        "zero": quantity.zero,
        "steps": quantity.steps,
        "exact": quantity.exact,
        "wide": False,
        "series": [],
    }


def _series(label: str, run: int, colour: int, points: bool = False, abandoned: bool = False) -> dict:
    return {
        "label": label,
        "run": run,
        "colour": colour if run == NO_RUN else colour % COLOURS,
        "points": points,
        "dashed": False,
        "abandoned": abandoned,
    }


def _lines(run: Run, key: str, label: str, index: int, colour: int) -> Iterator[dict]:
    """The line of what was kept, and one for each stretch that was abandoned."""
    kept = [_thin(track, part, key) for track, part in run.kept if key in track.columns]
    parts = [(False, np.concatenate(kept, axis=1))] if kept else []
    parts += [(True, _thin(track, part, key)) for track, part in run.abandoned if key in track.columns]
    for abandoned, (x, y, low, high) in parts:
        if not np.isfinite(y).any():
            continue
        series = _series(label, index, colour, abandoned=abandoned)
        series |= {"x": x.astype(np.int64).tolist(), "y": _numbers(y)}
        if not (np.array_equal(low, y, equal_nan=True) and np.array_equal(high, y, equal_nan=True)):
            series |= {"low": _numbers(low), "high": _numbers(high)}
        yield series


def _thin(track: Track, part: slice, key: str) -> np.ndarray:
    """Token, mean, lowest and highest of every bucket: [4, points]."""
    token = np.array(track.token[part], dtype=np.float64)
    values = np.array(track.columns[key][part])
    values[~np.isfinite(values)] = np.nan
    stage = np.array(track.stage[part])
    found = [np.empty((4, 0))]
    for piece in np.split(np.arange(len(token)), np.flatnonzero(np.diff(stage)) + 1):
        if len(piece):
            found.append(_thin_stage(token[piece], values[piece]))
    return np.concatenate(found, axis=1)


def _thin_stage(token: np.ndarray, values: np.ndarray) -> np.ndarray:
    corner = np.ones(len(values), dtype=bool)
    inner = values[1:-1]
    corner[1:-1] = ~((inner == values[:-2]) & (inner == values[2:]))
    if corner.sum() <= BUCKETS:  # all of them: the line is exact
        return np.stack([token[corner], *[values[corner]] * 3])
    edges = np.linspace(0, len(values), BUCKETS + 1).astype(int)
    begin = edges[:-1]
    there = np.isfinite(values)
    count = np.add.reduceat(there, begin, dtype=np.int64)
    with np.errstate(invalid="ignore"):
        mean = np.add.reduceat(np.where(there, values, 0), begin) / count
    middle = token[(begin + edges[1:] - 1) // 2]
    return np.stack([middle, mean, np.fmin.reduceat(values, begin), np.fmax.reduceat(values, begin)])


def _words(chart: dict) -> str:
    """The chart for those who do not see it."""
    said = []
    for series in chart["series"]:
        there = [(x, y) for x, y in zip(series["x"], series["y"], strict=True) if y is not None]
        (first_x, first), (last_x, last) = there[0], there[-1]
        low = min(value for value in series.get("low", series["y"]) if value is not None)
        high = max(value for value in series.get("high", series["y"]) if value is not None)
        name = series["label"] + (" as asked" if series["dashed"] else "")
        name += " in a stretch that a rollback abandoned" if series["abandoned"] else ""
        show = "{:.1%}".format if chart["percent"] else "{:,.5g}".format if high < 1e5 else "{:,.0f}".format
        if low == high:
            said.append(f"{name} is {show(first)} from {first_x:,} to {last_x:,} tokens")
        else:
            said.append(
                f"{name} goes from {show(first)} at {first_x:,} tokens to {show(last)} at {last_x:,}, "
                f"between {show(low)} and {show(high)}"
            )
    unit = f" ({chart['unit']})" if chart["unit"] else ""
    return f"{chart['title']}{unit} against tokens: {'; '.join(said)}."


def _differences(runs: list[Run]) -> list[dict]:
    """The values that are not the same in all runs: a row each."""
    flat = [
        _flat(run.config) | {f"environment.{key}": value for key, value in _flat(run.environment).items()}
        for run in runs
    ]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = [{"key": key, "values": [str(one[key]) if key in one else None for one in flat]} for key in keys]
    return [row for row in rows if len(set(row["values"])) > 1]


def _flat(config: object, above: str = "") -> dict[str, object]:
    """A nested configuration with dotted keys; stages that stand in a list by their names."""
    if isinstance(config, list) and config and all(isinstance(item, dict) and "name" in item for item in config):
        config = {item["name"]: item for item in config}
    if not isinstance(config, dict):
        return {above: config}
    found: dict[str, object] = {}
    for key, value in config.items():
        found |= _flat(value, f"{above}.{key}" if above else str(key))
    return found


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _round(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _numbers(values: np.ndarray) -> list[float | None]:
    """As JSON has them: rounded, whole ones without a fraction, null for what is none."""
    rounded = (_round(value) for value in values.tolist())
    return [None if value != value else int(value) if value == int(value) else value for value in rounded]
