"""Draw the report's charts as PNG, with matplotlib, which needs no browser.

The PNG's `Description` describes each chart in words. So does `pictures.md` beside them, which shows all charts.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rotary_foundry.reporting.charts import RED, Chart, show, words
from rotary_foundry.utils.wording import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(title: str, charts: list[Chart], folder: Path) -> None:
    """Write a PNG for each chart, named by its key, and `pictures.md`.

    Raises:
        OSError: a file cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # slow to import; no pyplot, because no window is opened

    with rc_context({"text.parse_math": False}):  # a $ in a name is not math
        for chart in charts:
            figure = Figure(figsize=(10, 4.2) if chart.wide else (7, 3.4), layout="constrained")
            _draw(figure.subplots(), chart)
            figure.savefig(folder / f"{chart.key}.png", dpi=150, metadata={"Description": words(chart)})
    shown = "\n\n".join(f"![{words(chart)}]({chart.key}.png)\n\n{words(chart)}" for chart in charts)
    (folder / "pictures.md").write_text(f"# {title}\n\n{shown}\n", encoding="utf-8")


def _draw(axes: "Axes", chart: Chart) -> None:
    labelled = set()
    for series in chart.series:
        named = not (series.abandoned or series.dashed or series.label in labelled)
        labelled |= {series.label} if named else set()
        label, faint = series.label if named else None, 0.5 if series.abandoned else 1
        if series.markers:
            axes.plot(series.token, series.mean, "D", color=series.colour, mfc="white", alpha=faint, label=label)
            axes.vlines(series.token, series.low, series.high, color=series.colour, alpha=faint)
            continue
        colour = RED if series.abandoned else series.colour
        style = ":" if series.abandoned else "--" if series.dashed else "-"
        how = {"drawstyle": "steps-pre" if chart.steps else "default", "color": colour, "linewidth": 1, "alpha": faint}
        axes.plot(series.token, series.mean, style, label=label, **how)
        if series.has_band:
            axes.fill_between(series.token, series.low, series.high, color=colour, alpha=0.2 * faint, linewidth=0)
    title = chart.title + (f" ({chart.unit})" if chart.unit else "")
    if chart.log:
        axes.set_yscale("log")
        title += _without_its_beginning(axes, chart)
        axes.yaxis.set_minor_formatter(lambda value, _: show(chart, value))
    if chart.zero:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: show(chart, value))
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(left=0)
    axes.set_xlabel("tokens")
    axes.xaxis.set_major_formatter(lambda value, _: count(value))
    if len(labelled) > 1:
        axes.legend(frameon=False, fontsize=9)


def _without_its_beginning(axes: "Axes", chart: Chart) -> str:
    """Let the first hundredth of the tokens exceed the axis, as the page does; return a note on it.

    Otherwise a loss that starts at 11 would leave only a tenth of the height for the rest.
    """
    begin = 0.01 * max(series.token[-1] for series in chart.series)
    top = max(np.nanmax(series.high[series.token >= begin], initial=0) for series in chart.series)
    highest = max(np.nanmax(series.high) for series in chart.series)
    if not 0 < 1.5 * top < highest:
        return ""
    axes.set_ylim(top=1.05 * top)
    return f", begins above, up to {show(chart, highest)}"
