"""Race against the usual ways to train: the seconds of training until the same held-out loss.

    make nano && python data_prep yamls/data/llama_nano.yaml     # the corpora
    python benchmarks/time_to_loss.py                            # writes time_to_loss.png and prints a table

Encoders train nano's first stage, decoders that of llama_nano: on the same corpus and tokenizer, in the same shape, for
the same number of tokens, on the same cores, as one process with two threads or as two processes with one each.
their_training.py says how the others train. Ours runs its recipe as it ships.

Of each run twelve models are saved. The suites masked_lm and causal_lm measure all of them on the same held-out
documents, up to 50 per source, cut to the length of a row, with the same masks, in float32. The time until a loss is
interpolated between two models. The target is the highest loss at which any run of a kind ended, so that every run
reached it. Starts, evaluations and saving do not count; tokenizing neither.

A run that is complete is not repeated, so the same command continues, or draws the figure again. Arguments are seeds
(default: 17, 18 and 19). The folder is runs/time_to_loss; remove it after a change of the code. A changed recipe gets
runs of its own.
"""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from models import BF16
from run_times import update_times
from their_training import RECIPES, ROOT, SAVES

from rotary_foundry.evaluation.suites import Suite, find_suites
from rotary_foundry.recipe import compile_plan
from rotary_foundry.recipe.schema import Recipe
from rotary_foundry.runs.recipes import load_recipe

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PICTURE = Path(__file__).with_suffix(".png")
RUNS = ROOT / "runs/time_to_loss"
SEEDS = (17, 18, 19)
PROCESSES = (1, 2)


@dataclass(frozen=True)
class Way:
    """A way to train a kind of model."""

    name: str
    theirs: str | None  # as their_training.py names it; None: our recipe
    color: str


KINDS = {
    "masked_lm": [
        Way("ours", None, "#2a9d8f"),
        Way("transformers, packed", "packed", "#e76f51"),
        Way("transformers, padded", "padded", "#264653"),
    ],
    "causal_lm": [Way("ours", None, "#2a9d8f"), Way("LLM Foundry's way", "concatenated", "#e76f51")],
}


@dataclass(frozen=True)
class Curve:
    """A run's held-out losses by its seconds and tokens of training."""

    tokens: list[int]
    seconds: list[float]
    losses: list[float]

    def seconds_to(self, loss: float) -> float:
        """Interpolate the seconds until the first model whose loss is at most `loss`."""
        later = next(index for index, reached in enumerate(self.losses) if reached <= loss)
        if later == 0:
            return self.seconds[0]
        pair = slice(later - 1, later + 1)
        return float(np.interp(-loss, -np.array(self.losses[pair]), self.seconds[pair]))


def main(seeds: list[int]) -> None:
    RUNS.mkdir(parents=True, exist_ok=True)
    figure, panels = plt.subplots(1, len(KINDS), figsize=(10, 4.2), dpi=150)
    for (kind, ways), axes in zip(KINDS.items(), panels, strict=True):
        recipe = recipe_of(kind)
        data, length = recipe.data.local, recipe.stages["pretrain"].row_length
        overrides = [f"data={data}", f"tokenizer={data}/tokenizer", f"longest={length}", "documents=50"]
        (suite,) = find_suites([kind], overrides, decoder=kind == "causal_lm")
        curves: dict[tuple[Way, int], list[Curve]] = {(way, processes): [] for way in ways for processes in PROCESSES}
        for seed in seeds:
            for (way, processes), of_way in curves.items():
                of_way.append(curve(suite, way, processes, seed))
        target = max(one.losses[-1] for of_way in curves.values() for one in of_way)
        print(table(kind, curves, target, ways[0]), flush=True)
        draw(axes, kind, curves, target)
    figure.tight_layout()
    figure.savefig(PICTURE)
    print(f"written to {PICTURE}")


def recipe_of(kind: str) -> Recipe:
    return load_recipe(RECIPES["packed" if kind == "masked_lm" else "concatenated"], [])


