"""The report's charts as one list: figures.py draws them for the page, pictures.py as PNG.

A chart has a title, a unit, a scale, and series of points over tokens. `words` describes it in words.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from rotary_foundry.recipe.schema import all_knobs, all_metrics
from rotary_foundry.reporting.records import Bin, Run
from rotary_foundry.runs.record_values import BY_TASK, SHARES
from rotary_foundry.utils.wording import count

# Each colour has a contrast of at least 3 to white and to the page's dark background.
COLOURS = ("#2f80d0", "#d07a00", "#1f9d6b", "#b8579a", "#1f9fb0", "#7b6ee0", "#8f8220")
GREY = "#82868f"  # a reference
RED = "#e0435e"  # stretches that a rollback abandoned


@dataclass(frozen=True)
class Series:
    """Points over tokens, all arrays of float64 [points]; NaN in `mean` is a gap."""

    label: str
    token: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    colour: str
    run: int | None  # index; None: a reference
    markers: bool = False  # single measurements instead of a line
    dashed: bool = False
    abandoned: bool = False

    @property
    def has_band(self) -> bool:
        return bool(np.any(self.low < self.high))


@dataclass(frozen=True)
class Chart:
    """What is drawn over tokens, and how."""

    key: str  # in metrics.jsonl; for a chart of one run, <key>-<run>
    title: str
    unit: str = ""
    about: str = ""
    numbers: str = "number"  # or percent, exact (whole numbers in full), large (with k, M, B or T)
    log: bool = False
    zero: bool = False  # the axis begins at 0
    steps: bool = False  # a setting of the update, constant over its tokens
    wide: bool = False
    of_one_run: bool = False  # colours distinguish its parts; in other charts, each run has a colour
    series: tuple[Series, ...] = ()


LOSS = Chart(
    "loss", "Loss", "nats per predicted token; in a multi-task stage the mean of its tasks",
    "Line: training. Diamonds: held-out, at the ends of stages.",
    log=True, wide=True,
)  # fmt: skip
CHARTS = (
    LOSS,
    *(
        Chart(metric.name, metric.title, "", f"In training: {metric.meaning}.", "percent")
        for metric in all_metrics().values()
        if metric.name != LOSS.key
    ),
    Chart("lr", "Learning rate", zero=True, steps=True),
    Chart("rows", "Batch size", "rows", numbers="exact", zero=True, steps=True),
    Chart("row_length", "Row length", "tokens", numbers="exact", zero=True, steps=True),
    *(
        Chart(name, name, knob.meaning, numbers="exact" if knob.high > 1 else "number", zero=True, steps=True)
        for name, knob in all_knobs().items()
    ),
    Chart("tokens_per_second", "Throughput", "tokens per second", "Real tokens, all devices.", "large", zero=True),
    Chart("mfu", "MFU", "", "Share of the devices' peak, for the model's own operations.", "percent", zero=True),
    Chart("step_seconds", "Step time", "seconds", "The slowest rank's, without evaluation and checkpoints.", zero=True),
    Chart("data_seconds", "Waiting for data", "seconds", "Per step, the ranks' mean.", zero=True),
    Chart("memory_gb", "Memory", "GB", "Peak of the device; on CPU, of the process.", zero=True),
    Chart("grad_norm", "Gradient norm", log=True),
    Chart("update_norm", "Update norm", log=True),
    Chart("loss_spike_score", "Loss-spike score", "robust deviations"),
    Chart("slowest_lag", "Slowest rank", "", "Time of its own work over the median's, minus 1.", "percent", zero=True),
)
TASK_CHARTS = (
    Chart("task_loss", "Loss by task", "", "Line: training. Diamonds: held-out, at the ends of stages.", log=True),
    Chart("task_right", "Right by task", "", "Share of predicted tokens or examples. Diamonds: held-out.", "percent"),
    Chart("task_grad_norm", "Gradient norm by task", "", "Of the shared parameters.", log=True),
    Chart("task_weight", "Weight by task", "", "The weight of each task's gradient in the update.", zero=True),
    Chart("task_cosine", "Cosine by task", "", "Between a task's gradient and the update's."),
    Chart(
        "task_cosine_estimate", "Cosine by task, estimated", "",
        "Between a task's gradient and the update's; the standard error of an update is at most 0.004.",
    ),
)  # fmt: skip
HELD_OUT = {"task_loss": "loss", "task_right": "examples_right"}  # keys of eval.jsonl, as loss/<task>


def make_charts(runs: list[Run], reference: dict | None = None) -> list[Chart]:
    """Make the charts of some runs; metrics that no run recorded have no chart.

    Args:
        runs: the runs, overlaid in each chart.
        reference: from `find_reference`, drawn behind the runs.
    """
    names = run_names(runs)
    charts = []
    for chart in CHARTS:
        series = [*_reference_series(reference, chart.key)] if reference is not None else []
        for index, (run, name) in enumerate(zip(runs, names, strict=True)):
            label = name if len(runs) > 1 else "training" if chart is LOSS else chart.title.lower()
            colour = COLOURS[index % len(COLOURS)]
            series += _lines(run, chart.key, label, index, colour)
            if chart is LOSS:
                label, colour = (f"{name}, held-out", colour) if len(runs) > 1 else ("held-out", COLOURS[5])
                series += _held_out(run, LOSS.key, label, index, colour)
        charts.append(replace(chart, series=tuple(series)))
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        of_run = f", {name}" if len(runs) > 1 else ""
        charts += [*_by_task(run, index, of_run), _mixture(run, index, of_run)]
    return [chart for chart in charts if chart.series]


def run_names(runs: list[Run]) -> list[str]:
    """Return the runs' names, with their folders if two runs have the same name."""
    names = [run.name for run in runs]
    return [
        name if names.count(name) == 1 else f"{name} ({run.folder.path.resolve().name}, {number})"
        for number, (run, name) in enumerate(zip(runs, names, strict=True), 1)
    ]


