"""Masked language modelling by BERT's scheme (arXiv 1810.04805, section 3.1).

Most of the chosen tokens are replaced by the mask token, some by a random token, and the rest are kept. Special tokens
are never chosen. Each row has its own generator, so masks do not depend on how rows are distributed over processes,
workers or microbatches, and a row that is drawn again gets a new mask.

With `whole_words`, words (a row's column `word_starts`) are chosen instead of tokens. All tokens of a chosen word are
masked, or each becomes its own random token, or all are kept; in each case all are predicted. It is the masking of
`train_mlm.py` in ZhuiyiTechnology/roformer-v2, with two differences. A word that has a special token, such as [UNK], is
never chosen. A random token is any of the vocabulary, as without `whole_words`; `train_mlm.py` leaves out id 0.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from rotary_foundry.objectives.objective import IGNORE_INDEX, Metric, Objective, Prepared
from rotary_foundry.utils.knob import Knob, Problem

if TYPE_CHECKING:
    from rotary_foundry.data.corpus import TokenizerFacts


@dataclass(frozen=True)
class Masking:
    """How to corrupt rows.

    `probability` is the share of tokens, or of words, to predict. `mask_share` and `random_share` are shares of these.
    `special_ids` are never chosen.
    """

    probability: float
    mask_share: float
    random_share: float
    mask_id: int
    special_ids: tuple[int, ...]
    vocab_size: int

    def apply(
        self, tokens: NDArray[np.int64], generator: np.random.Generator, word_starts: NDArray[np.uint8] | None = None
    ) -> Prepared:
        """Return (input ids, labels), each int64 [tokens]; labels are IGNORE_INDEX where nothing is to be predicted.

        Args:
            tokens: the row's tokens.
            generator: the row's own generator.
            word_starts: [tokens], 1 where a token begins a word; None: each token is a word.
        """
        spared, word = np.isin(tokens, self.special_ids), slice(None)
        if word_starts is not None:
            spared = np.logical_or.reduceat(spared, np.flatnonzero(word_starts))  # [words]
            word = np.cumsum(word_starts, dtype=np.int64) - 1  # [tokens], the word that each token belongs to
        chosen = ((generator.random(len(spared)) < self.probability) & ~spared)[word]
        fate = generator.random(len(spared))[word]
        masked = chosen & (fate < self.mask_share)
        randomised = chosen & (fate >= self.mask_share) & (fate < self.mask_share + self.random_share)
        input_ids = np.where(masked, self.mask_id, tokens)
        input_ids[randomised] = generator.integers(self.vocab_size, size=int(randomised.sum()))
        return input_ids, np.where(chosen, tokens, IGNORE_INDEX)


@dataclass
class MaskedLM(Objective):
    """Predict masked tokens."""

    mlm_probability: float  # share of the tokens, or of the words, to be predicted
    eval_mlm_probability: float
    mask_share: float  # share of the chosen tokens that are replaced by the mask token
    random_share: float  # … by a random token; the rest is kept as it is
    whole_words: bool = False  # choose words instead of tokens; rows need the column word_starts

    name: ClassVar[str] = "masked_lm"
    causal: ClassVar[bool] = False
    special_tokens: ClassVar[tuple[str, ...]] = ("mask_token",)
    knobs: ClassVar[Mapping[str, Knob]] = {"mlm_probability": Knob("share of the tokens to be predicted", high=1.0)}
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("loss", "cross_entropy", "Loss", "nats per masked token"),
        Metric("masked_accuracy", "correct", "Masked accuracy", "share of masked tokens whose likeliest word is right"),
    )
    task: ClassVar[str] = "fill-mask"

    @property
    def columns(self) -> tuple[str, ...]:  # pyrefly: ignore[bad-override]: read only, here as there
        return ("word_starts",) if self.whole_words else ()

    def problems(self) -> Iterator[Problem]:
        if complaint := self.knobs["mlm_probability"].complaint(self.eval_mlm_probability):
            yield "eval_mlm_probability", complaint
        if not (min(self.mask_share, self.random_share) >= 0 and self.mask_share + self.random_share <= 1):
            yield "mask_share", "mask_share and random_share are shares of the chosen tokens: not negative, sum ≤ 1"

    def prepare(
        self,
        row: Mapping[str, Any],
        tokenizer: "TokenizerFacts",
        generator: np.random.Generator,
        knobs: Mapping[str, float],
    ) -> Prepared:
        word_starts = row["word_starts"] if self.whole_words else None
        return self.masking(tokenizer, knobs).apply(row["tokens"].astype(np.int64), generator, word_starts)

    def masking(self, tokenizer: "TokenizerFacts", knobs: Mapping[str, float]) -> Masking:
        """Return how rows are corrupted under these knobs."""
        return Masking(
            probability=knobs["mlm_probability"],
            mask_share=self.mask_share,
            random_share=self.random_share,
            mask_id=tokenizer.special_ids["mask_token"],
            special_ids=tuple(sorted(tokenizer.special_ids.values())),
            vocab_size=tokenizer.vocab_size,
        )

    def evaluation_knobs(self) -> dict[str, float]:
        return {"mlm_probability": self.eval_mlm_probability}

    def predicted_share(self, knobs: Mapping[str, float]) -> float:
        return knobs["mlm_probability"]

    def describe(self, knobs: Mapping[str, float]) -> str:
        kept = 1 - self.mask_share - self.random_share
        return (
            f"Masked-LM on {knobs['mlm_probability']:.0%} of the {self.units}: {self.mask_share:.0%} of those become "
            f"the mask, {self.random_share:.0%} a random token, {kept:.0%} stay."
        )

    def describe_evaluation(self) -> str:
        return f"with {self.eval_mlm_probability:.0%} of the {self.units} masked"

    @property
    def units(self) -> str:
        """The noun for what is masked as a whole: words or tokens."""
        return "words" if self.whole_words else "tokens"
