"""The console script `rotary-foundry`. Each subcommand imports its modules when it is called, and not before."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rotary_foundry.utils.errors import ConfigurationError, FoundryError, NeedsNetwork, print_error
from rotary_foundry.utils.redaction import redacted

if TYPE_CHECKING:
    from rotary_foundry.recipe.plan import Plan, Position

app = typer.Typer(
    help="Pretrain modern long-context encoders.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root() -> None:
    """Typer makes a single command the whole program unless there is a callback."""


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a run folder for its newest one.")],
    out_dir: Annotated[Path, typer.Argument(help="Where the model goes.")],
    sequence_labels: Annotated[
        str | None, typer.Option(help="For fine-tuning: a new classifier of whole texts, such as negative,positive …")
    ] = None,
    token_labels: Annotated[str | None, typer.Option(help="… or of every token, such as O,B-PER,I-PER.")] = None,
) -> None:
    """Write a checkpoint as a model that plain transformers loads: safetensors, config, tokenizer and model card."""
    from rotary_foundry.interop.export import export_checkpoint
    from rotary_foundry.interop.heads import Head

    if sequence_labels is not None and token_labels is not None:
        raise ConfigurationError("--sequence-labels and --token-labels: a model has one classifier; give one of them")
    head = None
    if sequence_labels is not None:
        head = Head("sequence", tuple(sequence_labels.split(",")))
    elif token_labels is not None:
        head = Head("token", tuple(token_labels.split(",")))
    export_checkpoint(checkpoint, out_dir, head)
    print(f"exported to {out_dir}")


@app.command("import")
def import_(
    source: Annotated[
        Path,
        typer.Argument(help="A transformers directory, or a file of the original code, of one of our families."),
    ],
    out_dir: Annotated[Path, typer.Argument(help="Where the model goes: what init_from takes, as export writes it.")],
    recipe: Annotated[
        Path | None, typer.Option(help="The YAML of a .pt's training, if it does not say itself.")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="The folder of its tokenizer, if it is not in there.")] = None,
) -> None:
    """Take a model from elsewhere, to go on from; what our encoder would compute otherwise is refused by name."""
    from rotary_foundry.interop.importing import import_model

    import_model(source, out_dir, recipe, tokenizer)
    print(f"imported to {out_dir}")


@app.command()
def summary(run: Annotated[Path, typer.Argument(help="A run folder, such as runs/nano.")]) -> None:
    """Print what a run did: its stages with their held-out loss, and what the exported model fills in."""
    from rotary_foundry.reporting.summary import print_summary

    print_summary(run)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; several are laid over each other.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Where report.html and report/ go. Default: the run's folder; for several, the current one."),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="A file of `reference`; nano's own is known without it.")
    ] = None,
) -> None:
    """Write report.html, one file that needs no network, and its charts as PNG. A run may still be going on."""
    from rotary_foundry.reporting.report_page import write_report

    print(f"report: {write_report(runs, out, reference)}")


@app.command()
def reference(
    runs: Annotated[list[Path], typer.Argument(help="Finished runs of one recipe, each with a seed of its own.")],
    out: Annotated[Path, typer.Option(help="The file for it, such as my_recipe.json.")],
) -> None:
    """Write what several runs of a recipe have in common, which `report` lays behind a run: is this one normal?"""
    from rotary_foundry.reporting.reference import write_reference

    write_reference(runs, out)
    print(f"reference: {out}")


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Argument(help="A run, a checkpoint, an export, or the directory of any Hugging Face encoder.")
    ],
    suites: Annotated[str, typer.Argument(help="Such as masked_lm, a YAML, several joined by commas, or all.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as data=data/mine.")] = None,
    beside: Annotated[
        list[str] | None, typer.Option(help="A model to evaluate and compare as well; may be given many times.")
    ] = None,
) -> None:
    """Measure what a model can do: tables here, and JSON and pictures in a folder. Status 3: it wants a network."""
    from rotary_foundry.evaluation.evaluate import evaluate

    evaluate([model, *(beside or ())], suites.split(","), overrides or ())


@app.command()
def compare(
    results: Annotated[list[Path], typer.Argument(help="What evaluate wrote: folders, or result.json files.")],
    out: Annotated[Path, typer.Option(help="Where the table and pictures go.")] = Path("evaluations/compared"),
) -> None:
    """Lay results of `evaluate` beside each other: one table, and a picture for each suite."""
    from rotary_foundry.evaluation.compare import compare

    compare(results, out)


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as yamls/main/base.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as `composer launch` takes them.")] = None,
    at: Annotated[str | None, typer.Option(help="Only what this token decides, such as 900_000_000_000.")] = None,
    gpus: Annotated[int | None, typer.Option(help="Tell the hours on so many GPUs …")] = None,
    gpu: Annotated[str | None, typer.Option(help="… of this kind, such as h100 …")] = None,
    mfu: Annotated[float | None, typer.Option(help="… each at this share of its peak.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The plan, or the position, as JSON and nothing else.")
    ] = False,
    as_recipe: Annotated[
        bool, typer.Option("--recipe", help="The merged YAML and nothing else, with the source of every value.")
    ] = False,
) -> None:
    """Print what a recipe would do, segment by segment, and what it would cost; nothing is trained, no data read."""
    from rotary_foundry.recipe.compilation import with_set_rollback
    from rotary_foundry.recipe.cost import PEAK_FLOPS, Machine
    from rotary_foundry.reporting.merged_recipe import merged_recipe
    from rotary_foundry.reporting.plan_table import print_plan, print_position
    from rotary_foundry.runs.recipes import load_recipe_and_plan

    if as_recipe:
        if (at, gpus, gpu, mfu, as_json) != (None, None, None, None, False):
            raise ConfigurationError("--recipe: prints the recipe and nothing else; give it no other option")
        print(merged_recipe(recipe, overrides or ()), end="")
        return
    machine = None
    if gpus is not None and gpu is not None and mfu is not None:
        machine = Machine(gpus, gpu, mfu)
    elif (gpus, gpu, mfu) != (None, None, None):
        raise ConfigurationError(
            f"hours take --gpus (how many), --gpu (one of {', '.join(PEAK_FLOPS)}) and --mfu (the share of its peak "
            "that each reaches, as measured with such a model: there is no default); give all three or none"
        )
    loaded, before_rollbacks = load_recipe_and_plan(recipe, overrides or ())
    compiled = with_set_rollback(loaded, before_rollbacks)
    position = None if at is None else _position(compiled, at)
    if as_json:
        print(json.dumps((position or compiled).to_json(), indent=2))
    elif position is not None:
        print_position(position)
    else:
        print_plan(loaded, compiled, machine)


@app.command()
def doctor(
    recipe: Annotated[Path | None, typer.Argument(help="The recipe that is to be run; without one, less.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as `composer launch` takes them.")] = None,
    clean: Annotated[
        bool, typer.Option("--clean", help="Remove what killed runs left in /dev/shm and TMPDIR, and nothing in use.")
    ] = False,
) -> None:
    """Look at the machine before money is spent: each line has a remedy, and status 1 says that a run would fail.

    `composer -n 8 -c rotary-foundry doctor RECIPE` tries the collectives of 8 ranks as well.
    """
    from rotary_foundry.doctor.examine import examine

    if not examine(recipe, overrides or (), clean):
        raise typer.Exit(1)


@app.command()
def finetune(
    config: Annotated[Path, typer.Argument(help="Such as yamls/finetune/glue.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as in model=runs/nano/export.")] = None,
) -> None:
    """Fine-tune a model on labelled texts, over a grid and several seeds; the same command goes on where it ended.

    A YAML with `task: dense_retrieval` or `task: multi_vector` trains one retriever.
    """
    from rotary_foundry.finetuning.retrieval import finetune_retrieval, is_retrieval

    if is_retrieval(config):
        finetune_retrieval(config, overrides or ())
        return
    from rotary_foundry.finetuning.leaderboard import print_results
    from rotary_foundry.finetuning.search import finetune

    print_results(finetune(config, overrides or ()))


@app.command()
def leaderboard(
    folders: Annotated[list[Path], typer.Argument(help="What `finetune` wrote, such as runs/finetune.")],
) -> None:
    """Print what fine-tuned models reached, a row a model and a column a task."""
    from rotary_foundry.finetuning.leaderboard import print_leaderboard

    print_leaderboard(folders)


def _position(plan: "Plan", at: str) -> "Position":
    try:
        token = int(at.removesuffix("tok"))
    except ValueError:
        raise ConfigurationError(f"--at: '{at}' is not a number of tokens, such as 900_000_000_000") from None
    try:
        return plan.at(token)
    except ValueError as error:
        raise ConfigurationError(f"--at: {error}") from None


data = typer.Typer(help="Look into prepared data.", no_args_is_help=True)
app.add_typer(data, name="data")

DataFolder = Annotated[Path, typer.Argument(help="A folder that `python data_prep` wrote, or one of shards in it.")]


@data.command()
def stats(
    directory: DataFolder,
    picture: Annotated[Path | None, typer.Option(help="Draw it as well, to this file, such as corpus.png.")] = None,
) -> None:
    """Print how much there is of each source, and how long the documents are."""
    from rotary_foundry.data_prep.inspection.stats import gather, print_stats

    gathered = gather(directory)
    print_stats(gathered)
    if picture is not None:
        from rotary_foundry.data_prep.inspection.corpus_picture import draw

        draw(gathered, picture)
        print(f"drawn to {picture}")


@data.command()
def show(
    directory: Annotated[Path, typer.Argument(help="A folder of shards, such as data/nano/code/1024/train.")],
    row: Annotated[int, typer.Argument(help="A row of it, from 0.")],
    full: Annotated[bool, typer.Option("--full", help="Long documents in full.")] = False,
) -> None:
    """Print the documents of a row."""
    from rotary_foundry.data_prep.inspection.show import print_row

    print_row(directory, row, full)


@data.command()
def verify(directory: DataFolder) -> None:
    """Check every hash, every row and every count; name each bad shard, and exit with status 1 if there is one."""
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
    text: Annotated[str, typer.Argument(help="What to look for, to the letter.")],
    limit: Annotated[int, typer.Option(min=1, help="Show so many places at most.")] = 20,
) -> None:
    """Print the rows that have a document with this text in it."""
    from rotary_foundry.data_prep.inspection.show import print_hits

    print_hits(directory, text, limit)


@data.command()
def trace(
    run: Annotated[Path, typer.Argument(help="A run folder, such as runs/nano.")],
    update: Annotated[int, typer.Option(help="From 1, as `batch` in the run's metrics.jsonl.")],
    before_rollback: Annotated[
        int | None, typer.Option(help="As the run was until this rollback of it, from 1.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON and nothing else.")] = False,
) -> None:
    """Print the rows and documents that an update of a run saw. Reads files only: the run may be going on."""
    from rotary_foundry.data_prep.inspection.trace import print_trace, trace

    print_trace(trace(run, update, before_rollback), as_json)


@data.command()
def fertility(
    directory: Annotated[Path, typer.Argument(help="A folder that `python data_prep` wrote.")],
    against: Annotated[Path, typer.Option(help="The folder of a second tokenizer; its tokenizer.json is enough.")],
) -> None:
    """Print how many tokens the tokenizer makes of a word and of a byte of the held-out text, beside a second one."""
    from rotary_foundry.data_prep.inspection.fertility import print_fertility

    print_fertility(directory, against)


def main() -> None:
    """Run a subcommand; a FoundryError is one line on stderr and status 2, or 3 if a network is all that it lacks."""
    try:
        app()
    except FoundryError as error:
        print_error(redacted(str(error)))
        sys.exit(3 if isinstance(error, NeedsNetwork) else 2)
