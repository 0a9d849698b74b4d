"""The suite `question_answering`: a decoder's answers to questions about long texts, and its loss at the right ones.

- The prompts are those of arXiv 2309.16039, section 3.1: the text, "Q:" with the question, "A:". Before these are as
  many answered examples as the paper has for the data set. A prompt that is too long, with room for the answer, is cut
  from the left. A question is never cut: a length without room for it is refused.
- Examples in a prompt are drawn for each question from other documents. The paper does not say where its own are from.
- If the tokenizer has a chat template, the prompt is a user's message in it, and only the message is cut.
- Answers are greedy and end at the model's own end tokens. Without a chat template, an answer scored by ROUGE also ends
  before an empty line or the next "Q:", and any other answer after its first line.
- The loss and accuracy per token are those of the first right answer after the same prompt, each token given all before
  it. In a chat the answer includes the end of turn. These two measure small models, whose own answers all score 0.
- The examples of a file and their prompts are the same for every model with the same tokenizer. Intervals are over
  questions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rotary_foundry.evaluation import bootstrap
from rotary_foundry.evaluation.answer_metrics import METRICS, ROUGE, ROUGE_GEO, SCORES, geometric, score
from rotary_foundry.evaluation.question_files import READERS, Example, read_examples
from rotary_foundry.evaluation.results import Headline, Measure, Result, Row, digest
from rotary_foundry.evaluation.suites import DecoderConfig
from rotary_foundry.utils.errors import ConfigurationError
from rotary_foundry.utils.wording import nearest

if TYPE_CHECKING:
    from rotary_foundry.evaluation.causal_models import CausalModel

SHOTS = {"qasper": 2, "quality": 2, "qmsum": 1}  # as in the paper; 0 for narrativeqa there, and for all others here
METRIC = {"narrativeqa": "f1", "qasper": "f1", "quality": "exact_match", "qmsum": ROUGE_GEO, "examples": "f1"}
METRIC_OF_TASK = {  # as published (LongBench: with another package's ROUGE-L); tasks with other metrics are left out
    "zeroscrolls": {
        **dict.fromkeys(("gov_report", "summ_screen_fd", "qmsum", "squality"), ROUGE_GEO),
        **dict.fromkeys(("qasper", "narrative_qa", "musique"), "f1"),
        "quality": "exact_match",
    },
    "longbench": {
        **dict.fromkeys(
            ("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique", "triviaqa"), "f1"
        ),
        **dict.fromkeys(("gov_report", "qmsum", "multi_news", "samsum"), "rouge_l"),
    },
}
ROOM, ROOM_OF_SUMMARY = 128, 512  # tokens of an answer, as LongBench has for most of these sets
LOSS, ACCURACY = "answer_loss", "answer_accuracy"  # nats per token of the right answer, share of likeliest tokens
WITHIN = 0.0, 1.0
Units = dict[str, dict[str, tuple[float, float]]]  # by metric and question: numerator and denominator


@dataclass(kw_only=True)
class Config(DecoderConfig):
    """The keys of `yamls/eval/question_answering.yaml`."""

    dataset: str  # the form of the data, one of READERS
    data: str  # a file; for narrativeqa a folder
    examples: int | None = None  # at most, drawn by the seed; null: all
    longest: int  # tokens of a prompt and its answer
    metric: str | None = None  # the metric for comparing models; null: as published
    shots: int | None = None  # answered examples before the question; null: as in the paper
    shots_data: str | None = None  # the file or folder of these examples, in the form of `data`; null: `data`
    answer_tokens: int | None = None  # room for the answer; null: 128, or 512 if the metric is ROUGE
    chat: bool | None = None  # whether the chat template is used; null: if the tokenizer has one

    @property
    def task(self) -> str:
        """The task of the file, if the data set has several tasks."""
        path = Path(self.data)
        return {"zeroscrolls": path.parent.name, "longbench": path.stem}.get(self.dataset, self.dataset)

    @property
    def measured(self) -> str | None:
        """The metric; None if the published one is not among ours."""
        return self.metric or METRIC.get(self.dataset) or METRIC_OF_TASK[self.dataset].get(self.task)

    @property
    def room(self) -> int:
        """The number of tokens reserved for an answer."""
        return self.answer_tokens or (ROOM_OF_SUMMARY if _summary(self) else ROOM)

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.dataset not in READERS:
            yield "dataset", f"'{self.dataset}' is not known; {nearest(self.dataset, READERS)}"
        if self.metric is not None and self.metric not in METRICS:
            yield "metric", f"'{self.metric}' is not known; {nearest(self.metric, METRICS)}"
        if self.measured is None:
            yield (
                "metric",
                f"null, but the published metric of '{self.task}' in {self.dataset} is not here; name one of "
                f"{', '.join(METRICS)}",
            )
        if self.room >= self.longest:
            yield "longest", f"{self.longest:,} tokens leave no room for a question beside {self.room:,} of an answer"


@dataclass(frozen=True)
class Asked:
    """A prompt as ids."""

    example: Example
    ids: NDArray[np.int64]  # [tokens]
    cut: int  # tokens left out at the beginning
    answered: NDArray[np.int64]  # [tokens], the prompt with the first right answer after it
    targets: int  # tokens of that answer, the last of `answered`


def check(_: Path, config: Config) -> None:
    """Read the data, before any suite runs.

    Raises:
        FoundryError: the data is damaged or of another form, or has fewer examples than shots.
    """
    list(_with_shots(config))


def run(path: Path, config: Config) -> Result:
    """Ask a decoder every question.

    Raises:
        FoundryError: the model, the tokenizer or the data is missing or does not fit.
    """
    from rotary_foundry.evaluation.causal_models import open_causal_model  # imports torch, which takes seconds

    model = open_causal_model(path, config)
    model.check_length("longest", config.longest)
    chat = bool(model.tokenizer.chat_template) if config.chat is None else config.chat
    if chat and not model.tokenizer.chat_template:
        raise ConfigurationError(f"chat: true, but the tokenizer of {path} has no chat template; give chat=false")
    asked = [_ask(model, example, shots, chat, config) for example, shots in _with_shots(config)]
    answers, units = {}, {metric: {} for metric in (LOSS, ACCURACY, *SCORES)}
    for one in asked:
        said = model.generate(one.ids, config.room)
        name = one.example.name
        answers[name] = said.strip() if chat else _ended(said, _summary(config))
        right = model.score(one.answered, last=one.targets)
        units[LOSS][name] = float(right.loss.sum()), one.targets
        units[ACCURACY][name] = int(right.found.sum()), one.targets
        for metric, value in score(answers[name], one.example.answers).items():
            units[metric][name] = value, 1
    cut = [one.cut for one in asked if one.cut]
    longest = max(len(one.ids) for one in asked) + config.room
    how = "in the tokenizer's chat template" if chat else "without a chat template"
    return Result(
        suite=config.suite,
        title=f"answers to {config.task}, scores from 0 to 1, {LOSS} in nats per token",
        model=model.facts,
        config={},
        data={"dataset": config.dataset, "file": config.data, "examples": len(asked)},
        rows=[
            Row(
                {"dataset": config.task, "examples": len(asked)},
                {metric: _mean(metric, units, config) for metric in (LOSS, ACCURACY, *METRICS)},
            )
        ],
        headlines=list(_headlines(units, config)),
        notes=[
            f"{len(asked):,} questions, {how}, answered greedily in up to {config.room:,} tokens",
            *([f"prompts cut from the left: {len(cut):,}, by up to {max(cut):,} tokens"] if cut else []),
            *model.beyond(longest),
        ],
        facts={
            "answers": {
                (name := one.example.name): {
                    "answer": answers[name],
                    "right": one.example.answers,
                    **{metric: of[name][0] / of[name][1] for metric, of in units.items()},
                    "prompt_tokens": len(one.ids),
                    "cut_tokens": one.cut,
                }
                for one in asked
            }
        },
        asked=digest(one.ids.tobytes() for one in asked),
    )


def _with_shots(config: Config) -> Iterator[tuple[Example, list[Example]]]:
    """Yield the examples to ask, in the file's order, each with the answered examples for its prompt."""
    shots = SHOTS.get(config.dataset, 0) if config.shots is None else config.shots
    every = read_examples(config.dataset, Path(config.data))
    pool = every if config.shots_data is None or not shots else read_examples(config.dataset, Path(config.shots_data))
    drawn = range(len(every))
    if config.examples is not None and config.examples < len(every):
        drawn = np.sort(np.random.default_rng(config.seed).choice(len(every), config.examples, replace=False))
    for index in drawn:
        example = every[index]
        others = [one for one in pool if pool is not every or one.document != example.document] if shots else []
        if len(others) < shots:
            raise ConfigurationError(
                f"shots: {shots}, but {config.shots_data or config.data} has {len(others)} examples of other documents "
                f"than that of '{example.name}'; give fewer, or shots_data"
            )
        chosen = np.random.default_rng((config.seed, int(index))).choice(len(others), shots, replace=False)
        yield example, [others[number] for number in chosen]


