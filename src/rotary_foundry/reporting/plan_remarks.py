"""Warn of what a plan probably should not have, and describe the model that a run begins with. Imports no torch."""

from collections.abc import Iterator
from pathlib import Path

from rotary_foundry.recipe import Plan, Recipe
from rotary_foundry.recipe.compilation import compile_stages
from rotary_foundry.runs.trained_state import Source, read_source
from rotary_foundry.utils.errors import FoundryError
from rotary_foundry.utils.wording import knob


def remarks(recipe: Recipe, plan: Plan) -> Iterator[str]:
    """Yield warnings of changed tokens per update, and of values at a stage's end that probably do not fit its rows."""
    yield from changed_updates(recipe, plan)
    for segment in {segment.stage: segment for segment in plan.segments}.values():
        knobs = segment.knobs_at(segment.end_token)
        yield from (f"{segment.stage}: {remark}" for remark in recipe.model.shape.remarks(knobs, segment.row_length))


def changed_updates(recipe: Recipe, plan: Plan) -> Iterator[str]:
    """Warn if a switch of row length changes the tokens per update; `init_from` counts as the part before the run."""
    source = source_of(recipe)
    before = (source.longest_row, source.tokens_per_update, recipe.init_from) if isinstance(source, Source) else None
    for segment in plan.segments:
        length, tokens = segment.row_length, segment.tokens_per_update
        if before is not None and None not in before[:2] and before[0] != length and before[1] != tokens:
            rows = before[1] / length
            remedy = f"; set {rows:,.0f} for as many" if rows == int(rows) else ""
            ramp = recipe.stages[segment.stage].batch_size_ramp
            key = "global_train_batch_size" if ramp is None else "batch_size_ramp.initial"
            yield (
                f"stages.{segment.stage}.{key}: an update has {tokens:,} tokens in rows of "
                f"{length:,}, and in {before[2]} {before[1]:,} in rows of {before[0]:,}{remedy}"
            )
        before = length, tokens, segment.stage


def begins_with(recipe: Recipe) -> str | None:
    """Describe `init_from` before a run continues from it; None if there is none on this machine.

    Theta and length are included, because nothing else would show that a run begins with other values than its source.
    """
    source = source_of(recipe)
    if not isinstance(source, Source):
        return source
    trained = ", ".join(f"{name} {knob(value)}" for name, value in source.knobs.items())
    said = f"{recipe.init_from}, trained last at {trained}"
    if source.longest_row is not None:
        said += f", on rows of up to {source.longest_row:,} tokens"
    begins = compile_stages(recipe).at(0).knobs
    others = [f"{name} {knob(value)}" for name, value in begins.items() if source.knobs.get(name, value) != value]
    if others:
        said += f"; this run begins at {', '.join(others)}"
    if not (source.tokenizer / "tokenizer.json").is_file():
        said += f"; without a tokenizer in {source.tokenizer}, so the shards' tokenizer is not compared with it"
    return said


def source_of(recipe: Recipe) -> Source | str | None:
    """Return the model that a run begins with, or why it cannot be read, or None if there is none on this machine."""
    if recipe.init_from is None or not Path(recipe.init_from).exists():
        return None
    try:
        source = read_source(recipe.init_from)
        recipe.model.shape.check_growth(source.shape)
        return source
    except FoundryError as error:
        return f"{recipe.init_from}: a start will be refused: {error}"