def words(chart: Chart) -> str:
    """Describe a chart in words: first, last, lowest and highest value of each series."""
    said = []
    for series in chart.series:
        there = np.flatnonzero(np.isfinite(series.mean))
        first, last = there[0], there[-1]
        low, high = np.nanmin(series.low), np.nanmax(series.high)
        name = series.label + (" as asked" if series.dashed else "")
        name += " in a stretch that a rollback abandoned" if series.abandoned else ""
        begin, end = f"{series.token[first]:,.0f}", f"{series.token[last]:,.0f}"
        at_first, at_last, lowest, highest = (
            show(chart, value) for value in (series.mean[first], series.mean[last], low, high)
        )
        if low == high:
            said.append(f"{name} is {at_first} from {begin} to {end} tokens")
        else:
            said.append(
                f"{name} goes from {at_first} at {begin} tokens to {at_last} at {end}, "
                f"lowest {lowest}, highest {highest}"
            )
    unit = f" ({chart.unit})" if chart.unit else ""
    return f"{chart.title}{unit} against tokens: {'; '.join(said)}."


def show(chart: Chart, value: float) -> str:
    """Format a value as the chart's axis does."""
    if chart.numbers == "percent":
        return f"{100 * value:.4g} %"
    if chart.numbers == "large":
        return count(float(f"{value:.4g}"))
    return f"{value:,.10g}" if chart.numbers == "exact" else f"{value:.4g}"


def _reference_series(reference: dict, key: str) -> Iterator[Series]:
    """Yield the reference's band for a chart, and its held-out numbers, each from lowest to highest."""
    if key not in reference:
        return
    label = f"reference, {len(reference['seeds'])} seeds"
    band = (np.array(reference[key][of], dtype=float) for of in ("mean", "low", "high"))
    yield Series(label, np.array(reference["token"], dtype=float), *band, colour=GREY, run=None)
    if key == LOSS.key:
        token = np.array([line["token"] for line in reference["held_out"]], dtype=float)
        values = np.array([line[key] for line in reference["held_out"]])  # [evaluations, seeds]
        ends = (values.mean(axis=1), values.min(axis=1), values.max(axis=1))
        yield Series(f"{label}, held-out", token, *ends, colour=GREY, run=None, markers=True)


def _held_out(run: Run, key: str, label: str, index: int, colour: str) -> Iterator[Series]:
    for kept in (True, False):
        lines = [line for line in run.evaluations if line["kept"] == kept and key in line]
        token, value = (np.array([line[name] for line in lines], dtype=float) for name in ("token", key))
        if np.isfinite(value).any():
            yield Series(label, token, value, value, value, colour, index, markers=True, abandoned=not kept)


def _lines(run: Run, key: str, label: str, index: int, colour: str, dashed: bool = False) -> Iterator[Series]:
    """Yield the line of the kept updates, and one for each abandoned stretch."""
    parts: list[tuple[bool, Iterable[Bin]]] = [(False, [one for one in run.bins if one.kept])]
    abandoned = [one for one in run.bins if not one.kept]
    parts += [(True, list(part)) for _, part in groupby(abandoned, lambda one: one.rollbacks)]
    nothing = (np.nan, np.nan, np.nan)
    for is_abandoned, bins in parts:
        points = np.array([(one.token, *one.values.get(key, nothing)) for one in bins], dtype=float).reshape(-1, 4)
        if np.isfinite(points[:, 1]).any():
            yield Series(label, *points.T, colour=colour, run=index, dashed=dashed, abandoned=is_abandoned)


def _by_task(run: Run, index: int, of_run: str) -> Iterator[Chart]:
    """Yield the charts of a run's tasks, with one line per task through the updates that have the task."""
    colours = _colours_of_sources(run)
    for chart in TASK_CHARTS:
        series: list[Series] = []
        for task, colour in colours.items():
            for line in _lines(run, f"{chart.key}/{task}", task, index, colour):
                there = np.isfinite(line.mean)
                parts = {name: getattr(line, name)[there] for name in ("token", "mean", "low", "high")}
                series.append(replace(line, **parts))
            if chart.key in HELD_OUT:
                series += _held_out(run, f"{HELD_OUT[chart.key]}/{task}", task, index, colour)
        key, title = f"{chart.key}-{index}", chart.title + of_run
        wide = len({line.label for line in series}) > 6
        yield replace(chart, key=key, title=title, series=tuple(series), of_one_run=True, wide=wide)


def _colours_of_sources(run: Run) -> dict[str, str]:
    """Return a colour for each source or task for which a run has numbers, the same in all charts."""
    names = (name.partition("/") for one in run.bins for name in one.values)
    sources = {source for kind, _, source in names if kind in (*SHARES, *BY_TASK)}
    return {source: COLOURS[number % len(COLOURS)] for number, source in enumerate(sorted(sources))}


def _mixture(run: Run, index: int, of_run: str) -> Chart:
    about = "Solid: the share of the stage's tokens drawn so far. Dashed: the share in the recipe."
    series = [
        line
        for source, colour in _colours_of_sources(run).items()
        for kind in reversed(SHARES)
        for line in _lines(run, f"{kind}/{source}", source, index, colour, dashed=kind == "asked")
    ]
    chart = Chart(f"mixture-{index}", f"Mixture{of_run}", "", about, "percent", zero=True, of_one_run=True)
    return replace(chart, series=tuple(series), wide=len({line.label for line in series}) > 6)
