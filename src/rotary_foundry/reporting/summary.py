"""The summary at the end of a run: its stages, a comparison for its loss, and masks that the exported model fills."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rotary_foundry.data.rows import Frame
from rotary_foundry.data.special_tokens import as_text
from rotary_foundry.data_prep.inspection.held_out_texts import held_out
from rotary_foundry.data_prep.statistics import Statistics
from rotary_foundry.models.config_json import CONFIG, family_of
from rotary_foundry.recipe import Recipe
from rotary_foundry.recipe.schema import all_metrics
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.runs.trained_state import recipe_of
from rotary_foundry.utils.errors import DataError, FoundryError
from rotary_foundry.utils.redaction import redacted

Shown = TypeVar("Shown")
EXAMPLES, EXAMPLE_TOKENS, GUESSES = 3, 24, 3


def print_summary(run: str | Path, console: Console | None = None) -> None:
    """Print the summary of a run. What is damaged or missing is left out, and named.

    Raises:
        ConfigurationError: no run there.
    """
    console = console or Console()
    folder = RunFolder(Path(run))
    folder.check_is_run()
    problems: list[str] = []

    def shown(read: Callable[[], Shown], otherwise: Shown) -> Shown:
        try:
            return read()
        except (FoundryError, OSError) as error:
            problems.append(str(error))
            return otherwise

    evaluations = shown(lambda: folder.records(folder.evaluations, problems=problems), [])
    stages = shown(lambda: stage_table(folder, evaluations), None)
    tasks = shown(lambda: task_table(folder, evaluations, problems), None)
    for table in (stages, tasks):
        if table is not None and table.rows:
            console.print(table)
    recipe = shown(lambda: recipe_of(folder), None)
    if recipe is not None:
        _print_losses(recipe, evaluations, console)
        _print_masks(recipe, folder.export, console)
    for problem in dict.fromkeys(problems):
        console.print(f"Not shown: {redacted(problem)}", markup=False, highlight=False, soft_wrap=True)


def _print_losses(recipe: Recipe, evaluations: list[dict], console: Console) -> None:
    """Print the held-out loss before the first update, and how far the last one is from the unigram entropy."""
    entropy = _unigram_entropy(recipe.data.local, console)
    before, at_stage_ends = _before_and_after(evaluations)
    if before is not None and before.get("loss") is not None:
        console.print(
            f"Held-out loss before the first update, with the weights of {recipe.init_from}: {before['loss']:.3f}.",
            markup=False,
        )
    last = recipe.objective_of(list(recipe.stages)[-1])
    of_tasks = last.block_size is not None  # their loss is not of text alone
    loss = at_stage_ends[-1].get("loss") if at_stage_ends else None
    if loss is not None and entropy is not None and not of_tasks:
        side = "below" if loss < entropy else "above"
        what = "responses" if "responses" in last.columns else "text"
        console.print(
            f"Unigram entropy of the held-out {what}: {entropy:.3f} nats per token. "
            f"The last held-out loss, {loss:.3f}, is {abs(entropy - loss):.3f} {side} it."
        )


def _print_masks(recipe: Recipe, export: Path, console: Console) -> None:
    """Fill masks in held-out texts, if the run is exported and its last stage predicts masked tokens."""
    last = recipe.objective_of(list(recipe.stages)[-1])
    if (export / CONFIG).is_file() and last.task == "fill-mask":
        try:
            texts = held_out(recipe.data.local, EXAMPLES, recipe.seed)
            spread = texts[:: len(texts) // EXAMPLES or 1][:EXAMPLES]  # over the sources
            print_fill_mask(export, [text.text for text in spread], console)
        except (FoundryError, OSError) as error:  # the shards are only in a remote, or an export is damaged
            console.print(f"No masks are filled: {error}", markup=False, highlight=False, soft_wrap=True)


def _unigram_entropy(data: str, console: Console) -> float | None:
    """Read the entropy from a corpus; if there is no corpus or only a cache, print what is missing."""
    try:
        return Statistics.read(data).unigram_entropy
    except DataError as error:
        console.print(f"The unigram entropy is unknown: {error}", markup=False, highlight=False, soft_wrap=True)
        return None


def _before_and_after(evaluations: list[dict]) -> tuple[dict | None, list[dict]]:
    """Return the evaluation before the first update (only with `init_from`), and those at the ends of stages."""
    before = next((record for record in evaluations if record["batch"] == 0), None)
    return before, [record for record in evaluations if record["batch"] > 0]


def stage_table(folder: RunFolder, evaluations: list[dict]) -> Table:
    """Make a table with a row per stage: its settings, and the held-out loss and masked accuracy at its end."""
    plan = folder.read_plan()
    at_ends = {record.get("stage"): record for record in _before_and_after(evaluations)[1]}
    title = Text(f"{plan['name']}: {plan['total_tokens']:,} tokens", style="table.title")
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("stage", "tokens", "updates", "rows", "length", "theta", "held-out loss", "accuracy"):
        table.add_column(heading, justify="left" if heading == "stage" else "right", no_wrap=True)
    for stage in dict.fromkeys(segment["stage"] for segment in plan["segments"]):
        segments = [segment for segment in plan["segments"] if segment["stage"] == stage]
        done = at_ends.get(stage, {})
        table.add_row(
            Text(stage),
            f"{segments[-1]['end_token'] - segments[0]['start_token']:,}",
            f"{sum(segment['updates'] for segment in segments):,}",
            "–".join(str(rows) for rows in dict.fromkeys((segments[0]["rows"], segments[-1]["rows"]))),
            f"{segments[0]['row_length']:,}",
            _knob(segments, "rope_theta"),
            "–" if done.get("loss") is None else f"{done['loss']:.3f}",
            _shares(done) or "–",
        )
    return table


def task_table(folder: RunFolder, evaluations: list[dict], problems: list[str] | None = None) -> Table:
    """Make a table with a row per task: the numbers of the last update that had it, and its last held-out metrics."""
    columns = {"task_loss": "loss", "task_right": "right", "task_grad_norm": "gradient norm", "task_weight": "weight"}
    columns |= {"task_cosine": "cosine", "task_cosine_estimate": "cosine, estimated"}
    last: dict[str, dict[str, float]] = {}
    for line in folder.records(folder.metrics, (*columns, "batch", "token", "rollbacks"), problems):
        for task in line["task_loss"] or ():
            last[task] = {key: line[key][task] for key in columns if task in (line[key] or {})}
    held_out = {key: value for line in _before_and_after(evaluations)[1] for key, value in line.items()}
    shown = [key for key in columns if any(key in numbers for numbers in last.values())]
    table = Table(title="tasks, in the last update with each", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("task", *(columns[key] for key in shown), "held-out loss", "right"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for task, numbers in sorted(last.items()):
        loss, right = held_out.get(f"loss/{task}"), held_out.get(f"examples_right/{task}")
        table.add_row(
            Text(task),
            *(_number(key, numbers.get(key)) for key in shown),
            "–" if loss is None else f"{loss:.3f}",
            "–" if right is None else f"{right:.1%}",
        )
    return table


def _number(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1%}" if key == "task_right" else f"{value:.3g}"


def _shares(done: dict) -> str:
    """Format the metrics of an evaluation that are shares: all but the loss."""
    return ", ".join(f"{done[name]:.1%}" for name in all_metrics() if done.get(name) is not None and name != "loss")


def _knob(segments: list[dict], name: str) -> str:
    """Format the first and the last value of a knob in some segments."""
    values = [segment["knobs"].get(name) for segment in segments]
    ends = [value for given in (values[0], values[-1]) for value in (given if isinstance(given, list) else [given])]
    shown = dict.fromkeys("–" if value is None else f"{value:,.0f}" for value in (ends[0], ends[-1]))
    return " → ".join(shown)


def print_fill_mask(export: Path, texts: list[str], console: Console) -> None:
    """Print what an exported model predicts near the beginning of each text, and the text's own word.

    Special tokens spelled in a text stay text, as in the rows that the model was trained on.

    Raises:
        DataError: the export has no model or tokenizer that can be read.
    """
    import torch  # and below transformers: this takes seconds

    from rotary_foundry.interop.huggingface import load_directory, load_tokenizer

    network = load_directory(export)
    fast = load_tokenizer(export, family_of(export), network.shape)
    tokenizer = as_text(fast.backend_tokenizer, fast.all_special_tokens)
    frame = Frame.of(tokenizer)
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids[:EXAMPLE_TOKENS]
        middle = len(ids) // 2
        masked = [*ids[:middle], fast.mask_token_id, *ids[middle + 1 :]]
        document = torch.tensor([*frame.before, *masked, *frame.after])
        with torch.inference_mode():
            logits = network(document, torch.tensor([0, len(document)], dtype=torch.int32))
        best = logits[len(frame.before) + middle].softmax(0).topk(GUESSES)
        guesses = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        shown = ", ".join(f"{fast.decode([guess])!r} {share:.0%}" for guess, share in guesses)
        there = fast.decode(ids[middle : middle + 1])
        console.print(f"{fast.decode(masked)!r}\n    {shown}; in the text: {there!r}", markup=False, highlight=False)
