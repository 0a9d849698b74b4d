"""Measure how much a multi-task stage helps on tasks that it leaves out, fine-tuned with few labels.

    python data_prep yamls/tasks/nano.yaml                       # the comment at its top says how to get the text
    composer -n 2 launch yamls/main/roformer_v2_nano.yaml
    python examples/multi_task_worth.py runs/multi_task_worth

The stage is yamls/main/roformer_v2_nano_multi_task.yaml without `reviews` and `terms`. No remaining task resembles
`reviews`, but `names` has people and places, which are two of the nine domains of `terms`. The starts:

- random weights, and MLM: the stage's init_from.
- text only: the stage with only masked LM, so that tasks are compared with the same number of updates without them.
- tasks, by each rule that combines their gradients.

Each seed draws its own labelled examples, the same ones for every start. A model is evaluated once, at the end of its
training, on all held-out examples, so these select nothing. A cell has the mean accuracy and, in brackets, the mean
difference from text only, seed by seed. ± is half of a 95 % interval over the seeds, by Student's t. It covers the
draw of the labels and of the new head, but not another run of the stage.

Every result is appended to results.jsonl at once, and a start is trained when its first result is needed. So the same
command resumes after a stop. Further arguments are overrides of the stage, as `composer launch` takes them; different
overrides need another folder.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

from seed_results import difference, interval, print_table, record

from rotary_foundry.data_prep.labelled.chinese_packages import read_package
from rotary_foundry.finetuning.search import finetune
from rotary_foundry.interop.export import export_checkpoint
from rotary_foundry.interop.huggingface import export_model
from rotary_foundry.objectives.multi_task import COMBINE
from rotary_foundry.runs.recipes import load_recipe
from rotary_foundry.runs.record_files import read_lines

ROOT = Path(__file__).parents[1]
STAGE, FINETUNE = ROOT / "yamls/main/roformer_v2_nano_multi_task.yaml", ROOT / "yamls/finetune/files.yaml"
TEXTS = Path("data/chinese_texts")
RANDOM, MLM, TEXT_ONLY = "random weights", "MLM", "text only"
WITHOUT_TWO = ["data.sources=[text,help_pages,names]", "stages.tasks.mixture={text: 5, help_pages: 4, names: 6}"]
STARTS = {
    **{RANDOM: [], MLM: []},
    TEXT_ONLY: ["data.sources=[text]", "stages.tasks.mixture=null", "objective.combine=mean"],
    **{f"tasks, {rule}": [*WITHOUT_TWO, f"objective.combine={rule}"] for rule in COMBINE},
}
LEFT_OUT = {"reviews": 64, "terms": 24}  # most tokens per text
UPDATES = {100: 60, 1000: 100}  # of 16 examples, by the number of labels: 10 epochs and 1.6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--processes", type=int, default=2, help="processes per stage")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    settings, overrides = parser.parse_known_args()
    settings.out.mkdir(parents=True, exist_ok=True)
    file = settings.out / "results.jsonl"
    there = read_lines(file)
    results = {(one["start"], one["task"], one["labels"], one["seed"]): one["accuracy"] for one in there}
    seeds = range(1, settings.seeds + 1)
    for seed, start, task, labels in product(seeds, STARTS, LEFT_OUT, UPDATES):
        if (start, task, labels, seed) not in results:
            model = find_model(start, settings.out, settings.processes, overrides)
            reached = accuracy(model, task, labels, seed, settings.out / "work")
            results[start, task, labels, seed] = reached
            record(file, {"start": start, "task": task, "labels": labels, "seed": seed, "accuracy": reached})
    print_table(table(results, seeds))


def find_model(start: str, out: Path, processes: int, overrides: list[str]) -> Path:
    """Return the export of a start; make it if it does not exist."""
    run = out / start.replace(",", "").replace(" ", "_")
    export = run / "export"
    if (export / "config.json").is_file():
        return export
    given = [*overrides, *STARTS[start], f"runs_folder={out}", f"run_name={run.name}"]
    recipe = load_recipe(STAGE, given)
    if start == RANDOM:
        shape, family = recipe.model.shape, recipe.family
        weights = {name: family.initial_value(name, shape, recipe.seed) for name in shape.parameter_shapes()}
        knobs = {name: recipe.knobs_of("tasks")[name] for name in family.knobs_of_weights()}
        tokenizer = Path(recipe.data.local) / "tokenizer"
        export_model(weights, family, shape, knobs, tokenizer, recipe.stages["tasks"].row_length, export)
    elif start == MLM:
        export_checkpoint(recipe.init_from, export)
    else:
        composer = Path(sys.executable).parent / "composer"
        subprocess.run([composer, "-n", str(processes), ROOT / "launch", STAGE, *given], check=True)
        export_checkpoint(run, export)
    return export


def accuracy(model: Path, task: str, labels: int, seed: int, work: Path) -> float:
    """Fine-tune a model on `labels` examples of a task; return its accuracy on all held-out examples."""
    train, held_out = (read_package(task, TEXTS, split) for split in ("train", "validation"))
    work.mkdir(exist_ok=True)
    for name, examples in (("train", random.Random(seed).sample(train, labels)), ("validation", held_out)):
        lines = [json.dumps({"text": one.text, "label": one.label}, ensure_ascii=False) + "\n" for one in examples]
        (work / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    names = json.dumps(sorted({one.label for one in train}), ensure_ascii=False)
    duration = f"{UPDATES[labels]}ba"
    shutil.rmtree(work / "search", ignore_errors=True)
    (result,) = finetune(
        FINETUNE,
        [
            *(f"model={model}", f"out={work}/search", f"seeds=[{seed}]", f"max_seq_len={LEFT_OUT[task]}"),
            *(f"tasks.mine.data.train={work}/train.jsonl", f"tasks.mine.data.validation=[{work}/validation.jsonl]"),
            *(f"tasks.mine.labels={names}", "tasks.mine.metrics=[accuracy]"),
            *("search.lr=[3e-4]", f"search.max_duration=[{duration}]", f"eval_interval={duration}", "patience=null"),
        ],
    )
    shutil.rmtree(work)
    return result["metrics"]["accuracy"]["mean"]


def table(results: dict[tuple, float], seeds: Iterable[int]) -> Iterator[list[str]]:
    """Yield the head, then a row for each start."""
    columns = [(task, labels) for task in LEFT_OUT for labels in UPDATES]
    yield ["start", *(f"{task}, {labels:,} labels" for task, labels in columns)]
    for start in STARTS:
        row = [start]
        for column in columns:
            reached, other = ([results[name, *column, seed] for seed in seeds] for name in (start, TEXT_ONLY))
            beside = f" ({difference(reached, other)})" if start != TEXT_ONLY else ""
            row.append(interval(reached, ".3f") + beside)
        yield row


if __name__ == "__main__":
    main()
