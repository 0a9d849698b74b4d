"""The suite `context`: the loss at fixed targets, given more and more context.

- Windows of `longest` tokens are cut out of long documents. They are the same for every length of context and, with the
  same tokenizer, for every model. Each window has evenly spaced spans, and some masked tokens in them are the targets.
- A context of c tokens is a section of the window with a span in its middle, or as near to its middle as the window's
  ends allow. So each context contains all shorter ones. The targets of other spans stay masked at every length.
- Spans with the same section as context share one forward pass; the longest context is the same for all spans.
- The law L(c) = (α / c)^β + γ is fitted to the mean losses. Intervals are over documents, as in all suites.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rotary_foundry.data_prep.inspection.held_out_texts import describe, held_out
from rotary_foundry.evaluation import bootstrap
from rotary_foundry.evaluation.power_law import Law, fit
from rotary_foundry.evaluation.results import Headline, Measure, Result, Row, digest
from rotary_foundry.evaluation.suites import ResampledConfig, TextSuiteConfig, check_data
from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.wording import number

if TYPE_CHECKING:
    from rotary_foundry.evaluation.models import Masked, MaskedModel

LOSS, CHANGE = "loss", "change from the shortest"
FEWEST = 3  # lengths needed for the law, which has three parameters


@dataclass(kw_only=True)
class Config(TextSuiteConfig):
    """The keys of `yamls/eval/context.yaml`."""

    shortest: int
    windows: int
    spans: int
    span_tokens: int
    mlm_probability: float

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if not 0 < self.mlm_probability <= 1:
            yield "mlm_probability", f"expected a share of the tokens above 0 and at most 1, got {self.mlm_probability}"
        if self.span_tokens > self.shortest // 2:
            yield "span_tokens", f"{self.span_tokens} is more than half of the shortest context, {self.shortest // 2}"
        if self.shortest * 2 ** (FEWEST - 1) > self.longest:
            yield "longest", f"{self.longest} is less than four times the shortest, {self.shortest}"
        if self.spans * self.span_tokens > self.longest // 2:
            yield "spans", f"{self.spans} of {self.span_tokens} tokens fill more than half of a window"


@dataclass(frozen=True)
class Window:
    """A stretch of a document with spans to predict."""

    document: str
    ids: NDArray[np.int64]  # [tokens], masked
    original: NDArray[np.int64]  # [tokens]
    middles: NDArray[np.int64]  # [spans]
    targets: list[NDArray[np.int64]]  # for each span, its masked places


check = check_data


def run(path: Path, config: Config) -> Result:
    """Measure the loss at fixed targets with each length of context.

    Raises:
        FoundryError: the model, the tokenizer or the data is missing or does not fit; no document is long enough.
    """
    from rotary_foundry.evaluation.models import (
        open_model,
    )  # imports torch, which takes seconds; wrong keys are refused earlier

    model = open_model(path, config.tokenizer, config.rope_theta)
    texts = held_out(config.data, config.documents, config.seed, at_least=config.longest - model.frame.slots)
    windows = [window for text in texts for window in _windows(model, text.id, text.text, config)]
    if not windows:
        raise DataError(
            f"{config.data}: no held-out document has {config.longest:,} tokens of this tokenizer; set longest to less"
        )
    lengths = _lengths(model, config)
    loss = np.stack([_losses(model, windows, length) for length in lengths])  # [lengths, targets]
    of_target = [window.document for window in windows for targets in window.targets for _ in targets]
    found = by_context(lengths, loss, of_target, config)
    return Result(
        suite=config.suite,
        title="masked-LM loss at the same tokens, by tokens of context",
        model=model.facts,
        config={},
        data=describe(config.data, [text for text in texts if text.id in found.documents])
        | {"windows": len(windows), "targets": len(of_target)},
        rows=found.rows,
        headlines=found.headlines,
        notes=[
            f"{len(of_target):,} targets in {len(windows)} windows of {config.longest:,} tokens; documents: "
            f"{len(found.documents)}",
            *shortfall(len(texts), len(found.documents)),
            found.law_in_words,
        ],
        facts={"law": found.law},
        asked=digest(_question(model, window).tobytes() for window in windows),
    )


def _question(model: "MaskedModel", window: Window) -> "Masked":
    """Return a window with all targets masked."""
    places = np.concatenate(window.targets)
    return model.framed(window.ids, places, window.original[places])


def shortfall(drawn: int, measured: int) -> list[str]:
    """Return a note on documents that are long enough by the corpus' tokenizer but too short by the model's."""
    return [f"{drawn - measured} of {drawn} documents have fewer tokens by this tokenizer"] if measured < drawn else []


def _lengths(model: "MaskedModel", config: Config) -> list[int]:
    """Return the lengths of context that the model can take, each twice the one before; they include special tokens.

    Raises:
        DataError: the model can take fewer than FEWEST lengths.
    """
    most = model.longest(config.longest) + model.frame.slots
    lengths = doubled(config.shortest, most)
    if len(lengths) < FEWEST:
        raise DataError(
            f"{model.path}: takes {most:,} tokens at most, too few from shortest={config.shortest} on; lower it"
        )
    return lengths


def doubled(shortest: int, longest: int) -> list[int]:
    """Return lengths, each twice the one before, and the longest."""
    return [*(length for power in range(64) if (length := shortest << power) < longest), longest]


def _windows(model: "MaskedModel", document: str, text: str, config: Config) -> list[Window]:
    """Cut evenly spaced windows out of a document, and draw their spans and targets."""
    ids = model.encode(text).ids
    size = config.longest - model.frame.slots
    number = min(config.windows, len(ids) // size)
    made = []
    for index in range(number):
        start = (len(ids) - size) * index // max(1, number - 1)
        generator = np.random.default_rng((config.seed, index, *document.encode()))
        original = ids[start : start + size]
        middles = ((np.arange(config.spans) + 0.5) * size / config.spans).astype(np.int64)
        targets = []
        for first in middles - config.span_tokens // 2:
            places = first + np.flatnonzero(generator.random(config.span_tokens) < config.mlm_probability)
            targets.append(places if len(places) else first + generator.integers(config.span_tokens, size=1))
        masked = original.copy()
        masked[np.concatenate(targets)] = model.tokenizer.mask_token_id
        made.append(Window(document, masked, original, middles, targets))
    return made


def _losses(model: "MaskedModel", windows: Sequence[Window], length: int) -> NDArray[np.float64]:
    """Compute the loss at every target of all windows with `length` tokens of context, [targets]."""
    content = length - model.frame.slots
    asked: list[Masked] = []
    for window in windows:
        together = groupby(zip(stretches(window, content), window.targets, strict=True), key=lambda pair: pair[0])
        for start, of_start in together:
            places = np.concatenate([targets for _, targets in of_start])
            asked.append(model.framed(window.ids[start : start + content], places - start, window.original[places]))
    return np.concatenate([scores.loss for scores in model.score(asked)])


def stretches(window: Window, content: int) -> list[int]:
    """Return the position in a window at which each span's context of `content` tokens begins."""
    return [int(min(max(0, middle - content // 2), len(window.ids) - content)) for middle in window.middles]


class ByContext(NamedTuple):
    """Summed losses at several lengths of context, on the same targets, and the law that fits them."""

    documents: list[str]
    rows: list[Row]  # one for each length
    headlines: list[Headline]
    law: dict[str, list[float | None]] | None  # each parameter with its interval; None: the loss does not fall
    law_in_words: str


def by_context(
    lengths: Sequence[int], loss: NDArray[np.float64], of_target: Sequence[str], config: ResampledConfig
) -> ByContext:
    """Sum losses by length of context, and fit the law to them.

    Args:
        lengths: tokens of context, at least three.
        loss: [lengths, targets], nats.
        of_target: the document of each target.
    """
    documents = sorted(set(of_target))
    member = np.array(of_target)[None] == np.array(documents)[:, None]  # [documents, targets]
    sums, counts = loss @ member.T, member.sum(axis=1)  # [lengths, documents] and [documents]
    law, resampled = _laws(np.array(lengths, float), sums, counts, config)
    rows = []
    for length, of_length in zip(lengths, sums, strict=True):
        units = _units(documents, of_length, counts)
        change = _units(documents, of_length - sums[0], counts)
        measures = {LOSS: units, CHANGE: change}
        rows.append(
            Row(
                {"context": length},
                {name: bootstrap.ratio(of, config.resamples, config.seed) for name, of in measures.items()},
            )
        )
    measured = {
        name: bootstrap.interval(value, resampled[:, i]) for i, (name, value) in enumerate(law._asdict().items())
    }
    return ByContext(
        documents,
        rows,
        _headlines(lengths, rows, documents, sums, counts, config),
        {name: [one.value, one.low, one.high] for name, one in measured.items()} if law.alpha else None,
        _law_in_words(measured),
    )


def _laws(
    lengths: NDArray[np.float64], sums: NDArray[np.float64], counts: NDArray[np.int64], config: ResampledConfig
) -> tuple[Law, NDArray[np.float64]]:
    """Fit the law to all documents and to each resample of them; return both, the latter as [resamples, 3]."""
    law = fit(lengths, sums.sum(axis=1) / counts.sum())
    drawn = bootstrap.draws(len(counts), config.resamples, config.seed)  # [resamples, documents]
    means = (drawn @ sums.T) / (drawn @ counts)[:, None]  # [resamples, lengths]
    return law, np.array([fit(lengths, mean) for mean in means])


def _law_in_words(measured: dict[str, Measure]) -> str:
    alpha, beta, gamma = measured.values()
    if not alpha.value:
        return "the loss does not fall with context, so L(c) = (α / c)^β + γ has no meaning"
    told = [_told(one) for one in (alpha, beta, gamma)]
    return f"L(c) = (α / c)^β + γ: α {told[0]} tokens, β {told[1]}, γ {told[2]} nats"


def _told(measure: Measure) -> str:
    """Format a parameter with its interval; α may have any order of magnitude."""
    if measure.low is None:
        return number(measure.value)
    return f"{number(measure.value)} [{number(measure.low)}, {number(measure.high)}]"


def _units(documents: Sequence[str], sums: NDArray[np.float64], counts: NDArray[np.int64]) -> dict:
    """Return, by document, the sum over its targets and their number."""
    return {name: (float(of), float(count)) for name, of, count in zip(documents, sums, counts, strict=True)}


def _headlines(
    lengths: Sequence[int],
    rows: Sequence[Row],
    documents: Sequence[str],
    sums: NDArray[np.float64],
    counts: NDArray[np.int64],
    config: ResampledConfig,
) -> list[Headline]:
    """Return the losses with the shortest, a middle and the longest context, and the fall from middle to longest."""
    middle = len(lengths) // 2
    found = [
        Headline(
            f"loss given {lengths[at]:,} tokens", rows[at].measures[LOSS], True, _units(documents, sums[at], counts)
        )
        for at in (0, middle, len(lengths) - 1)
    ]
    fall = _units(documents, sums[middle] - sums[-1], counts)
    name = f"fall of it from {lengths[middle]:,} to {lengths[-1]:,} tokens"
    return [*found, Headline(name, bootstrap.ratio(fall, config.resamples, config.seed), False, fall)]
