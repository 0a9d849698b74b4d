"""The model card, README.md of an exported directory. All of its content is computed from the run.

Facts that only a person knows (license, language, intended use) are not in a recipe, so they are not in the card;
Hugging Face's editor asks for them. The front matter has evaluations only if they were made at the exported
checkpoint. The card is meant to be published, so it has no local folders, loggers or device names.
"""

from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from rotary_foundry.data_prep.statistics import Statistics
from rotary_foundry.interop.heads import Head
from rotary_foundry.interop.huggingface import TAG
from rotary_foundry.interop.trained_heads import TrainedHead
from rotary_foundry.models.family import Family, Shape
from rotary_foundry.objectives.objective import Objective
from rotary_foundry.recipe.plan import LearningRate, Segment
from rotary_foundry.runs.record_files import each_line
from rotary_foundry.runs.run_folder import abandoned_by
from rotary_foundry.runs.trained_state import TrainedState
from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.json_text import read_object
from rotary_foundry.utils.wording import knob

FILL_MASK = """from transformers import pipeline

fill = pipeline("fill-mask", model="the path of this directory"{arguments})
fill(f"One word is {{fill.tokenizer.mask_token}} here.")
"""
GENERATE = """from transformers import pipeline

generate = pipeline("text-generation", model="the path of this directory"{arguments})
generate("Once", max_new_tokens=20)
"""
EXAMPLES = {"fill-mask": FILL_MASK, "text-generation": GENERATE}
CLASSIFIERS = (
    "`AutoModelForSequenceClassification` and `AutoModelForTokenClassification` load it for fine-tuning: the "
    "prediction head becomes theirs, the classifier is new."
)
OWN_CODE = (
    "transformers does not have this model, and none of its classes computes it. The directory carries the code, "
    "{files}, which `trust_remote_code=True` runs."
)


def run_card(state: TrainedState, head: Head | TrainedHead | None = None) -> str:
    """Return the card of a checkpoint, as Markdown.

    Raises:
        DataError: a record of the run is broken.
    """
    recipe, checkpoint = state.recipe, state.checkpoint
    objective = recipe.objective_of(state.trained[-1].stage)
    evaluations = _evaluations(state)
    longest = head.row_length if isinstance(head, TrainedHead) else state.longest_row
    results = [
        EvalResult(
            task_type=objective.task,
            dataset_type="held-out",
            dataset_name=f"held-out rows of {line['row_length']:,} tokens",
            metric_type=metric.name,
            metric_name=f"{metric.title}, {metric.meaning}",
            metric_value=line[metric.name],
        )
        for line in evaluations
        if line["token"] == checkpoint.token and line["batch"] > 0 and head is None
        for metric in objective.metrics
    ]
    parts = [
        _head(recipe.run_name, state.family, state.shape, state.knobs, longest, objective.task, head, results),
        "## Training",
        f"{checkpoint.token:,} token slots (rows × row length) in {checkpoint.batch:,} updates"
        f"{_begun(recipe.init_from)}. Seed {recipe.seed}, precision `{recipe.precision}`.",
        _table(_stages(state.trained, list(state.knobs))),
        "\n".join(f"- {line}" for line in _schedules(state.trained)),
        _settings(state),
        *_abandoned(state),
        "## Data",
        *_data(state),
    ]
    if evaluations:
        parts += [
            "## Evaluation",
            f"On held-out rows {objective.describe_evaluation()}, at the end of each stage"
            + (", and before the first update:" if evaluations[0]["batch"] == 0 else ":"),
            _table(_evaluation_rows(evaluations, objective, state.knobs)),
            *_of_task(evaluations, objective, head),
        ]
    return _text(parts + list(_versions(state.run.environment)))


def import_card(
    name: str,
    family: Family,
    shape: Shape,
    knobs: Mapping[str, float],
    longest_row: int,
    source: str,
    facts: Mapping[str, object],
) -> str:
    """Return the card of an imported model, as Markdown: its shape and its origin.

    Args:
        name: the name of the directory.
        family, shape, knobs: the model's; `knobs` are those of its weights.
        longest_row: the most tokens of a document.
        source: a sentence about the origin.
        facts: further facts, one per line.
    """
    lines = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    return _text(
        [_head(name, family, shape, knobs, longest_row, family.huggingface.task, None, []), "## Origin", source, lines]
    )


def _head(
    name: str,
    family: Family,
    shape: Shape,
    knobs: Mapping[str, float],
    longest_row: int,
    task: str,
    head: Head | TrainedHead | None,
    results: list[EvalResult],
) -> str:
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=head.pipeline_tag if head else task,
        tags=[family.name, TAG],
        model_name=name if results else None,
        eval_results=results or None,
    )
    return _text(
        [
            f"---\n{data.to_yaml()}\n---",
            f"# {name}",
            f"{shape.describe(knobs)} For documents of up to {longest_row:,} tokens.",
            _use(family, head),
        ]
    )


