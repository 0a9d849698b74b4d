"""The suite `causal_lm`: a decoder's loss at short context on held-out text, by source and by length of document.

Measured before and after training at long context, on the same documents, it shows if the loss on short texts rose.
Every token but a document's first is predicted from those before it. As in `masked_lm`, the loss per byte compares
models with different tokenizers, and lengths are in tokens of the corpus' tokenizer.
"""

from dataclasses import dataclass
from pathlib import Path

from rotary_foundry.evaluation.decoder_texts import check_texts, describe_texts, read_texts
from rotary_foundry.evaluation.masked_lm_loss import DocumentLoss, loss_result
from rotary_foundry.evaluation.results import Result, digest
from rotary_foundry.evaluation.suites import DecoderSuiteConfig
from rotary_foundry.utils.errors import DataError


@dataclass(kw_only=True)
class Config(DecoderSuiteConfig):
    """The keys of `yamls/eval/causal_lm.yaml`."""

    longest: int  # tokens of a document that are given to the model; the rest is left out


check = check_texts


def run(path: Path, config: Config) -> Result:
    """Measure a decoder's loss and accuracy at every token of held-out documents.

    Raises:
        FoundryError: the model, the tokenizer or the data is missing or does not fit.
    """
    from rotary_foundry.evaluation.causal_models import open_causal_model  # imports torch, which takes seconds

    texts = read_texts(config)
    model = open_causal_model(path, config)
    model.check_length("longest", config.longest)
    measured, rows, cut = [], [], []
    for text in texts:
        encoded = model.encode(text.text)
        row = model.row(encoded.ids)
        if len(row) > config.longest:
            cut.append(len(row) - config.longest)
        rows.append(row[: config.longest])
        if len(rows[-1]) < 2:
            continue
        scores = model.score(rows[-1])
        ends = encoded.ends[len(rows[-1]) - len(model.before) - 1]
        size = ends if len(model.before) else ends - encoded.ends[0]  # the first token is not a target
        loss, found = float(scores.loss.sum()), int(scores.found.sum())
        measured.append(DocumentLoss(text, len(scores.loss), int(size), loss, found))
    if not measured:
        raise DataError(f"{config.data}: no document has two tokens; give longer text, or raise longest")
    title = f"loss at up to {config.longest:,} tokens"
    data, asked = describe_texts(config, texts), digest(row.tobytes() for row in rows)
    return loss_result(config, title, model.facts, data, measured, config.longest, cut, asked)
