"""The suite `needle`: a name occurs twice in a window, far apart; the second is masked, and the model has to find it.

- Needles are names and words of the corpus itself. A needle occurs exactly twice in a window, counting also parts of
  other words. It has the same tokens both times, and the two start at least `nearest` tokens apart. All tokens of the
  second are masked, and all must be predicted correctly.
- A name can be guessed from the text around it. So each is asked twice: in the original document, and with its first
  occurrence replaced by another name of the document with the same number of tokens, so that no token moves. So the
  difference between the two is due only to the first, distant occurrence.
- The needles of a window are asked together: a few masked tokens among thousands. They are chosen evenly over distances
  where possible.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rotary_foundry.data_prep.inspection.held_out_texts import describe, held_out
from rotary_foundry.evaluation import bootstrap
from rotary_foundry.evaluation.results import Headline, Result, Row, digest
from rotary_foundry.evaluation.suites import TextSuiteConfig, check_data
from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.wording import power

if TYPE_CHECKING:
    from rotary_foundry.evaluation.models import Encoded, Masked, MaskedModel

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{3,}")
MOST_TOKENS = 4  # of a name
QUARTERS = ("0–25 %", "25–50 %", "50–75 %", "75–100 %")
FOUND, REPLACED, SAVED = "found", "found if replaced", "loss saved"
WITHIN = {FOUND: (0.0, 1.0), REPLACED: (0.0, 1.0)}  # a loss has no bounds
OF_GAIN = -1.0, 1.0  # bounds of FOUND minus REPLACED


@dataclass(kw_only=True)
class Config(TextSuiteConfig):
    """The keys of `yamls/eval/needle.yaml`."""

    at_least: int
    windows: int
    needles: int
    nearest: int


@dataclass(frozen=True)
class Needle:
    """A name's two occurrences in a window."""

    first: int  # the token of the window where it stays visible
    second: int  # the token of the window where it is masked
    tokens: tuple[int, ...]  # its ids
    other: tuple[int, ...]  # the ids of another name, which replaces the first occurrence for comparison

    @property
    def distance(self) -> int:
        """Return the tokens from the start of the first occurrence to that of the second."""
        return self.second - self.first

    @property
    def places(self) -> NDArray[np.int64]:
        """Return the positions of the masked tokens."""
        return self.second + np.arange(len(self.tokens))


@dataclass(frozen=True)
class Asked:
    """A needle, and the model's scores with its first occurrence present and replaced."""

    document: str
    needle: Needle
    depth: float  # of the first occurrence, as a share of the window
    found: bool
    found_replaced: bool
    loss: float  # the sum over its tokens
    loss_replaced: float

    def sums(self, measure: str) -> tuple[float, float]:
        if measure == SAVED:
            return self.loss_replaced - self.loss, float(len(self.needle.tokens))
        return float(self.found if measure == FOUND else self.found_replaced), 1.0


check = check_data


def run(path: Path, config: Config) -> Result:
    """Ask for each needle twice: with its first occurrence present, and with it replaced.

    Raises:
        FoundryError: the model, the tokenizer or the data is missing or does not fit; there is no needle.
    """
    from rotary_foundry.evaluation.models import (
        open_model,
    )  # imports torch, which takes seconds; wrong keys are refused earlier

    texts = held_out(config.data, config.documents, config.seed, at_least=config.at_least)
    model = open_model(path, config.tokenizer, config.rope_theta)
    size = model.longest(config.longest)
    documents, windows, needles = [], [], []
    for text in texts:
        encoded = model.encode(text.text)
        for index, start in enumerate(range(0, len(encoded.ids), size)[: config.windows]):
            generator = np.random.default_rng((config.seed, index, *text.id.encode()))
            found = find_needles(text.text, encoded, start, start + size, config, generator)
            if found:
                documents.append(text.id)
                windows.append(encoded.ids[start : start + size])
                needles.append(found)
    if not windows:
        raise DataError(
            f"{config.data}: no name occurs twice, {config.nearest:,} tokens apart, within {size:,} tokens of a held-"
            "out document; lower nearest or at_least"
        )
    asked, same = ask(model, documents, windows, needles)
    rows = [_row(label, of, config) for label, of in _groups(asked)]
    every = rows[-1].measures
    units = {measure: _units(asked, measure) for measure in (FOUND, REPLACED, SAVED)}
    gain = {name: (found - units[REPLACED][name][0], count) for name, (found, count) in units[FOUND].items()}
    return Result(
        suite=config.suite,
        title="masked names that occur once more elsewhere",
        model=model.facts,
        config={},
        data=describe(config.data, [text for text in texts if text.id in documents])
        | {"windows": len(windows), "needles": len(asked)},
        rows=rows,
        headlines=[
            Headline("names found", every[FOUND], False, units[FOUND], WITHIN[FOUND]),
            Headline(
                "… because of the far place",
                bootstrap.ratio(gain, config.resamples, config.seed, OF_GAIN),
                False,
                gain,
                OF_GAIN,
            ),
            Headline("loss saved by it (nats per token)", every[SAVED], False, units[SAVED]),
        ],
        asked=same,
        notes=[
            f"{len(asked):,} needles in {len(windows)} windows of up to {size:,} tokens; "
            f"documents: {len(set(documents))}",
            "found: all of a name's tokens; if replaced: with another name at the first occurrence; depth: of that one",
        ],
    )


