"""A suite's results as a PNG: a panel for each measure, a point with its interval for each row and model.

The words that describe the picture are in the file's `Description`.
"""

from collections.abc import Sequence
from pathlib import Path

from rotary_foundry.evaluation.results import Measure, Result
from rotary_foundry.reporting.charts import COLOURS

ACROSS = 2  # panels


def draw(results: Sequence[Result], path: Path) -> str:
    """Write the picture of one suite's results, of one model or of several; return its description."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # slow to import; no pyplot, because no window is opened

    found = [{_label(row.labels): row.measures for row in result.rows} for result in results]
    names = [result.model["name"] for result in results]
    measures = list(dict.fromkeys(name for one in found for of_row in one.values() for name in of_row))
    headlines = ("; ".join(f"{one.name} {one.measure}" for one in result.headlines) for result in results)
    words = ". ".join([results[0].title, *(f"{name}: {said}" for name, said in zip(names, headlines, strict=True))])
    with rc_context({"text.parse_math": False}):  # a name with a $ in it is a name
        down = -(-len(measures) // ACROSS)
        figure = Figure(figsize=(12, 4.2 * down), layout="constrained")
        panels = figure.subplots(down, min(ACROSS, len(measures)), squeeze=False).flat
        for axes, measure in zip(panels, measures, strict=False):
            rows = list(dict.fromkeys(row for one in found for row in one if measure in one[row]))
            _points(axes, rows, [[one.get(row, {}).get(measure) for row in rows] for one in found], names)
            axes.set_title(measure, loc="left", fontsize=11)
            axes.spines[["top", "right"]].set_visible(False)
        figure.axes[0].legend(frameon=False, fontsize=9)
        for axes in figure.axes[len(measures) :]:
            axes.remove()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, metadata={"Description": words})
    return words


def _label(labels: dict[str, str | int]) -> str:
    first = next(iter(labels.values()))
    return f"{first:,}" if isinstance(first, int) else first


def _points(axes, rows: Sequence[str], measures: Sequence[Sequence[Measure | None]], names: Sequence[str]) -> None:
    """A point with its interval for each row and model, side by side. No bars: a loss does not begin at zero.

    Args:
        rows: from left to right.
        measures: for each model a measure for each row; None where there is none.
        names: of the models, each of which has a colour.
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
