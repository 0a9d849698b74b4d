"""The report's charts as plotly figures, without the page's colours: page.js sets them for light or dark mode."""

import math
from collections.abc import Iterator
from html import escape
from textwrap import wrap

import numpy as np
from plotly import graph_objects as go

from rotary_foundry.reporting.charts import RED, Chart, Series
from rotary_foundry.reporting.records import Run

TICKS = {"number": "~g", "percent": "~%", "exact": ",d", "large": "~s"}  # d3-format
HOVER = {"number": ".4~g", "percent": ".4~%", "exact": ",d", "large": ".4~s"}
STAGE_EDGE = "rgba(128,132,144,0.45)"
ABANDONED = "abandoned by a rollback"
BAND = 0.2  # opacity
NAME_WIDTH = 36  # characters per line of a legend, which has to fit on a phone


def figure(chart: Chart, runs: list[Run]) -> go.Figure:
    """Make the figure of a chart, with the first run's stages and all runs' rollbacks behind the lines."""
    traces = [trace for series in chart.series for trace in _traces(chart, series)]
    in_toolbar = range(len(runs)) if len(runs) > 1 and not chart.of_one_run else ()  # it shows each run's colour
    named: set[str] = set()
    for trace in traces:  # one entry of the legend for each name
        known = trace.name in named or (trace.meta["run"] in in_toolbar and trace.name != ABANDONED)
        trace.showlegend = trace.showlegend is not False and not known
        named |= {trace.name} if trace.showlegend else set()
    layout = go.Layout(
        template={},
        height=340 if chart.wide else 230,
        margin={"l": 52, "r": 12, "t": 26 if chart.wide else 10, "b": 26},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="x unified",
        dragmode="zoom",
        showlegend=len(named - {ABANDONED}) > (0 if in_toolbar else 1) or (chart.key == "loss" and ABANDONED in named),
        legend={
            "orientation": "h",
            "x": 0,
            "y": 1.08 if chart.wide else 1.02,  # page.js writes the stages' names below the first chart's
            "yanchor": "bottom",
            "bgcolor": "rgba(0,0,0,0)",
        },
        xaxis={
            "exponentformat": "B",
            "unifiedhovertitle": {"text": "%{x:,d} tokens"},
            "zeroline": False,
            "showgrid": False,
            "spikethickness": 1,
            "spikedash": "solid",
            "ticklabelstandoff": 4,
        },
        yaxis={
            "type": "log" if chart.log else "linear",
            "tickformat": TICKS[chart.numbers],
            "hoverformat": HOVER[chart.numbers],
            "zeroline": False,
            "fixedrange": True,  # a drag zooms tokens, and page.js fits the values
            "automargin": True,
            "nticks": 6,
            "ticklabelstandoff": 6,
        },
        shapes=[*_stage_edges(runs[0]), *_rollbacks(runs)],
        meta={"zero": chart.zero},
    )
    return go.Figure(traces, layout)


def _traces(chart: Chart, series: Series) -> Iterator[go.Scatter]:
    lines = wrap(ABANDONED if series.abandoned else series.label, NAME_WIDTH)
    name = "<br>".join(escape(line, quote=False) for line in lines)  # plotly reads it as HTML
    colour = RED if series.abandoned else series.colour
    common = {"name": name, "legendgroup": name, "meta": {"run": series.run}}
    if series.markers:
        reach = {
            "array": _values(series.high - series.mean),
            "arrayminus": _values(series.mean - series.low),
            "width": 0,
        }
        yield go.Scatter(
            x=_tokens(series.token),
            y=_values(series.mean),
            mode="markers",
            cliponaxis=False,
            marker={"symbol": "diamond-open", "size": 9, "color": colour, "line": {"width": 2}},
            error_y=reach if series.has_band else None,
            showlegend=False if series.abandoned else None,
            **common,
        )
        return
    if series.has_band and not chart.steps:
        there = np.isfinite(series.mean)
        token, low, high = series.token[there], series.low[there], series.high[there]
        yield go.Scatter(
            x=_tokens(np.concatenate([token, token[::-1]])),
            y=_values(np.concatenate([high, low[::-1]])),
            fill="toself",
            fillcolor=_transparent(colour, BAND / 2 if series.abandoned else BAND),
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            showlegend=False,
            **common,
        )
    yield go.Scatter(
        x=_tokens(series.token),
        y=_values(series.mean),
        mode="lines" if len(series.token) > 1 else "markers",
        line={
            "color": colour,
            "width": 1.6,
            "shape": "vh" if chart.steps else "linear",
            "dash": "dot" if series.abandoned else "dash" if series.dashed else "solid",
        },
        hoverinfo="skip" if series.abandoned else None,
        showlegend=False if series.dashed else None,
        **common,
    )


def _stage_edges(run: Run) -> list[dict]:
    starts = [segments[0]["start_token"] for segments in run.stages.values()][1:]
    line = {"color": STAGE_EDGE, "width": 1, "dash": "dot"}
    return [
        {"type": "line", "x0": start, "x1": start, "y0": 0, "y1": 1, "yref": "paper", "layer": "below", "line": line}
        for start in starts
    ]


def _rollbacks(runs: list[Run]) -> list[dict]:
    area = {"type": "rect", "y0": 0, "y1": 1, "yref": "paper", "layer": "below", "line": {"width": 0}}
    stretches = dict.fromkeys((back["to_token"], back["token"]) for run in runs for back in run.rollbacks)
    return [area | {"x0": to, "x1": at, "fillcolor": _transparent(RED, 0.1)} for to, at in stretches]


def _tokens(tokens: np.ndarray) -> list[int]:
    return tokens.astype(np.int64).tolist()


def _values(values: np.ndarray) -> list[float | None]:
    """Return five digits of each value, and None for NaN and infinity."""
    shown = [float(f"{value:.5g}") for value in values.tolist()]  # the largest floats become infinite here
    return [value if math.isfinite(value) else None for value in shown]


def _transparent(colour: str, opacity: float) -> str:
    red, green, blue = bytes.fromhex(colour[1:])
    return f"rgba({red},{green},{blue},{opacity:g})"
