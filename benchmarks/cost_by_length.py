"""Time the encoder's forward pass over a fixed number of tokens, cut into documents of 512 to 16,384.

Local attention should cost the same however the tokens are cut; a part of global attention's cost grows with the
length. So each model's times are fitted by a + b · length, by least squares.
"""

from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
from measure import draw, encoding, take_turns
from models import PRECISION, Ours, base_shape

matplotlib.use("Agg")
from matplotlib import pyplot as plt

TOKENS = 16_384
LENGTHS = (512, 1024, 2048, 4096, 8192, 16_384)
PICTURE = Path(__file__).parent / "cost_by_length.png"


def times() -> dict[str, list[float]]:
    """Return seconds by length, for each model, after a warm-up pass."""
    alternating = Ours(compiled=False)
    global_only = Ours(compiled=False, shape=replace(base_shape(), global_attn_every_n_layers=1, local_attention=None))
    local_only = Ours(compiled=False)
    for layer in local_only.network.blocks:
        layer.attn.window = base_shape().local_attention
    models = {"local only": local_only, "alternating": alternating, "global only": global_only}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for length in LENGTHS:
        documents = draw([length] * (TOKENS // length))
        turns = take_turns({name: encoding(model, documents) for name, model in models.items()}, rounds=1)
        for name, turn in turns.items():
            seconds[name] += turn
    return seconds


def fit(seconds: list[float]) -> tuple[float, float, float]:
    """Return a, b and R² of seconds = a + b · length."""
    slope, intercept = np.polyfit(LENGTHS, seconds, 1)
    residuals = np.array(seconds) - (intercept + slope * np.array(LENGTHS))
    return intercept, slope, 1 - residuals.var() / np.var(seconds)


def draw_picture(seconds: dict[str, list[float]], processor: str) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.2), dpi=150)
    for (name, values), color in zip(seconds.items(), ("#2a9d8f", "#264653", "#e76f51"), strict=True):
        intercept, slope, _ = fit(values)
        axes.plot(LENGTHS, values, "o", color=color)
        line = np.geomspace(LENGTHS[0], LENGTHS[-1])
        label = f"{name}: {intercept:.2f} s + {1000 * slope:.3f} s per 1,000 tokens of length"
        axes.plot(line, intercept + slope * line, color=color, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(LENGTHS, [f"{length:,}" for length in LENGTHS])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens of a document")
    axes.set_ylabel(f"seconds for {TOKENS:,} tokens")
    axes.set_title(f"Encoder of base size, forward, {PRECISION}\n{processor}", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(PICTURE)
