"""The picture of `data stats`: which source the training tokens come from, and how long the documents are."""

from pathlib import Path

import numpy as np

from rotary_foundry.data_prep.inspection.stats import CorpusStats
from rotary_foundry.utils.errors import ConfigurationError
from rotary_foundry.utils.wording import count, power

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")  # Okabe and Ito's
OTHERS = "#bbbbbb"  # the sources beyond these colours, together
FORMATS = (".png", ".svg", ".pdf")


def draw(stats: CorpusStats, path: str | Path) -> None:
    """Write the picture.

    Raises:
        ConfigurationError: the file name does not end in a known picture format, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ConfigurationError(
            f"--picture: expected a file name that ends in one of {', '.join(FORMATS)}, got '{path}'"
        )
    from matplotlib.figure import Figure  # slow to import; no pyplot, because no window is opened

    split = "train" if any(of == "train" for _, of in stats.documents) else "validation"
    sources = _largest(stats, split)
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    shares, counts, tokens = figure.subplots(1, 3, width_ratios=(1.1, 1, 1))
    _shares(shares, sources)
    what = "document" if stats.whole else "piece"
    _histogram(counts, [(name, colour, by_length) for name, colour, by_length, _ in sources])
    _histogram(tokens, [(name, colour, by_length) for name, colour, _, by_length in sources])
    counts.set(title=f"{what}s by length".capitalize(), ylabel=f"share of {what}s (%)")
    tokens.set(title=f"Tokens by length of their {what}", ylabel="share of tokens (%)")
    for axes in (counts, tokens):
        axes.set_xlabel("length (tokens)" if stats.whole else "length of the pieces that stand in rows (tokens)")
        _mark_row_lengths(axes, stats.row_lengths)
    for axes in (shares, counts, tokens):
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(11)
    figure.supxlabel(f"{split} split; rows: {_rows(stats, split)}", fontsize=9, color="#555555")
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise ConfigurationError(f"--picture: {path} cannot be written: {error}") from error


def _largest(stats: CorpusStats, split: str) -> list[tuple[str, str, np.ndarray, np.ndarray]]:
    """Return (name, colour, documents by length, tokens by length) of the largest sources and of the rest together."""
    of_split = [(source, documents) for (source, of), documents in stats.documents.items() if of == split]
    of_split.sort(key=lambda pair: -pair[1].tokens)
    drawn = [
        (source, colour, documents.by_length, documents.tokens_by_length)
        for (source, documents), colour in zip(of_split, COLOURS, strict=False)
    ]
    if rest := [documents for _, documents in of_split[len(COLOURS) :]]:
        by_length = sum(documents.by_length for documents in rest)
        drawn.append((f"{len(rest)} others", OTHERS, by_length, sum(documents.tokens_by_length for documents in rest)))
    return drawn


def _shares(axes, sources) -> None:
    tokens = np.array([by_length.sum() for *_, by_length in sources])
    names = [name for name, *_ in sources]
    bars = axes.barh(names, 100 * tokens / max(1, tokens.sum()), color=[colour for _, colour, *_ in sources])
    axes.bar_label(bars, [count(number) for number in tokens], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.set(title="Tokens by source", xlabel="share of tokens (%)")


def _histogram(axes, sources) -> None:
    """Draw bars over a logarithmic scale of lengths, with the sources stacked."""
    total = sum(by_length for *_, by_length in sources)
    filled = np.flatnonzero(total)
    bins = np.arange(filled[0], filled[-1] + 1) if len(filled) else np.arange(1)
    bottom = np.zeros(len(bins))
    for name, colour, by_length in sources:
        height = 100 * by_length[bins] / max(1, total.sum())
        axes.bar(bins + 0.5, height, 0.92, bottom, label=name, color=colour)
        bottom += height
    every = -(-len(bins) // 7)
    axes.set_xticks(range(bins[0], bins[-1] + 2, every), [power(at) for at in range(bins[0], bins[-1] + 2, every)])


def _mark_row_lengths(axes, row_lengths: list[int]) -> None:
    low, high = axes.get_xlim()
    axes.set_ylim(top=1.35 * axes.get_ylim()[1])  # room for what is written at the lines
    for row_length in row_lengths:
        at = float(np.log2(row_length))
        if low <= at <= high:
            axes.axvline(at, color="#888888", linewidth=1, linestyle=(0, (4, 3)))
            axes.text(
                at,
                0.99,
                f"rows of {row_length:,} ",
                transform=axes.get_xaxis_transform(),  # lengths across, the height of the panel upwards
                rotation=90,
                fontsize=8,
                color="#555555",
                horizontalalignment="right",
                verticalalignment="top",
            )


def _rows(stats: CorpusStats, split: str) -> str:
    """Describe how many rows of each length there are, and what share of their slots is filled."""
    said = []
    for row_length in stats.row_lengths:
        manifests = [
            of_source[row_length]
            for (_, of), of_source in stats.rows.items()
            if of == split and row_length in of_source
        ]
        rows, tokens = sum(one.rows for one in manifests), sum(one.tokens for one in manifests)
        if rows:
            said.append(f"{count(rows)} of {row_length:,} tokens, {tokens / (rows * row_length):.1%} full")
    return "; ".join(said) or "none"
