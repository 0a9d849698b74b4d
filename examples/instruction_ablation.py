"""Measure the effect of the loss on long prompts in instruction tuning: a small version of Llama 2 Long's ablation.

    python examples/module_questions.py data/llama_nano_questions
    python data_prep yamls/data/llama_nano_instruct.yaml         # after yamls/main/llama_nano_long.yaml was trained
    python examples/instruction_ablation.py runs/instruction_ablation

In the paper (arXiv 2309.16039, table 9) it helped more than any other choice. Three models are compared:

- untuned: the init_from of yamls/main/llama_nano_instruct.yaml.
- answers only: that recipe with objective.target_prompts=none.
- prompts too: that recipe.

All answer the questions of held_out.jsonl by the suite question_answering, in the recipe's chat template. These are
about modules that are not in the tuning data. Long questions have the whole module before them, short ones only one
function. A model this small answers none, so loss and accuracy of the right answers show more than exact match and F1.

Both tunings with one seed see the same rows in the same order. A cell has the mean over seeds, and the last column that
of the differences, seed by seed. ± is half of a 95 % interval over the seeds, by Student's t. It covers the choice and
order of the conversations, but not other questions.

Every result is appended to results.jsonl at once, so the same command resumes after a stop. Further arguments are
overrides of the recipe, as `composer launch` takes them; different overrides need another folder.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

from seed_results import difference, interval, print_table, record

from rotary_foundry.evaluation.evaluate import evaluate
from rotary_foundry.runs.recipes import load_recipe
from rotary_foundry.runs.record_files import read_lines

ROOT = Path(__file__).parents[1]
RECIPE, QUESTIONS = ROOT / "yamls/main/llama_nano_instruct.yaml", Path("data/llama_nano_questions/held_out.jsonl")
UNTUNED, ANSWERS, PROMPTS = "untuned", "answers only", "prompts too"
TUNED = {ANSWERS: ["objective.target_prompts=none"], PROMPTS: []}
KINDS = "long", "short"  # of questions
MEASURES = {
    "answer_loss": "loss of the right answer, nats per token",
    "answer_accuracy": "its tokens that are the likeliest",
    "f1": "F1",
    "exact_match": "exact match",
}
Found = dict[str, dict[str, float]]  # by kind and measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--processes", type=int, default=2, help="processes per tuning")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    settings, overrides = parser.parse_known_args()
    settings.out.mkdir(parents=True, exist_ok=True)
    file = settings.out / "results.jsonl"
    results = {(one["start"], one["seed"]): one["found"] for one in read_lines(file)}
    seeds = range(1, settings.seeds + 1)
    for start, seed in [(UNTUNED, None), *((start, seed) for seed, start in product(seeds, TUNED))]:
        if (start, seed) not in results:
            model = find_model(start, seed, settings.out, settings.processes, overrides)
            results[start, seed] = measure(model, overrides, settings.out / "evaluations")
            record(file, {"start": start, "seed": seed, "found": results[start, seed]})
    print_table(table(results, seeds))


def find_model(start: str, seed: int | None, out: Path, processes: int, overrides: list[str]) -> Path:
    """Return the folder of a model; tune the model if the folder does not exist."""
    if start == UNTUNED:
        return Path(load_recipe(RECIPE, overrides).init_from)
    run = out / f"{start.replace(' ', '_')}_{seed}"
    given = [*overrides, *TUNED[start], f"seed={seed}", f"runs_folder={out}", f"run_name={run.name}"]
    composer = Path(sys.executable).parent / "composer"
    subprocess.run([composer, "-n", str(processes), ROOT / "launch", RECIPE, *given], check=True)
    return run


def measure(model: Path, overrides: list[str], out: Path) -> Found:
    """Ask a model the held-out questions of each kind."""
    recipe = load_recipe(RECIPE, overrides)
    lines = QUESTIONS.read_text(encoding="utf-8").splitlines(keepends=True)
    found = {}
    for kind in KINDS:
        (out / kind).mkdir(parents=True, exist_ok=True)
        questions = out / kind / "questions.jsonl"
        questions.write_text("".join(line for line in lines if json.loads(line)["kind"] == kind), encoding="utf-8")
        asked = [
            *("dataset=examples", f"data={questions}", f"longest={recipe.stages['tune'].row_length}"),
            *(f"tokenizer={recipe.data.local}/tokenizer", f"out={out}/{kind}"),
        ]
        (result,) = evaluate([str(model)], ["question_answering"], asked)
        (row,) = result.rows
        found[kind] = {name: row.measures[name].value for name in MEASURES}
    return found


def table(results: dict[tuple, Found], seeds: Iterable[int]) -> Iterator[list[str]]:
    """Yield the head, then a row for each kind and measure."""
    yield ["held-out questions", UNTUNED, *TUNED, f"{PROMPTS} − {ANSWERS}"]
    for kind, (name, words) in product(KINDS, MEASURES.items()):
        answers, prompts = ([results[start, seed][kind][name] for seed in seeds] for start in (ANSWERS, PROMPTS))
        cells = (interval(values, ".3f") for values in ([results[UNTUNED, None][kind][name]], answers, prompts))
        yield [f"{kind}: {words}", *cells, difference(prompts, answers)]


if __name__ == "__main__":
    main()