def _use(family: Family, head: Head | TrainedHead | None) -> str:
    code = family.huggingface.code
    files = ", ".join(f"`{path.name}`" for path in code)
    notice = [OWN_CODE.format(files=files)] if code else []
    if isinstance(head, TrainedHead):
        return _text([*head.usage(family), *notice])
    if head is not None:
        made = (
            f"Made for fine-tuning with `{family.huggingface.classifiers[head.of]}`. The encoder and `head.*` are "
            "pretrained; **`classifier.*` is new and knows nothing**: random, "
            f"for the labels {', '.join(head.labels)} (seed {head.seed})."
        )
        return _text([made, *notice])
    arguments = ", trust_remote_code=True" if code else ""
    example = f"```python\n{EXAMPLES[family.huggingface.task].format(arguments=arguments)}```"
    return _text([example, *([CLASSIFIERS] if family.huggingface.classifiers else []), *notice])


def _begun(init_from: str | None) -> str:
    return "" if init_from is None else f", begun with the weights of `{Path(init_from).name}`"


def _stages(trained: tuple[Segment, ...], knobs: list[str]) -> Iterator[list[str]]:
    yield [
        "stage",
        "updates",
        "tokens",
        "rows",
        "row length",
        "learning rate: peak, end",
        *knobs,
        "weight decay",
        "mixture",
    ]
    for stage, parts in _by_stage(trained):
        first, last = parts[0], parts[-1]
        mixture = ", ".join(f"{source} {share:.0%}" for source, share in (last.mixture or {}).items())
        yield [
            stage,
            f"{sum(segment.updates for segment in parts):,}",
            f"{last.end_token - first.start_token:,}",
            _between(f"{first.rows:,}", f"{last.rows:,}"),
            f"{first.row_length:,}",
            f"{max(segment.learning_rate.peak for segment in parts):g}, {last.learning_rate.at(last.end_token):.3g}",
            *(knob(last.knobs_at(last.end_token)[name]) for name in knobs),
            _between(*(f"{segment.weight_decay:g}" for segment in (first, last))),
            mixture or "every row once per epoch",
        ]


def _schedules(trained: tuple[Segment, ...]) -> Iterator[str]:
    """Describe the planned learning rate of each stage, and the batch sizes of its ramp."""
    for stage, parts in _by_stage(trained):
        said = _rate_words(parts[-1].learning_rate)
        updates: dict[int, int] = {}
        for part in parts:
            updates[part.rows] = updates.get(part.rows, 0) + part.updates
        *ramp, last = updates
        rows = [
            f"{', '.join(f'{size:,}' for size in sizes)} for {count:,} updates each, "
            for count, sizes in groupby(ramp, updates.__getitem__)
        ]
        yield f"{stage}: {', '.join(said)}" + (f"; rows: {''.join(rows)}then {last:,}" if ramp else "")


def _rate_words(rate: LearningRate) -> list[str]:
    if rate.schedule:
        factors = ", ".join(f"{factor:g} at {tokens:,}" for tokens, factor in rate.schedule)
        return [f"linear between these factors of the peak, at tokens of the stage: {factors}"]
    constant = rate.end_token - rate.start_token - rate.warmup - rate.decay
    said = [f"linear warm-up over {rate.warmup:,} tokens"] if rate.warmup else []
    said += [f"constant for {constant:,}"] if constant else []
    said += [f"`{rate.decay_shape}` decay over {rate.decay:,} to {rate.alpha_f:g} of the peak"] if rate.decay else []
    return said


def _by_stage(trained: tuple[Segment, ...]) -> Iterator[tuple[str, list[Segment]]]:
    for stage in dict.fromkeys(segment.stage for segment in trained):
        yield stage, [segment for segment in trained if segment.stage == stage]


def _between(first: str, last: str) -> str:
    return first if first == last else f"{first} → {last}"


def _settings(state: TrainedState) -> str:
    optimizer, last = state.recipe.optimizer, state.trained[-1]
    objective = state.recipe.objective_of(last.stage).describe(last.knobs_at(last.start_token))
    settings = [segment.optimizer for segment in state.trained]
    betas = dict.fromkeys("{:g} and {:g}".format(*each["betas"]) for each in settings)
    norms = dict.fromkeys(f"{each['max_grad_norm']:g}" for each in settings if each.get("max_grad_norm"))
    clipping = f", gradients clipped to a norm of {' → '.join(norms)}" if norms else ""
    return (
        f"{objective} {type(optimizer).__name__.removesuffix('Config')} with decoupled weight decay, betas "
        f"{' → '.join(betas)}, eps {optimizer.eps:g}{clipping}."
    )


