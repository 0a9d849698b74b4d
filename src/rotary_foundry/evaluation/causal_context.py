"""The suite `causal_context`: a decoder's loss by position in a row, and at the same tokens with growing context.

- Windows of `longest` tokens are cut out of long documents, the same for every model with the same tokenizer.
- By position: each token of a window is predicted from all before it, and the mean loss is taken over bands of
  positions, each twice as wide as the one before. `longest` may exceed the model's training length; if the loss rises
  there, the model cannot use such positions.
- By context: the last `target_tokens` of a window are predicted from its last c tokens. c begins at `shortest` and is
  doubled up to the whole window. It includes the targets and the tokens that the tokenizer puts before a text.
- The law L(c) = (α / c)^β + γ (arXiv 2309.16039, figure 1) is fitted to the mean losses. Intervals are over documents.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rotary_foundry.evaluation import bootstrap
from rotary_foundry.evaluation.context import CHANGE, FEWEST, LOSS, by_context, doubled, shortfall
from rotary_foundry.evaluation.decoder_texts import check_texts, describe_texts, read_texts
from rotary_foundry.evaluation.results import Result, Row, digest
from rotary_foundry.evaluation.suites import DecoderSuiteConfig
from rotary_foundry.utils.errors import DataError

BY_POSITION, GIVEN = "loss by position", "loss given them"


@dataclass(kw_only=True)
class Config(DecoderSuiteConfig):
    """The keys of `yamls/eval/causal_context.yaml`."""

    longest: int
    shortest: int
    windows: int
    target_tokens: int

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.target_tokens > self.shortest // 2:
            yield (
                "target_tokens",
                f"{self.target_tokens} is more than half of the shortest context, {self.shortest // 2}",
            )
        if self.shortest * 2 ** (FEWEST - 1) > self.longest:
            yield "longest", f"{self.longest} is less than four times the shortest, {self.shortest}"


check = check_texts


def run(path: Path, config: Config) -> Result:
    """Measure the loss by position, and at fixed targets with each length of context.

    Raises:
        FoundryError: the model, the tokenizer or the data is missing or does not fit; no document is long enough.
    """
    from rotary_foundry.evaluation.causal_models import open_causal_model  # imports torch, which takes seconds

    model = open_causal_model(path, config)
    model.check_length("longest", config.longest)
    size = config.longest - len(model.before)
    texts = read_texts(config, at_least=size)
    windows, of_window = [], []
    for text in texts:
        for ids in _windows(model.encode(text.text).ids, size, config.windows):
            windows.append(ids)
            of_window.append(text.id)
    if not windows:
        raise DataError(
            f"{config.data}: no held-out document has {config.longest:,} tokens of this tokenizer; set longest to less"
        )
    whole = np.stack([model.score(model.row(ids)).loss for ids in windows])  # [windows, longest - 1]
    lengths, last = doubled(config.shortest, config.longest), config.target_tokens
    loss = [
        np.concatenate([model.score(model.row(ids[len(model.before) - length :]), last).loss for ids in windows])
        for length in lengths[:-1]
    ]
    loss.append(whole[:, -last:].reshape(-1))
    found = by_context(lengths, np.stack(loss), np.repeat(of_window, last).tolist(), config)
    targets = len(loss[0])
    given = [
        Row(
            {"tokens": f"{length:,} given", "targets": targets},
            {GIVEN: row.measures[LOSS], CHANGE: row.measures[CHANGE]},
        )
        for length, row in zip(lengths, found.rows, strict=True)
    ]
    return Result(
        suite=config.suite,
        title="loss by position in a row, and at the same tokens by tokens of context",
        model=model.facts,
        config={},
        data=describe_texts(config, [text for text in texts if text.id in found.documents])
        | {"windows": len(windows), "targets": targets},
        rows=[*_by_position(whole, of_window, lengths, config), *given],
        headlines=found.headlines,
        notes=[
            f"{len(windows)} windows of {config.longest:,} tokens; documents: {len(found.documents)}",
            *shortfall(len(texts), len(found.documents)),
            *model.beyond(config.longest),
            found.law_in_words,
        ],
        facts={"law": found.law},
        asked=digest([*(ids.tobytes() for ids in windows), str((config.shortest, last)).encode()]),
    )


def _windows(ids: NDArray[np.int64], size: int, most: int) -> list[NDArray[np.int64]]:
    """Cut evenly spaced windows out of a document."""
    number = min(most, len(ids) // size)
    starts = [(len(ids) - size) * index // max(1, number - 1) for index in range(number)]
    return [ids[start : start + size] for start in starts]


def _by_position(
    whole: NDArray[np.float64], of_window: Sequence[str], lengths: Sequence[int], config: Config
) -> Iterator[Row]:
    """Yield a row with the mean loss of each band of positions.

    Args:
        whole: losses [windows, longest - 1], from position 1 on; position 0 is not predicted.
    """
    for start, end in zip([1, *lengths], lengths, strict=False):
        band = whole[:, start - 1 : end - 1]
        units: dict[str, tuple[float, float]] = {}
        for document, losses in zip(of_window, band, strict=True):
            total, count = units.get(document, (0.0, 0.0))
            units[document] = total + float(losses.sum()), count + len(losses)
        labels = {"tokens": f"{start:,} – {end - 1:,}", "targets": band.size}
        yield Row(labels, {BY_POSITION: bootstrap.ratio(units, config.resamples, config.seed)})
