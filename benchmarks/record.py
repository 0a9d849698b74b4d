"""Measure how long nano trains, and how much it learns: train it with five seeds, and print a line of a table.

    make nano                                       # the corpus
    python benchmarks/record.py [key=value …]       # with changes of the recipe

The seconds are those of training: the sum of the updates' times, without start, evaluations and checkpoints. The runs
are on two processes with one thread each, in runs/record-<seed>. A run that is complete is not repeated.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from models import BF16

from rotary_foundry.data_prep.statistics import Statistics
from rotary_foundry.runs.environment import commit
from rotary_foundry.runs.recipes import load_recipe

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "yamls/main/nano.yaml"
SEEDS = range(1, 6)


def main(changes: list[str]) -> None:
    overrides = [*changes, *([] if BF16 else ["precision=fp32"])]
    recipe = load_recipe(RECIPE, overrides)
    entropy = Statistics.read(ROOT / recipe.data.local).unigram_entropy
    composer = Path(sys.executable).with_name("composer")
    seconds, below = [], []
    for seed in SEEDS:
        own = [f"run_name=record-{seed}", f"seed={seed}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([composer, "-n", "2", "launch", RECIPE, *overrides, *own], cwd=ROOT, env=environment, check=True)
        run = ROOT / recipe.runs_folder / f"record-{seed}"
        seconds.append(sum(line["step_seconds"] for line in lines(run / "metrics.jsonl")))
        below.append(entropy - lines(run / "eval.jsonl")[-1]["loss"])
    when, of = time.strftime("%Y-%m-%d"), (commit() or "unknown")[:9]
    print(f"| {when} | {of} | {spread(seconds, '.0f')} | {spread(below, '.3f')} | {' '.join(changes) or 'none'} |")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def spread(values: list[float], form: str) -> str:
    return f"{statistics.mean(values):{form}} ± {statistics.stdev(values):{form}}"


if __name__ == "__main__":
    main(sys.argv[1:])