def find_needles(
    text: str, encoded: "Encoded", start: int, end: int, config: Config, generator: np.random.Generator
) -> list[Needle]:
    """Choose needles among tokens `start` to `end` of a document, evenly over distances; return window positions."""
    spans = encoded.spans[start:end]
    ids = encoded.ids[start:end].tolist()
    window = text[: spans[-1, 1]]
    words: dict[str, list[tuple[int, tuple[int, ...]]]] = defaultdict(list)
    for match in NAME.finditer(window, int(spans[0, 0])):
        first = int(np.searchsorted(spans[:, 1], match.start(), side="right"))
        last = int(np.searchsorted(spans[:, 0], match.end(), side="left"))
        whole = window[spans[first, 0] : spans[last - 1, 1]].strip() == match[0]
        words[match[0]].append((first, tuple(ids[first:last]) if whole else ()))
    others: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    twice = {}
    for word, found in words.items():
        (first, tokens), (second, same) = found[0], found[-1]
        if len(found) == 2 and tokens == same and 0 < len(tokens) <= MOST_TOKENS and second - first >= config.nearest:
            if window.count(word, int(spans[0, 0])) == 2:
                twice[word] = first, second, tokens
        else:
            others[len(tokens)].append(tokens)
    by_distance: dict[int, list[Needle]] = defaultdict(list)
    for first, second, tokens in twice.values():
        if others[len(tokens)]:
            other = others[len(tokens)][generator.integers(len(others[len(tokens)]))]
            by_distance[(second - first).bit_length()].append(Needle(first, second, tokens, other))
    for of_distance in by_distance.values():
        generator.shuffle(of_distance)
    chosen: list[Needle] = []
    while len(chosen) < config.needles and any(by_distance.values()):
        for distance in sorted(by_distance):
            if by_distance[distance] and len(chosen) < config.needles:
                chosen.append(by_distance[distance].pop())
    return chosen


def ask(
    model: "MaskedModel",
    documents: Sequence[str],
    windows: Sequence[NDArray[np.int64]],
    needles: Sequence[Sequence[Needle]],
) -> tuple[list[Asked], str]:
    """Score a model on needles; return the scores and a digest of the questions.

    Args:
        documents: the name of each window's document.
        windows: the ids of each window, [tokens].
        needles: the needles of each window.
    """
    pairs = [questions(model, *of_window) for of_window in zip(windows, needles, strict=True)]
    there, replaced = [with_it for with_it, _ in pairs], [without_it for _, without_it in pairs]
    asked: list[Asked] = []
    scored = zip(documents, windows, needles, model.score(there), model.score(replaced), strict=True)
    for document, ids, of_window, with_it, without_it in scored:
        start = 0
        for needle in of_window:
            own = slice(start, start := start + len(needle.tokens))
            asked.append(
                Asked(
                    document,
                    needle,
                    needle.first / len(ids),
                    bool(with_it.found[own].all()),
                    bool(without_it.found[own].all()),
                    float(with_it.loss[own].sum()),
                    float(without_it.loss[own].sum()),
                )
            )
    return asked, digest(question.tobytes() for pair in pairs for question in pair)


def questions(model: "MaskedModel", ids: NDArray[np.int64], needles: Sequence[Needle]) -> "tuple[Masked, Masked]":
    """Mask the needles of a window, ids [tokens], twice: unchanged, and with other names at the first occurrences."""
    places = np.concatenate([needle.places for needle in needles])
    masked = ids.copy()
    masked[places] = model.tokenizer.mask_token_id
    without = masked.copy()
    for needle in needles:
        without[needle.first : needle.first + len(needle.other)] = needle.other
    return model.framed(masked, places, ids[places]), model.framed(without, places, ids[places])


def _groups(asked: Sequence[Asked]) -> list[tuple[str, list[Asked]]]:
    """Group needles by distance, by depth, and all together."""
    by_distance, by_depth = defaultdict(list), defaultdict(list)
    for one in asked:
        by_distance[one.needle.distance.bit_length()].append(one)
        by_depth[int(4 * one.depth)].append(one)
    return [
        *((f"distance {power(at - 1)}–{power(at)}", by_distance[at]) for at in sorted(by_distance)),
        *((f"depth {QUARTERS[at]}", by_depth[at]) for at in sorted(by_depth)),
        ("all", list(asked)),
    ]


def _row(label: str, of: Sequence[Asked], config: Config) -> Row:
    measures = {
        measure: bootstrap.ratio(_units(of, measure), config.resamples, config.seed, WITHIN.get(measure))
        for measure in (FOUND, REPLACED, SAVED)
    }
    return Row({"needles by": label, "needles": len(of)}, measures)


def _units(asked: Sequence[Asked], measure: str) -> dict[str, tuple[float, float]]:
    """Return the sums of a measure by document."""
    units: dict[str, tuple[float, float]] = {}
    for one in asked:
        numerator, denominator = units.get(one.document, (0.0, 0.0))
        more, by = one.sums(measure)
        units[one.document] = numerator + more, denominator + by
    return units
