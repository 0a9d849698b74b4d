"""The report's charts as PNG, by matplotlib, which needs no browser.

What each shows in words stands in the file's `Description`, and in `pictures.md` beside it, which shows all of them.
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
        OSError: they cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # slow to import; and no pyplot: nothing is to be shown in a window

    with rc_context({"text.parse_math": False}):  # a name with a $ in it is a name
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
    """Let the first hundredth of the tokens reach above the axes, as the page does, and say so.

    A loss that starts at 11 would leave what counts a tenth of the height.
    """
    begin = 0.01 * max(series.token[-1] for series in chart.series)
    top = max(np.nanmax(series.high[series.token >= begin], initial=0) for series in chart.series)
    highest = max(np.nanmax(series.high) for series in chart.series)
    if not 0 < 1.5 * top < highest:
        return ""
    axes.set_ylim(top=1.05 * top)
    return f", begins above, up to {show(chart, highest)}"
