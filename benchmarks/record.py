"""Measure how long nano trains, and how much it learns: train it with five seeds, and print a line of a table.

    make nano                                       # the corpus
    python benchmarks/record.py [key=value …]       # with changes of the recipe

The seconds are those of training, without start, evaluations and checkpoints. The runs are on two processes with one
thread each, in runs/record/<commit>, or in a folder of their own for each set of changes. The same command continues.
"""

import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from models import BF16
from run_times import update_times

from rotary_foundry.data_prep.statistics import Statistics
from rotary_foundry.runs.environment import commit
from rotary_foundry.runs.recipes import load_recipe

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "yamls/main/nano.yaml"
SEEDS = range(1, 6)


def main(changes: list[str]) -> None:
    code = commit()
    if code is None or "changes" in code:
        sys.exit(
            f"benchmarks/record.py: expected code as it was committed, found {code or 'no commit'}; commit it first"
        )
    overrides = [*changes, *([] if BF16 else ["precision=fp32"])]
    recipe = load_recipe(RECIPE, overrides)
    entropy = Statistics.read(ROOT / recipe.data.local).unigram_entropy
    key = hashlib.sha256(" ".join(overrides).encode()).hexdigest()[:8]
    runs = ROOT / "runs/record" / (f"{code[:9]}-{key}" if overrides else code[:9])
    seconds, below = [], []
    for seed in SEEDS:
        own = [f"runs_folder={runs}", f"run_name=seed-{seed}", f"seed={seed}"]
        command = [Path(sys.executable).with_name("composer"), "-n", "2", "launch", RECIPE, *overrides, *own]
        subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
        run = runs / f"seed-{seed}"
        seconds.append(sum(update for _, update in update_times(run)))
        below.append(entropy - json.loads((run / "eval.jsonl").read_text().splitlines()[-1])["loss"])
    when = time.strftime("%Y-%m-%d")
    print(
        f"| {when} | {code[:9]} | {spread(seconds, '.0f')} | {spread(below, '.3f')} | {' '.join(changes) or 'none'} |"
    )


def spread(values: list[float], form: str) -> str:
    return f"{statistics.mean(values):{form}} ± {statistics.stdev(values):{form}}"


if __name__ == "__main__":
    main(sys.argv[1:])