def _ask(model: "CausalModel", example: Example, shots: Sequence[Example], chat: bool, config: Config) -> Asked:
    """Make a prompt that leaves room for its answer, cut from the left.

    Raises:
        ConfigurationError: there is no room for the question.
    """
    budget, end = config.longest - config.room, f"Q: {example.question}\nA:"
    if chat and not shots and not example.context:
        end = example.question
    before = [f"{shot.context}\n\nQ: {shot.question}\nA: {shot.answers[0]}\n\n".lstrip() for shot in shots]
    text = "".join([*before, f"{example.context}\n\n".lstrip(), end])
    encoded = model.encode(text)
    whole = model.chat(text) if chat else model.row(encoded.ids)
    ids, cut, start = whole, 0, 0
    while len(ids) > budget:
        cut += len(ids) - budget
        start = int(encoded.spans[cut, 0]) if cut < len(encoded.ids) else len(text)
        if start > len(text) - len(end):
            raise ConfigurationError(
                f"longest: {config.longest:,} tokens leave no room for the question of '{example.name}' beside "
                f"{config.room:,} of an answer; give more"
            )
        ids = model.chat(text[start:]) if chat else model.row(encoded.ids[cut:])
    right = example.answers[0]
    if chat:
        answered, targets = model.answered(text[start:], right)
    else:
        encoded = model.encode(f"{text} {right}")
        answered, targets = model.row(encoded.ids[cut:]), int((encoded.spans[:, 1] > len(text)).sum())
    beyond = max(0, targets - config.room)
    return Asked(example, ids, cut, answered[: len(answered) - beyond], targets - beyond)