def _abandoned(state: TrainedState) -> Iterator[str]:
    for rollback in state.run.rollbacks()[: state.checkpoint.rollbacks]:
        yield (
            f"At {rollback.token:,} tokens the run went back to {rollback.to_token:,} (`{rollback.trigger}`); what lay "
            "between is not in the model."
        )


def _data(state: TrainedState) -> Iterator[str]:
    sources = state.recipe.data.sources
    yield f"Sources: {', '.join(f'`{source}`' for source in sources)}."
    try:
        known = Statistics.read(state.recipe.data.local).sources
    except DataError:  # the corpus no longer exists here
        known = {}
    rows = [["source", "documents", "tokens", "bytes"]]
    for source in sources:
        if source in known:
            train = known[source].train
            rows.append([source, *(f"{count:,}" for count in (train.documents, train.tokens, train.bytes))])
    if len(rows) > 1:
        yield _table(rows)
    drawn = _drawn(state)
    if drawn:
        yield "Shares of the tokens that each stage drew:"
        columns = sorted({source for shares in drawn.values() for source in shares})
        yield _table(
            [
                ["stage", *columns],
                *([stage, *(f"{shares.get(source, 0):.1%}" for source in columns)] for stage, shares in drawn.items()),
            ]
        )


def _drawn(state: TrainedState) -> dict[str, dict[str, float]]:
    """Return the shares by source at each stage's last update. Reads line by line: long runs have a million lines."""
    rollbacks, last = state.run.rollbacks(), {}
    for line in each_line(state.run.metrics, ["stage"]):
        token, stage = line["token"], line["stage"]
        if token > state.checkpoint.token or abandoned_by(token, line.get("rollbacks", 0), rollbacks) is not None:
            continue
        if token >= last.get(stage, {"token": 0})["token"]:
            last[stage] = line
    return {stage: line["drawn"] for stage, line in last.items() if line.get("drawn")}


def _evaluations(state: TrainedState) -> list[dict]:
    path = state.run.evaluations
    lines = state.run.records(path)
    for line in lines:
        needed = {"stage", "row_length"}
        if line.get("stage") in state.recipe.stages:
            needed |= {metric.name for metric in state.recipe.objective_of(line["stage"]).metrics}
        if needed - line.keys():
            raise DataError(f"{path}: the line of batch {line['batch']} has no {min(needed - line.keys())}")
    return [line for line in lines if line["token"] <= state.checkpoint.token]


def _evaluation_rows(evaluations: list[dict], objective: Objective, knobs: Mapping[str, float]) -> Iterator[list[str]]:
    _, *others = objective.metrics
    yield ["token", "stage", "row length", *knobs, "loss (nats per token)", *(metric.title for metric in others)]
    for line in evaluations:
        yield [
            f"{line['token']:,}",
            line["stage"],
            f"{line['row_length']:,}",
            *(knob(line[name]) if name in line else "" for name in knobs),
            f"{line['loss']:.4f}",
            *(f"{line[metric.name]:.2%}" if metric.name in line else "" for metric in others),
        ]


def _versions(path: Path) -> Iterator[str]:
    if not path.exists():
        return
    environment = read_object(path)
    try:
        packages = {"Python": environment["python"]} | environment["packages"]
        listed = ", ".join(f"{name} {version}" for name, version in packages.items())
        commit, ranks = environment.get("commit"), environment["ranks"]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: broken ({error!r})") from None
    yield "## Versions"
    at_commit = f", at commit {commit}" if commit else ""
    yield f"{listed}{at_commit}; last started on {ranks} process{'' if ranks == 1 else 'es'}."


def _of_task(evaluations: list[dict], objective: Objective, head: Head | TrainedHead | None) -> Iterator[str]:
    """Yield the last evaluation of the task whose head is exported."""
    if not isinstance(head, TrainedHead):
        return
    for line in evaluations[::-1]:
        found = {metric.title: line.get(f"{metric.name}/{head.name}") for metric in objective.metrics}
        if None not in found.values():
            figures = ", ".join(f"{title.lower()} {value:.4f}" for title, value in found.items())
            yield f"The task `{head.name}` on its own held-out rows, at {line['token']:,} tokens: {figures}."
            return


def _table(rows: Iterator[list[str]] | list[list[str]]) -> str:
    heading, *body = rows
    lines = [heading, ["---"] * len(heading), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _text(parts: list[str]) -> str:
    return "\n\n".join(part.strip() for part in parts) + "\n"
