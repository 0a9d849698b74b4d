"""The suite `recall`: what a decoder retrieves from long prompts, by task, length and depth.

The tasks are in recall_tasks.py. Each prompt is answered greedily. The prompts of a length are the same for every model
with the same tokenizer. Lengths may exceed a model's training length. A task without a depth has as many prompts per
length as the others. Intervals are over prompts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rotary_foundry.evaluation import bootstrap
from rotary_foundry.evaluation.decoder_texts import Filler, check_texts, describe_texts, read_texts
from rotary_foundry.evaluation.recall_tasks import FROM_DATA, WITH_DEPTHS, WITHOUT, Prompt, Tokens, make_prompt
from rotary_foundry.evaluation.results import Headline, Measure, Result, Row, digest
from rotary_foundry.evaluation.suites import DecoderSuiteConfig
from rotary_foundry.utils.wording import nearest

if TYPE_CHECKING:
    from rotary_foundry.evaluation.causal_models import CausalModel

TASKS = (*WITH_DEPTHS, *WITHOUT)
ALL = "all"  # depths
WITHIN = 0.0, 1.0


@dataclass(kw_only=True)
class Config(DecoderSuiteConfig):
    """The keys of `yamls/eval/recall.yaml`."""

    tasks: list[str]
    lengths: list[int]
    depths: list[int]
    prompts: int

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        for key in ("tasks", "lengths", "depths"):
            given = getattr(self, key)
            if not given or len(set(given)) < len(given):
                yield key, f"expected a list of different values, got {given}"
        for task in self.tasks:
            if task not in TASKS:
                yield "tasks", f"no task '{task}'; {nearest(task, TASKS)}"
        if min(self.lengths) < 1:
            yield "lengths", f"expected tokens of a prompt, at least 1, got {min(self.lengths)}"
        for depth in self.depths:
            if not 0 <= depth <= 100:
                yield "depths", f"expected percents from 0 to 100, got {depth}"


def check(model: Path, config: Config) -> None:
    """Raise a DataError if a task needs text and the data have none."""
    if set(config.tasks) & set(FROM_DATA):
        check_texts(model, config)


def run(path: Path, config: Config) -> Result:
    """Ask a decoder every prompt.

    Raises:
        FoundryError: the model, the tokenizer or the data is missing or does not fit, or a length does not fit.
    """
    from rotary_foundry.evaluation.causal_models import open_causal_model  # imports torch, which takes seconds

    texts = read_texts(config) if set(config.tasks) & set(FROM_DATA) else []
    model = open_causal_model(path, config)
    model.check_length("lengths", max(config.lengths))
    prompts = list(make_prompts(model, [text.text for text in texts], config))
    scores = {prompt.name: prompt.score(model.generate(prompt.ids, prompt.room)) for prompt in prompts}
    rows, headlines = [], []
    for task in config.tasks:
        of_task = [prompt for prompt in prompts if prompt.task == task]
        headlines.append(_headline(task, of_task, scores, config))
        for length in config.lengths:
            of_length = [prompt for prompt in of_task if prompt.length == length]
            rows.append(_row(task, length, of_length, scores, config))
    return Result(
        suite=config.suite,
        title="share of answers that are right, by depth; first_sentence: ROUGE-L",
        model=model.facts,
        config={},
        data=describe_texts(config, texts) if texts else {},
        rows=rows,
        headlines=headlines,
        notes=[
            f"{len(prompts):,} prompts, answered greedily; a length counts the answer's room",
            *model.beyond(max(config.lengths)),
        ],
        grid=True,
        asked=digest(prompt.ids.tobytes() for prompt in prompts),
    )


def make_prompts(model: "CausalModel", texts: Sequence[str], config: Config) -> Iterator[Prompt]:
    """Make every prompt of a suite; the model answers the first only after all are made.

    Args:
        texts: held-out documents, for the tasks that need them.
    """
    tokens = Tokens(model.encode, model.before)
    filler = Filler.of(model.encode, texts)
    for task in config.tasks:
        for length in config.lengths:
            if task in WITH_DEPTHS:
                asked = [(depth, number) for depth in config.depths for number in range(config.prompts)]
            else:
                asked = [(None, number) for number in range(config.prompts * len(config.depths))]
            for depth, number in asked:
                yield make_prompt(task, length, depth, number, config.seed, tokens, filler)


def _row(task: str, length: int, of: Sequence[Prompt], scores: dict[str, float], config: Config) -> Row:
    measures = {ALL: _mean(of, scores, config)}
    if task in WITH_DEPTHS:
        for depth in config.depths:
            measures[f"{depth} %"] = _mean([prompt for prompt in of if prompt.depth == depth], scores, config)
    return Row({"task": task, "tokens": length, "prompts": len(of)}, measures)


def _mean(of: Sequence[Prompt], scores: dict[str, float], config: Config) -> Measure:
    return bootstrap.ratio(_units(of, scores), config.resamples, config.seed, WITHIN)


def _units(of: Sequence[Prompt], scores: dict[str, float]) -> dict[str, tuple[float, float]]:
    return {prompt.name: (scores[prompt.name], 1.0) for prompt in of}


def _headline(task: str, of: Sequence[Prompt], scores: dict[str, float], config: Config) -> Headline:
    return Headline(task, _mean(of, scores, config), False, _units(of, scores), WITHIN)