def _ended(answer: str, summary: bool) -> str:
    """Remove the text that a model without a chat template writes after its answer."""
    answer = answer.strip()
    for end in ("\n\n", "\nQ:") if summary else ("\n",):
        answer = answer.split(end)[0]
    return answer.strip()


def _summary(config: Config) -> bool:
    return config.measured in (*ROUGE, ROUGE_GEO)


def _mean(metric: str, units: Units, config: Config) -> Measure:
    if metric != ROUGE_GEO:
        return bootstrap.ratio(units[metric], config.resamples, config.seed, None if metric == LOSS else WITHIN)
    of_rouge = np.array([[value for value, _ in units[name].values()] for name in ROUGE]).T  # [examples, 3]
    counts = bootstrap.draws(len(of_rouge), config.resamples, config.seed)
    return bootstrap.interval(float(geometric(of_rouge.mean(axis=0))), geometric(counts @ of_rouge / len(of_rouge)))


def _headlines(units: Units, config: Config) -> Iterator[Headline]:
    """Yield the metric, then the loss and accuracy of the right answers, which distinguish small models.

    The geometric mean is not a mean over questions, so ROUGE's three scores are yielded with it for comparison.
    """
    for metric in (config.measured, *(ROUGE if config.measured == ROUGE_GEO else ()), LOSS, ACCURACY):
        within = None if metric in (ROUGE_GEO, LOSS) else WITHIN
        yield Headline(metric, _mean(metric, units, config), metric == LOSS, units.get(metric, {}), within)