def curve(suite: Suite, way: Way, processes: int, seed: int) -> Curve:
    """Train, unless that is done, and measure the models that were saved."""
    recipe = hashlib.sha256(repr(recipe_of(suite.name)).encode()).hexdigest()[:8]
    run = RUNS / f"{suite.name}-{recipe}-{way.theirs or 'ours'}-{processes}-{seed}"
    done = run / "curve.json"
    if not done.exists():
        print(f"{run.name} …", flush=True)
        models = (
            train_ours(suite.name, run, processes, seed) if way.theirs is None else train(way, run, processes, seed)
        )
        losses = [suite.run(model, suite.config).headlines[0].measure.value for model, _, _ in models]
        _, tokens, seconds = zip(*models, strict=True)
        done.write_text(json.dumps({"tokens": tokens, "seconds": seconds, "losses": losses}))
    return Curve(**json.loads(done.read_text()))


def train(way: Way, run: Path, processes: int, seed: int) -> list[tuple[Path, int, float]]:
    """Train in another's way; return the models in order, each with the tokens and seconds of training until it."""
    script = Path(__file__).with_name("their_training.py")
    start("torchrun", f"--nproc-per-node={processes}", script, way.theirs, run, seed, processes=processes)
    times = json.loads((run / "times.json").read_text())
    return [(run / tokens, int(tokens), seconds) for tokens, seconds in times.items()]


def train_ours(kind: str, run: Path, processes: int, seed: int) -> list[tuple[Path, int, float]]:
    """Train our recipe's first stage; of further stages an update each."""
    recipe = recipe_of(kind)
    plan = compile_plan(recipe)
    tokens = plan.stage_ends["pretrain"]
    last = {segment.stage: segment.rows * segment.row_length for segment in plan.segments}
    overrides = [f"stages.{name}.duration={last[name]}tok" for name in recipe.stages if name != "pretrain"]
    overrides += [
        f"run_name={run.name}",
        f"runs_folder={run.parent}",
        f"seed={seed}",
        f"save_interval={tokens // SAVES}tok",
    ]
    path = RECIPES["packed" if kind == "masked_lm" else "concatenated"]
    start(
        "composer",
        "-n",
        processes,
        "launch",
        path,
        *overrides,
        *([] if BF16 else ["precision=fp32"]),
        processes=processes,
    )
    models, seconds = [], 0.0
    for line, update in update_times(run):
        seconds += update
        saved = run / f"checkpoints/ba{line['batch']}"
        if line["token"] <= tokens and saved.exists():
            models.append((saved, line["token"], seconds))
    return models


def start(program: str, *arguments: object, processes: int) -> None:
    """Run a program of this environment, with the cores divided among its processes."""
    threads = {"OMP_NUM_THREADS": f"{max(1, (os.cpu_count() or 1) // processes)}"}
    command = [str(Path(sys.executable).with_name(program)), *map(str, arguments)]
    subprocess.run(command, env=os.environ | threads, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def table(kind: str, curves: dict[tuple[Way, int], list[Curve]], target: float, ours: Way) -> str:
    """Return lines of Markdown: the seconds until the target of each seed, and their ratios to ours."""
    lines = [
        f"\n{kind}: seconds of training until a held-out loss of {target:.3f}",
        "| | processes | tokens per second | seconds, by seed | last loss, by seed | seconds / ours, by seed |",
        "| --- | ---: | --- | --- | --- | --- |",
    ]
    for (way, processes), of_way in curves.items():
        reference = curves[ours, processes]
        ratios = [one.seconds_to(target) / own.seconds_to(target) for one, own in zip(of_way, reference, strict=True)]
        rates = ", ".join(f"{one.tokens[-1] / one.seconds[-1]:,.0f}" for one in of_way)
        seconds = ", ".join(f"{one.seconds_to(target):.0f}" for one in of_way)
        losses = ", ".join(f"{one.losses[-1]:.3f}" for one in of_way)
        ratios = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        lines.append(f"| {way.name} | {processes} | {rates} | {seconds} | {losses} | {ratios} |")
    return "\n".join(lines)


def draw(axes: plt.Axes, kind: str, curves: dict[tuple[Way, int], list[Curve]], target: float) -> None:
    for (way, processes), of_way in curves.items():
        for number, one in enumerate(of_way):
            label = f"{way.name}, {processes} process{'es' if processes > 1 else ''}" if number == 0 else None
            axes.plot(
                one.seconds, one.losses, "--" if processes == 1 else "-", color=way.color, linewidth=1, label=label
            )
    axes.axhline(target, color="grey", linestyle=":", linewidth=1)
    axes.set_title("ModernBERT, loss per masked token" if kind == "masked_lm" else "Llama, loss per token", fontsize=9)
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("held-out loss, nats")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]] or list(SEEDS))
