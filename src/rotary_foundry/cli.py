"""The console script `rotary-foundry`. Each subcommand imports its modules only when it is called."""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rotary_foundry.utils.errors import ConfigurationError, FoundryError, NeedsNetwork, escape_unprintable, print_error
from rotary_foundry.utils.redaction import redacted

if TYPE_CHECKING:
    from rotary_foundry.recipe.plan import Plan, Position

app = typer.Typer(
    help="Pretrain, extend and evaluate long-context transformers.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        from rotary_foundry.runs.environment import commit

        print(f"rotary-foundry {version('rotary-foundry')}, commit {commit() or 'unknown'}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool, typer.Option("--version", help="Print release and commit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Handle the options of the whole program."""


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a run folder for its newest one.")],
    out_dir: Annotated[Path, typer.Argument(help="The folder for the model.")],
    sequence_labels: Annotated[
        str | None, typer.Option(help="For fine-tuning: labels of a new text classifier, such as negative,positive.")
    ] = None,
    token_labels: Annotated[
        str | None, typer.Option(help="For fine-tuning: labels of a new token classifier, such as O,B-PER,I-PER.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="A task of a multi-task stage: also write its trained head, and predict.py to use it."),
    ] = None,
) -> None:
    """Write a checkpoint as a model that plain transformers loads: safetensors, config, tokenizer and model card."""
    from rotary_foundry.interop.export import export_checkpoint
    from rotary_foundry.interop.heads import Head

    if sum(option is not None for option in (sequence_labels, token_labels, task)) > 1:
        raise ConfigurationError(
            "--sequence-labels, --token-labels and --task: a model has one head; give only one of them"
        )
    head = None
    if sequence_labels is not None:
        head = Head("sequence", _labels(sequence_labels))
    elif token_labels is not None:
        head = Head("token", _labels(token_labels))
    export_checkpoint(checkpoint, out_dir, head, task)
    print(f"exported to {out_dir}")


def _labels(given: str) -> tuple[str, ...]:
    """Split labels at commas, and remove blanks around them."""
    return tuple(label.strip() for label in given.split(","))


@app.command("import")
def import_(
    source: Annotated[
        Path,
        typer.Argument(help="A transformers directory, a GGUF file, or a file of a family's original code."),
    ],
    out_dir: Annotated[
        Path, typer.Argument(help="The folder for the model, in the form of an export; init_from takes it.")
    ],
    recipe: Annotated[
        Path | None, typer.Option(help="The training YAML of a .pt file without its own configuration.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="The folder of the model's tokenizer, if it is elsewhere.")
    ] = None,
) -> None:
    """Import a model from elsewhere for further training; settings that our network does not support are refused."""
    from rotary_foundry.interop.importing import import_model

    not_taken = import_model(source, out_dir, recipe, tokenizer)
    print(f"imported to {out_dir}")
    if not_taken:
        print(f"not taken: {not_taken}")


@app.command()
def summary(run: Annotated[Path, typer.Argument(help="A run folder, such as runs/nano.")]) -> None:
    """Print a summary of a run: its stages with their held-out loss, and mask predictions of the exported model."""
    from rotary_foundry.reporting.summary import print_summary

    print_summary(run)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; the charts of several are overlaid.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The folder for the report; default: the run's own, or for several runs the current one."),
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="A file that `reference` wrote; nano's is built in.")] = None,
) -> None:
    """Write report.html, one file that needs no network, and its charts as PNG; the runs may still be running."""
    from rotary_foundry.reporting.report_page import write_report

    page, problems = write_report(runs, out, reference)
    for problem in problems:
        print(f"not shown: {problem}")
    print(f"report: {page}")


@app.command()
def reference(
    runs: Annotated[list[Path], typer.Argument(help="Finished runs of one recipe with different seeds.")],
    out: Annotated[Path, typer.Option(help="The file to write, such as my_recipe.json.")],
) -> None:
    """Write the range of several runs of a recipe; `report` draws it behind a run to show whether it is normal."""
    from rotary_foundry.reporting.reference import write_reference

    write_reference(runs, out)
    print(f"reference: {out}")


@app.command()
def evaluate(
    model: Annotated[
        str,
        typer.Argument(help="A run, a checkpoint, an export, or the directory of any Hugging Face encoder or decoder."),
    ],
    suites: Annotated[
        str,
        typer.Argument(
            help="A suite such as masked_lm, a YAML, several joined by commas, all, or tasks (for a multi-task run)."
        ),
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as data=data/mine.")] = None,
    beside: Annotated[
        list[str] | None, typer.Option(help="A further model to evaluate and compare; may be repeated.")
    ] = None,
) -> None:
    """Evaluate a model: print tables, and write JSON and pictures to a folder. Exit status 3: it needs a network."""
    from rotary_foundry.evaluation.evaluate import evaluate

    evaluate([model, *(beside or ())], suites.split(","), overrides or ())


@app.command()
def compare(
    results: Annotated[list[Path], typer.Argument(help="Folders or result.json files that evaluate wrote.")],
    out: Annotated[Path, typer.Option(help="The folder for the table and pictures.")] = Path("evaluations/compared"),
) -> None:
    """Compare results of `evaluate` in one table, and one picture for each suite."""
    from rotary_foundry.evaluation.compare import compare

    compare(results, out)


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as yamls/main/base.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as `composer launch` takes them.")] = None,
    at: Annotated[
        str | None, typer.Option(help="Print only the values at this token, such as 900_000_000_000.")
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="Also print the memory needed on GPUs of this kind: h100, …")] = None,
    gpus: Annotated[int | None, typer.Option(help="How many; default: one node's.")] = None,
    mfu: Annotated[
        float | None, typer.Option(help="Also print the hours, at this share of the peak of each GPU; no default.")
    ] = None,
    flops: Annotated[str | None, typer.Option(help="Also count operations by another convention: megatron.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print only JSON: the plan, or the position.")] = False,
    as_recipe: Annotated[
        bool, typer.Option("--recipe", help="Print only the merged YAML, with the source of every value.")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option(help="Only draw rows, row length, learning rate and knobs into this .png or .svg.")
    ] = None,
) -> None:
    """Print the plan of a recipe, segment by segment, its cost, and what it draws from the data, without training."""
    from rotary_foundry.recipe.compilation import with_set_rollback
    from rotary_foundry.recipe.cost import GPUS_OF_A_NODE, PEAK_FLOPS, Machine
    from rotary_foundry.reporting.merged_recipe import merged_recipe
    from rotary_foundry.reporting.plan_table import CONVENTIONS, plan_json, print_plan, print_position
    from rotary_foundry.runs.recipes import load_recipe_and_plan
    from rotary_foundry.utils.wording import nearest

    if as_recipe:
        if (at, gpus, gpu, mfu, flops, as_json, picture) != (None, None, None, None, None, False, None):
            raise ConfigurationError("--recipe: prints only the recipe; remove the other options")
        print(merged_recipe(recipe, overrides or ()), end="")
        return
    machine = None
    if gpu is not None:
        machine = Machine(GPUS_OF_A_NODE if gpus is None else gpus, gpu, mfu)
    elif (gpus, mfu) != (None, None):
        raise ConfigurationError(f"--gpus and --mfu need --gpu, one of {', '.join(PEAK_FLOPS)}")
    if flops is not None and flops not in CONVENTIONS:
        raise ConfigurationError(f"--flops: '{flops}' is not known; {nearest(flops, CONVENTIONS)}")
    loaded, before_rollbacks = load_recipe_and_plan(recipe, overrides or ())
    compiled = with_set_rollback(loaded, before_rollbacks)
    position = None if at is None else _position(compiled, at)
    if picture is not None:
        from rotary_foundry.reporting.plan_picture import draw_plan

        if picture.suffix not in (".png", ".svg"):
            raise ConfigurationError(f"--picture: {picture} has to end in .png or .svg")
        print(f"{picture}: {draw_plan(compiled, picture)}")
    elif as_json:
        print(json.dumps(position.to_json() if position else plan_json(loaded, compiled), indent=2))
    elif position is not None:
        print_position(position)
    else:
        print_plan(loaded, compiled, machine, flops=flops)


@app.command()
def doctor(
    recipe: Annotated[Path | None, typer.Argument(help="The recipe to check for; fewer checks without it.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as `composer launch` takes them.")] = None,
    clean: Annotated[
        bool, typer.Option("--clean", help="Remove what killed runs left in /dev/shm and TMPDIR; keep what is in use.")
    ] = False,
) -> None:
    """Check the machine before a run, with a remedy for each problem. Exit status 1: a run would fail.

    `composer -n 8 -c rotary-foundry doctor RECIPE` also tests the collectives of 8 ranks.
    """
    from rotary_foundry.doctor.examine import examine

    if not examine(recipe, overrides or (), clean):
        raise typer.Exit(1)


@app.command()
def finetune(
    config: Annotated[Path, typer.Argument(help="A YAML such as yamls/finetune/glue.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as model=runs/nano/export.")] = None,
) -> None:
    """Fine-tune a model on labelled texts, over a grid and several seeds. The same command resumes a stopped search."""
    from rotary_foundry.finetuning.leaderboard import print_results
    from rotary_foundry.finetuning.search import finetune

    print_results(finetune(config, overrides or ()))


@app.command()
def leaderboard(
    folders: Annotated[list[Path], typer.Argument(help="Folders that `finetune` wrote, such as runs/finetune.")],
) -> None:
    """Print the scores of fine-tuned models: a row for each model and a column for each task."""
    from rotary_foundry.finetuning.leaderboard import print_leaderboard

    print_leaderboard(folders)


def _position(plan: "Plan", at: str) -> "Position":
    try:
        token = int(at.removesuffix("tok"))
    except ValueError:
        raise ConfigurationError(f"--at: expected a number of tokens such as 900_000_000_000, got '{at}'") from None
    try:
        return plan.at(token)
    except ValueError as error:
        raise ConfigurationError(f"--at: {error}") from None


data = typer.Typer(help="Inspect prepared data, and make examples from texts.", no_args_is_help=True)
app.add_typer(data, name="data")

DataFolder = Annotated[Path, typer.Argument(help="A folder that `python data_prep` wrote, or one of shards in it.")]


@data.command()
def stats(directory: DataFolder) -> None:
    """Print the size of each source, and the lengths of its documents."""
    from rotary_foundry.data_prep.inspection.stats import gather, print_stats

    print_stats(gather(directory))


@data.command()
def show(
    directory: Annotated[Path, typer.Argument(help="A folder of shards, such as data/nano/code/1024/train.")],
    row: Annotated[int, typer.Argument(help="A row of the folder, from 0.")],
    full: Annotated[bool, typer.Option("--full", help="Print long documents in full.")] = False,
) -> None:
    """Print the documents of a row."""
    from rotary_foundry.data_prep.inspection.show import print_row

    print_row(directory, row, full)


@data.command()
def verify(directory: DataFolder) -> None:
    """Check every hash, row and count; name each bad shard. Exit status 1: there is one."""
    from rotary_foundry.data_prep.inspection.verify import verify

    report = verify(directory)
    for problem in report.problems:
        print(problem)
    print(f"{directory}: {report}")
    if report.problems:
        raise typer.Exit(1)


@data.command()
def search(
    directory: DataFolder,
    text: Annotated[str, typer.Argument(help="The exact text to search for.")],
    limit: Annotated[int, typer.Option(min=1, help="The most hits to print.")] = 20,
) -> None:
    """Print the rows with a document that contains this text."""
    from rotary_foundry.data_prep.inspection.show import print_hits

    print_hits(directory, text, limit)


@data.command()
def trace(
    run: Annotated[Path, typer.Argument(help="A run folder, such as runs/nano.")],
    update: Annotated[int, typer.Option(help="The number of the update, from 1, as `batch` in metrics.jsonl.")],
    before_rollback: Annotated[
        int | None, typer.Option(help="Trace the run before this rollback, counted from 1.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="The run's data; default: the recipe's folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print only JSON.")] = False,
) -> None:
    """Print the rows and documents of an update. It only reads files; the run may still be running."""
    from rotary_foundry.data_prep.inspection.trace import print_trace, trace

    print_trace(trace(run, update, before_rollback, data), as_json)


@data.command("self-instruct")
def self_instruct(
    corpus: Annotated[
        Path,
        typer.Argument(help="A YAML with sources, generator and tokenizer, such as yamls/data/self_instruct.yaml."),
    ],
    out: Annotated[Path, typer.Argument(help="The folder for the examples and the generator's replies.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as documents=20.")] = None,
) -> None:
    """Make questions and answers from long documents with a generator; the same command resumes after a stop.

    The generator is a folder with a Hugging Face causal model, or a model of the OpenAI-compatible server at
    OPENAI_BASE_URL (OPENAI_API_KEY is its key).
    """
    from rotary_foundry.data_prep.self_instruct.example_generation import self_instruct
    from rotary_foundry.data_prep.self_instruct.self_instruct_config import load_self_instruct_config

    self_instruct(load_self_instruct_config(corpus, overrides or ()), out)


def main() -> None:
    """Run a subcommand. A FoundryError prints one line on stderr and exits with 2, or 3 if only a network is missing.

    An OSError, which names the file that cannot be read or written, prints one line and exits with 2.
    """
    escape_unprintable()
    try:
        app()
    except (FoundryError, OSError) as error:
        print_error(redacted(str(error)))
        sys.exit(3 if isinstance(error, NeedsNetwork) else 2)
