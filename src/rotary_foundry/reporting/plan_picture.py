"""Draw a plan as PNG or SVG: rows, row length, learning rate and knobs over tokens, with the stages behind them.

The stretch that a set rollback abandons is red and dotted. The file's `Description` describes the picture in words.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rotary_foundry.recipe.plan import Plan, Segment
from rotary_foundry.reporting.charts import COLOURS, RED
from rotary_foundry.reporting.plan_table import changing_knobs
from rotary_foundry.utils.wording import count, knob, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 200  # per line in a segment
TICKS, APART = 3, 0.2  # labels per axis, and the least share of its height between them


def draw_plan(plan: Plan, path: Path) -> str:
    """Write the picture in the format of the path's suffix; return its description.

    Raises:
        ValueError: matplotlib does not know the suffix.
        OSError: the file cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # slow to import; no pyplot, because no window is opened

    panels: dict[str, Callable[[Segment, int], float]] = {
        "rows per update": lambda segment, _: segment.rows,
        "tokens per row": lambda segment, _: segment.row_length,
        "learning rate": lambda segment, token: segment.learning_rate.at(token),
    }
    knobs = changing_knobs(plan)
    panels |= {name: lambda segment, token, name=name: segment.knobs[name].at(token) for name in knobs}
    words = _described(plan, knobs)
    with rc_context({"text.parse_math": False, "svg.hashsalt": plan.name}):  # a $ is not math; files are reproducible
        figure = Figure(figsize=(9, 1.1 * len(panels) + 0.6), layout="constrained")
        all_axes = figure.subplots(len(panels), sharex=True)
        for axes, (name, value) in zip(all_axes, panels.items(), strict=True):
            _draw(axes, plan, value)
            axes.set_ylabel(name, rotation=0, ha="right", va="center")
        for stage, (start, end) in _stages(plan.segments).items():
            place = {"xycoords": ("data", "axes fraction"), "ha": "center", "fontsize": 9}
            all_axes[0].annotate(stage, ((start + end) / 2, 1.05), **place)
        all_axes[-1].set_xlabel("tokens")
        all_axes[-1].xaxis.set_major_formatter(lambda value, _: count(value))
        undated = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=150, metadata={"Description": words} | undated)
    return words


def _draw(axes: "Axes", plan: Plan, value: Callable[[Segment, int], float]) -> None:
    for index, (start, end) in enumerate(_stages(plan.segments).values()):
        axes.axvspan(start, end, color="black", alpha=0.06 if index % 2 else 0.02, linewidth=0)
    lasting: Counter[float] = Counter()  # the tokens for which a value stays
    highest = 0.0
    for segments, colour, style in ((plan.abandoned, RED, ":"), (plan.segments, COLOURS[0], "-")):
        tokens = [np.linspace(one.start_token, one.end_token, POINTS).round().astype(int) for one in segments]
        values = [[value(one, int(token)) for token in of_one] for one, of_one in zip(segments, tokens, strict=True)]
        for of_token, of_value in zip(tokens, values, strict=True):
            highest = max(highest, *of_value)
            for (before, after), length in zip(pairwise(of_value), np.diff(of_token), strict=True):
                lasting[after] += int(length) if before == after else 0
        if tokens:
            axes.plot(np.concatenate(tokens), np.concatenate(values), style, color=colour, linewidth=1.5)
    ticks: list[float] = []
    for known, length in [*lasting.most_common(), (highest, 1)]:
        if length and all(abs(known - other) > APART * highest for other in ticks):
            ticks.append(known)
    axes.set_yticks(ticks[:TICKS])
    axes.yaxis.set_major_formatter(lambda value, _: knob(value))
    axes.set_ylim(0, 1.15 * highest)
    axes.set_xlim(0, max(one.end_token for one in (*plan.segments, *plan.abandoned)))
    axes.spines[["top", "right"]].set_visible(False)


def _stages(segments: Sequence[Segment]) -> dict[str, tuple[int, int]]:
    """Return the first and last token of each stage."""
    stages: dict[str, tuple[int, int]] = {}
    for segment in segments:
        start, _ = stages.get(segment.stage, (segment.start_token, 0))
        stages[segment.stage] = start, segment.end_token
    return stages


def _described(plan: Plan, knobs: Sequence[str]) -> str:
    said = []
    for stage, (start, end) in _stages(plan.segments).items():
        of_stage = [segment for segment in plan.segments if segment.stage == stage]
        rows = sorted({segment.rows for segment in of_stage})
        parts = [f"{rows[0]:,}" + (f" to {rows[-1]:,}" if len(rows) > 1 else "") + " rows per update"]
        parts.append(f"rows of {of_stage[-1].row_length:,} tokens")
        parts.append(f"a learning rate of up to {number(max(segment.learning_rate.peak for segment in of_stage))}")
        parts += [f"{name} {knob(of_stage[-1].knobs[name].at(end))}" for name in knobs]
        said.append(f"{stage}, {count(end - start)} tokens: {', '.join(parts)}")
    if abandoned := sum(segment.end_token - segment.start_token for segment in plan.abandoned):
        said.append(f"a rollback abandons {count(abandoned)} tokens")
    return f"{plan.name}. {'; '.join(said)}."
