"""A suite's picture as a PNG, by matplotlib; it tells itself in words, too, in the file's `Description`."""

from collections.abc import Sequence
from pathlib import Path

from rotary_foundry.evaluation.results import Measure, Result
from rotary_foundry.evaluation.suites import draw_of
from rotary_foundry.reporting.charts import COLOURS

GREY = "#888888"


def draw(results: Sequence[Result], path: Path) -> str:
    """Write the picture of one suite's results, of one model or of several, and give what is to be seen in words."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # slow to import; and no pyplot: nothing is to be shown in a window

    with rc_context({"text.parse_math": False}):  # a name with a $ in it is a name
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        words = draw_of(results[0].suite)(figure, results)
        for axes in figure.axes:
            axes.spines[["top", "right"]].set_visible(False)
            axes.title.set_fontsize(11)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, metadata={"Description": words})
    return words


def colour(index: int) -> str:
    """Of the model that is drawn as the `index`th."""
    return COLOURS[index % len(COLOURS)]


def points(axes, names: Sequence[str], measures: Sequence[Sequence[Measure | None]], labels: Sequence[str]) -> None:
    """A point with its interval for each group and model, side by side. No bars: a loss does not begin at zero.

    Args:
        names: of the groups, from left to right.
        measures: for each label a measure for each group; None where there is none.
        labels: of the models, each of which has a colour.
    """
    for index, (label, of_label) in enumerate(zip(labels, measures, strict=True)):
        there = [(group, measure) for group, measure in enumerate(of_label) if measure is not None]
        at = [group + (index - (len(labels) - 1) / 2) * 0.6 / len(labels) for group, _ in there]
        found = [measure for _, measure in there]
        values = [measure.value for measure in found]
        axes.errorbar(
            at, values, intervals(found), fmt="o", color=colour(index), elinewidth=1, markersize=5, label=label
        )
    axes.set_xticks(range(len(names)), names)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)


def intervals(measures: Sequence[Measure]) -> list[list[float]]:
    """How far each interval reaches down and up, as matplotlib's errorbar takes it; not at all where none is known."""
    reach = [(m.value - m.low, m.high - m.value) if m.low is not None else (0.0, 0.0) for m in measures]
    return [[max(0.0, down) for down, _ in reach], [max(0.0, up) for _, up in reach]]
