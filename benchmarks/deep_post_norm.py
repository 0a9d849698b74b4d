"""Compare three starts of a deep post-norm model: a RoFormerV2 of 24 narrow layers, plain and in both published ways.

    python data_prep yamls/data/chinese.yaml            # the comment at its top says how to get the text
    python benchmarks/deep_post_norm.py                 # three runs on two processes; writes deep_post_norm.png

The three runs use the recipe beside this file, so they have the same rows, masks and seed. They differ as follows:

- neither: x ← norm(x + F(x)), initial weights with a standard deviation of 1/√fan-in.
- with α: x ← norm(x + α·F(x)), where α rises from 0 to 1 over the first 0.3 of the run (kexue.fm/archives/8998).
- with N^(-1/2): the initial weights are divided by √24 (bert4keras ff75758).

Arguments are overrides for all three runs, as for `composer launch`. A complete run is not repeated, so the
same command draws the figure again.
"""

import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
from models import BF16

from rotary_foundry.data_prep.statistics import Statistics
from rotary_foundry.recipe.schema import Recipe
from rotary_foundry.reporting.records import Run
from rotary_foundry.runs.recipes import load_recipe
from rotary_foundry.utils.wording import count

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RECIPE = Path(__file__).with_suffix(".yaml")
PICTURE = RECIPE.with_suffix(".png")
RUNS = {
    "neither": [],
    "with α": ["stages.pretrain.residual_scale={start: 0, end: 1, duration: 0.3dur}"],
    "with N^(-1/2)": ["model.init_depth_exponent=0.5"],
}
COLORS = ("#e76f51", "#2a9d8f", "#264653")
SMOOTHED = 10  # updates


def main(overrides: list[str]) -> None:
    overrides = [*overrides, *([] if BF16 else ["precision=fp32"])]
    composer = Path(sys.executable).parent / "composer"
    for number, (name, of_run) in enumerate(RUNS.items()):
        print(name, flush=True)
        own = [f"run_name=deep_post_norm_{number}", *of_run]
        subprocess.run([composer, "-n", "2", "launch", RECIPE, *overrides, *own], check=True)
    recipe = load_recipe(RECIPE, overrides)
    draw_picture([Run(Path(recipe.runs_folder, f"deep_post_norm_{number}")) for number in range(len(RUNS))], recipe)
    print(f"written to {PICTURE}")


def draw_picture(runs: list[Run], recipe: Recipe) -> None:
    figure, (losses, norms) = plt.subplots(1, 2, figsize=(10, 4.2), dpi=150)
    for (name, run), color in zip(zip(RUNS, runs, strict=True), COLORS, strict=True):
        tokens = np.array([each.token for each in run.bins])
        for axes, key in ((losses, "loss"), (norms, "grad_norm")):
            values = np.array([each.values[key][0] for each in run.bins])
            axes.plot(tokens, values, color=color, alpha=0.25, linewidth=0.8)
            axes.plot(tokens[SMOOTHED - 1 :], smoothed(values), color=color, label=name)
        held_out = run.evaluations[-1]
        losses.plot(held_out["token"], held_out["loss"], "D", color=color, markerfacecolor="white")
    entropy = Statistics.read(Path(recipe.data.local)).unigram_entropy
    losses.axhline(entropy, color="grey", linestyle=":", linewidth=1, label="unigram entropy, held-out")
    losses.set_title("Loss in nats per masked token; ◇ held-out", fontsize=9)
    norms.set_title("Norm of the gradient", fontsize=9)
    norms.set_yscale("log")
    norms.yaxis.set_major_formatter("{x:g}")
    norms.yaxis.set_minor_formatter("{x:g}")
    for axes in (losses, norms):
        axes.set_xlabel("tokens")
        axes.xaxis.set_major_formatter(lambda value, _: count(value))
        axes.spines[["top", "right"]].set_visible(False)
    losses.legend(frameon=False, fontsize=8)
    shape = recipe.model.shape
    figure.suptitle(f"RoFormerV2, {shape.num_hidden_layers} post-norm layers of width {shape.hidden_size}", fontsize=10)
    figure.tight_layout()
    figure.savefig(PICTURE)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Return for each update the mean of the last SMOOTHED values."""
    return np.convolve(values, np.ones(SMOOTHED) / SMOOTHED, mode="valid")


if __name__ == "__main__":
    main(sys.argv[1:])
