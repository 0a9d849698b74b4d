"""The page's charts as PNG, by matplotlib: no browser is needed to make them. Each tells itself in words, too.

The words stand in the file's `Description`, and in `pictures.md` beside it, which shows all of them.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rotary_foundry.utils.wording import count

COLUMNS = 700  # of a picture
CROWD = 2  # points in a column that are still drawn each
COLOURS = ("#0069a8", "#cf7a00", "#00805d", "#b0508a", "#2a93d5", "#c9480a", "#857a00", "#7a7d85")  # the page's, light
BACK = "#d6324f"


def draw(content: dict, folder: Path) -> None:
    """Write `recipe-<n>.png` for each run, a PNG for each chart by its name, and `pictures.md`.

    Raises:
        OSError: they cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # slow to import; and no pyplot: nothing is to be shown in a window

    with rc_context({"text.parse_math": False}):  # a name with a $ in it is a name
        words = {}
        for number, run in enumerate(content["runs"], 1):
            figure = Figure(figsize=(10, 2.6), layout="constrained")
            _recipe(figure.subplots(), run)
            words[f"recipe-{number}.png"] = _recipe_words(run)
            figure.savefig(folder / f"recipe-{number}.png", dpi=150, metadata={"Description": _recipe_words(run)})
        for chart in content["charts"]:
            figure = Figure(figsize=(10, 4.2) if chart["wide"] else (7, 3.4), layout="constrained")
            _chart(figure.subplots(), chart, content["tokens"])
            words[f"{chart['id']}.png"] = chart["words"]
            figure.savefig(folder / f"{chart['id']}.png", dpi=150, metadata={"Description": chart["words"]})
        shown = "\n\n".join(f"![{said}]({name})\n\n{said}" for name, said in words.items())
        (folder / "pictures.md").write_text(f"# {content['title']}\n\n{shown}\n", encoding="utf-8")


def _chart(axes, chart: dict, tokens: list[list[int]]) -> None:
    labelled = set()
    for series in chart["series"]:
        colour, x = COLOURS[series["colour"]], tokens[series["tokens"]]
        y, low, high = (_floats(series.get(key, series["y"])) for key in ("y", "low", "high"))
        if not (series["points"] or chart["steps"]):
            x, y, low, high = _columns(np.array(x, dtype=float), y, low, high)
        label = None if series["abandoned"] or series["dashed"] or series["label"] in labelled else series["label"]
        labelled.add(label)
        faint = 0.5 if series["abandoned"] else 1
        if series["points"]:
            axes.plot(x, y, "D", color=colour, markerfacecolor="white", alpha=faint, label=label)
            axes.vlines(x, low, high, color=colour, alpha=faint)  # of a reference; of others both are the point
            continue
        colour = BACK if series["abandoned"] else colour
        style = ":" if series["abandoned"] else "--" if series["dashed"] else "-"
        steps = "steps-pre" if chart["steps"] else "default"
        axes.plot(x, y, style, drawstyle=steps, color=colour, linewidth=1, alpha=faint, label=label)
        if np.any(low < high):
            axes.fill_between(x, low, high, color=colour, alpha=0.2 * faint, linewidth=0)
    title = chart["title"] + (f" ({chart['unit']})" if chart["unit"] else "")
    if chart["log"]:
        axes.set_yscale("log")
        title += _without_its_beginning(axes, chart, tokens)
    if chart["zero"]:
        axes.set_ylim(bottom=0)
    if chart["percent"]:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    elif chart["log"]:
        for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            which(lambda value, _: f"{value:g}")
    axes.set_title(title, loc="left", fontsize=11)
    _token_axis(axes)
    if len(labelled - {None}) > 1:
        axes.legend(frameon=False, fontsize=9)


def _without_its_beginning(axes, chart: dict, tokens: list[list[int]]) -> str:
    """Let the first hundredth of the tokens reach above, as on the page; what to say of it."""
    first = 0.01 * max(tokens[series["tokens"]][-1] for series in chart["series"])
    highest = [
        (token, value)
        for series in chart["series"]
        for token, value in zip(tokens[series["tokens"]], series.get("high", series["y"]), strict=True)
        if value is not None
    ]
    top = max((value for token, value in highest if token >= first), default=0)
    high = max(value for _, value in highest)
    if not 0 < 1.5 * top < high:
        return ""
    axes.set_ylim(top=1.05 * top)
    return f", begins above, up to {high:g}"


def _recipe(axes, run: dict) -> None:
    names = list(dict.fromkeys(segment["stage"] for segment in run["segments"]))
    for segment in run["segments"]:
        start, end = segment["start_token"], segment["end_token"]
        colour = COLOURS[names.index(segment["stage"]) % len(COLOURS)]
        done = min(end, max(start, run["token"]))
        for left, right, alpha in ((start, done, 1), (done, end, 0.3)):
            if right > left:
                axes.bar(left, segment["rows"], right - left, align="edge", color=colour, alpha=alpha)
    for name in names:
        start = min(segment["start_token"] for segment in run["segments"] if segment["stage"] == name)
        axes.axvline(start, color="#888888", linewidth=0.8)
        axes.text(start, 1.02, f" {name}", transform=axes.get_xaxis_transform(), fontsize=9)
    for back in run["rollbacks"]:
        axes.axvspan(back["to_token"], back["token"], color=BACK, alpha=0.25, linewidth=0)
    axes.set_ylabel("rows")
    axes.set_title(f"{run['name']}\n", loc="left", fontsize=11)
    _token_axis(axes)


def _recipe_words(run: dict) -> str:
    segments = "; ".join(
        f"{segment['stage']} from token {segment['start_token']:,} to {segment['end_token']:,} "
        f"with {segment['rows']:,} rows of {segment['row_length']:,} tokens"
        for segment in run["segments"]
    )
    backs = "".join(f" Rolled back from token {one['token']:,} to {one['to_token']:,}." for one in run["rollbacks"])
    return f"The recipe of {run['name']}: {segments}. Trained so far: {run['token']:,} tokens.{backs}"


def _token_axis(axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(left=0)
    axes.set_xlabel("tokens")
    axes.xaxis.set_major_formatter(lambda value, _: count(value))


def _columns(x: np.ndarray, *values: np.ndarray) -> Iterator[np.ndarray]:
    """As the page does: where many points stand in one column of the picture, their mean, lowest and highest."""
    column = (x / max(1, x[-1]) * COLUMNS).astype(int)
    begin = np.flatnonzero(np.diff(column, prepend=-1))
    count = np.diff(np.append(begin, len(x)))
    crowded = np.repeat(count > CROWD, count)
    kept = ~crowded
    kept[begin] = True
    yield x[kept]
    for of, one in zip((np.add, np.fmin, np.fmax), values, strict=True):
        merged = of.reduceat(one, begin) / (count if of is np.add else 1)
        yield np.where(crowded, np.repeat(merged, count), one)[kept]


def _floats(values: list) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)
