"""Draw a suite's results as a PNG: a panel for each measure, a point with its interval for each row and model.

Results by task, length and depth are heat maps instead, with a panel for each model and task.

The PNG's `Description` describes the picture in words.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rotary_foundry.evaluation.results import Measure, Result
from rotary_foundry.reporting.charts import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACROSS = 2  # panels per row


def draw(results: Sequence[Result], path: Path) -> str:
    """Write the picture of one suite's results, of one model or of several; return its description."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # slow to import; no pyplot, because no window is opened

    names = [result.model["name"] for result in results]
    headlines = ("; ".join(f"{one.name} {one.measure}" for one in result.headlines) for result in results)
    words = ". ".join([results[0].title, *(f"{name}: {said}" for name, said in zip(names, headlines, strict=True))])
    with rc_context({"text.parse_math": False}):  # a $ in a name is not math
        figure = Figure(layout="constrained")
        (_draw_grids if results[0].grid else _draw_points)(figure, results, names)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, metadata={"Description": words})
    return words


def _draw_points(figure: "Figure", results: Sequence[Result], names: Sequence[str]) -> None:
    found = [{_label(row.labels): row.measures for row in result.rows} for result in results]
    measures = list(dict.fromkeys(name for one in found for of_row in one.values() for name in of_row))
    down = -(-len(measures) // ACROSS)
    figure.set_size_inches(12, 4.2 * down)
    panels = figure.subplots(down, min(ACROSS, len(measures)), squeeze=False).flat
    for axes, measure in zip(panels, measures, strict=False):
        rows = list(dict.fromkeys(row for one in found for row in one if measure in one[row]))
        _points(axes, rows, [[one.get(row, {}).get(measure) for row in rows] for one in found], names)
        axes.set_title(measure, loc="left", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=9)
    for axes in figure.axes[len(measures) :]:
        axes.remove()


def _draw_grids(figure: "Figure", results: Sequence[Result], names: Sequence[str]) -> None:
    """Draw a heat map for each model (down) and task (across): depths down, lengths across, shares from 0 to 1."""
    tasks = list(dict.fromkeys(row.labels["task"] for result in results for row in result.rows))
    figure.set_size_inches(3.2 * len(tasks) + 0.8, 2.6 * len(results) + 0.6)
    panels = figure.subplots(len(results), len(tasks), squeeze=False)
    for of_model, result, name in zip(panels, results, names, strict=True):
        for axes, task in zip(of_model, tasks, strict=True):
            rows = [row for row in result.rows if row.labels["task"] == task]
            every, *depths = rows[0].measures if rows else [""]
            depths = depths or [every]  # a task without depths has only the mean of all
            values = [[row.measures[depth].value for row in rows] for depth in depths]
            axes.set_title(f"{name}: {task}", loc="left", fontsize=9)
            axes.set_yticks(range(len(depths)), depths)
            axes.set_xticks(range(len(rows)), [f"{row.labels['tokens']:,}" for row in rows])
            axes.tick_params(labelsize=8, length=0)
            if not rows:
                continue
            axes.imshow(values, cmap="RdYlGn", alpha=0.6, vmin=0, vmax=1, aspect="auto")
            for y, of_depth in enumerate(values):
                for x, value in enumerate(of_depth):
                    axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=8)


def _label(labels: dict[str, str | int]) -> str:
    first = next(iter(labels.values()))
    return f"{first:,}" if isinstance(first, int) else first


def _points(
    axes: "Axes", rows: Sequence[str], measures: Sequence[Sequence[Measure | None]], names: Sequence[str]
) -> None:
    """Draw a point with its interval for each row and model. There are no bars, because a loss does not begin at zero.

    Args:
        rows: from left to right.
        measures: for each model a measure for each row; None: no measure.
        names: the models' names; each model has a colour.
    """
    for index, (name, of_model) in enumerate(zip(names, measures, strict=True)):
        there = [(row, measure) for row, measure in enumerate(of_model) if measure is not None]
        at = [row + (index - (len(names) - 1) / 2) * 0.6 / len(names) for row, _ in there]
        ends = [(m.value if m.low is None else m.low, m.value if m.high is None else m.high) for _, m in there]
        reach = [
            [max(0.0, m.value - low) for (_, m), (low, _) in zip(there, ends, strict=True)],
            [max(0.0, high - m.value) for (_, m), (_, high) in zip(there, ends, strict=True)],
        ]
        colour = COLOURS[index % len(COLOURS)]
        values = [measure.value for _, measure in there]
        axes.errorbar(at, values, reach, fmt="o", color=colour, elinewidth=1, markersize=5, label=name)
    axes.set_xticks(range(len(rows)), rows)
    axes.tick_params(axis="x", labelsize=8, rotation=30 if len(rows) > 4 else 0)
    axes.set_xlim(-0.6, len(rows) - 0.4)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
