"""The suite `masked_lm`: loss and accuracy on held-out text, by source and by length of document.

The text is decoded, and encoded again by the model's own tokenizer. Losses per token cannot be compared between
tokenizers, because longer tokens are harder and fewer. So there is also the loss per byte: the loss of the masked
tokens divided by their bytes of text. Lengths are in tokens of the corpus' tokenizer, so a document is in the same line
of the table for every model. Masks depend only on the seed and the document, so models with the same tokenizer get the
same questions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rotary_foundry.data_prep.inspection.held_out_texts import Text, describe, held_out
from rotary_foundry.evaluation import bootstrap
from rotary_foundry.evaluation.results import Headline, Measure, Result, Row, digest
from rotary_foundry.evaluation.suites import ResampledConfig, TextSuiteConfig, check_data
from rotary_foundry.finetuning.finetune_config import LONG_DOCUMENTS
from rotary_foundry.objectives.masked_lm import IGNORE_INDEX
from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.wording import power

LOSS, ACCURACY, BYTE = "loss", "accuracy", "loss per byte"
WITHIN = {ACCURACY: (0.0, 1.0)}  # a loss has no bounds


@dataclass(kw_only=True)
class Config(TextSuiteConfig):
    """The keys of `yamls/eval/masked_lm.yaml`."""

    long_documents: str
    mlm_probability: float
    mask_share: float
    random_share: float

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.long_documents not in LONG_DOCUMENTS:
            yield "long_documents", f"expected {' or '.join(LONG_DOCUMENTS)}, got '{self.long_documents}'"
        if not 0 < self.mlm_probability <= 1:
            yield "mlm_probability", f"expected a share of the tokens above 0 and at most 1, got {self.mlm_probability}"
        for key in ("mask_share", "random_share"):
            if not 0 <= getattr(self, key) <= 1:
                yield key, f"expected a share of the chosen tokens from 0 to 1, got {getattr(self, key)}"
        if self.mask_share + self.random_share > 1:
            yield "random_share", f"{self.random_share} and mask_share, {self.mask_share}, are more than 1 together"


@dataclass(frozen=True)
class DocumentLoss:
    """The sums over one document's targets."""

    text: Text
    targets: int
    bytes: int  # of the targets
    loss: float
    found: int

    def sums(self, measure: str) -> tuple[float, float]:
        value = self.found if measure == ACCURACY else self.loss
        return float(value), float(self.bytes if measure == BYTE else self.targets)


check = check_data


def run(path: Path, config: Config) -> Result:
    """Mask held-out documents and measure a model's loss and accuracy at the masked tokens.

    Raises:
        FoundryError: the model, the tokenizer or the data is missing or does not fit; or a document is too long and
            `long_documents` is refuse.
    """
    from rotary_foundry.evaluation.models import (
        open_model,
    )  # imports torch, which takes seconds; wrong keys are refused earlier

    texts = held_out(config.data, config.documents, config.seed)
    model = open_model(path, config.tokenizer, config.rope_theta)
    masking = model.masking(config.mlm_probability, config.mask_share, config.random_share)
    longest, cut, documents, sizes = model.longest(config.longest), [], [], []
    for number, text in enumerate(texts):
        encoded = model.encode(text.text)
        if len(encoded.ids) > longest:
            if config.long_documents == "refuse":
                raise DataError(
                    f"{text.id}: {len(encoded.ids):,} tokens; expected at most {longest:,}; "
                    "set long_documents=truncate to cut it"
                )
            cut.append(len(encoded.ids) - longest)
        ids = encoded.ids[:longest]
        masked, labels = masking.apply(ids, np.random.default_rng((config.seed, number)))
        places = np.flatnonzero(labels != IGNORE_INDEX)
        documents.append(model.framed(masked, places, labels[places]))
        sizes.append(int(encoded.bytes[places].sum()))
    measured = [
        DocumentLoss(text, len(scores.loss), size, float(scores.loss.sum()), int(scores.found.sum()))
        for text, size, scores in zip(texts, sizes, model.score(documents), strict=True)
    ]
    if not any(one.targets for one in measured):
        raise DataError(f"{config.data}: no token of {len(texts)} documents was masked; raise mlm_probability")
    return loss_result(
        config,
        f"masked-LM, {config.mlm_probability:.0%} of the tokens masked",
        model.facts,
        describe(config.data, texts),
        measured,
        longest,
        cut,
        digest(document.tobytes() for document in documents),
    )


def loss_result(
    config: ResampledConfig,
    title: str,
    model: dict,
    data: dict,
    measured: Sequence[DocumentLoss],
    longest: int,
    cut: Sequence[int],
    asked: str,
) -> Result:
    """Sum the losses of documents. At least one document must have targets.

    Args:
        title, model, data, asked: as in Result.
        longest: the length in tokens at which documents were cut.
        cut: the tokens left out of each document that was cut.
    """
    rows = [_row(label, of, config) for label, of in _groups(measured)]
    every = rows[-1].measures
    units = {name: {one.text.id: one.sums(name) for one in measured} for name in every}
    return Result(
        suite=config.suite,
        title=title,
        model=model,
        config={},
        data=data,
        rows=rows,
        headlines=[
            Headline("loss (nats per token)", every[LOSS], True, units[LOSS]),
            Headline("loss (nats per byte)", every[BYTE], True, units[BYTE]),
            Headline("accuracy", every[ACCURACY], False, units[ACCURACY], WITHIN[ACCURACY]),
        ],
        notes=[f"documents cut to {longest:,} tokens: {len(cut):,}; tokens left out: {sum(cut):,}"] if cut else [],
        facts={"documents_cut": len(cut), "tokens_left_out": sum(cut)},
        asked=asked,
    )


def _groups(measured: Sequence[DocumentLoss]) -> list[tuple[str, list[DocumentLoss]]]:
    """Group documents by source, by length, and all together."""
    groups: dict[str, list[DocumentLoss]] = {}
    for one in measured:
        groups.setdefault(one.text.source, []).append(one)
    by_length: dict[int, list[DocumentLoss]] = {}
    for one in measured:
        by_length.setdefault(max(7, one.text.tokens.bit_length()), []).append(one)
    for exponent in sorted(by_length):
        name = f"under {power(7)} tokens" if exponent == 7 else f"{power(exponent - 1)} – {power(exponent)} tokens"
        groups[name] = by_length[exponent]
    return [*groups.items(), ("all", list(measured))]


def _row(label: str, of: Sequence[DocumentLoss], config: ResampledConfig) -> Row:
    labels = {"documents of": label, "documents": len(of), "targets": sum(one.targets for one in of)}
    measures: dict[str, Measure] = {}
    for name in (LOSS, ACCURACY, BYTE):
        sums = {one.text.id: one.sums(name) for one in of}
        if any(denominator for _, denominator in sums.values()):
            measures[name] = bootstrap.ratio(sums, config.resamples, config.seed, WITHIN.get(name))
    return Row(labels, measures)
