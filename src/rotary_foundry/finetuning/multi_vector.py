"""A multi-vector retriever (ColBERT, late interaction): a small vector a token, by PyLate.

A query's score for a document is the sum over its tokens of the best match among the document's (MaxSim). By default it
learns from pairs, each query against the documents of all rows of its batch; with the columns `documents` and `scores`,
from a teacher's scores (KL divergence, as in arXiv 2412.13663; PyLate's Distillation).
PyLate adds the tokens that mark queries and documents, fills queries up with [MASK], and leaves punctuation of
documents out of the score; the layer from the encoder's width to `embedding_size` is new, and drawn from `seed`.
"""

from dataclasses import dataclass
from pathlib import Path

from rotary_foundry.finetuning.pairs import is_distillation, read_pairs
from rotary_foundry.finetuning.retrieval import (
    MARKS,
    SHORTEST_MARKED,
    RetrievalConfig,
    check,
    check_installed,
    check_length,
    fit,
    open_model,
    report_too_long,
)


@dataclass
class Config(RetrievalConfig):
    """The keys of a `task: multi_vector`."""

    query_length: int = 32  # tokens to which queries are cut or filled up; this and the next two are PyLate's defaults
    document_length: int = 180  # tokens to which documents are cut
    embedding_size: int = 128  # width of a token's vector


def train(config: Config) -> Path:
    """Train, and return the directory, which `pylate.models.ColBERT(directory)` loads.

    Raises:
        ConfigurationError, DataError: as the parts say it.
    """
    check(config)
    check_installed("pylate")
    rows = read_pairs(config.data, config.max_pairs, distillation=True)
    from pylate.losses import CachedContrastive, Contrastive, Distillation
    from pylate.models import ColBERT
    from pylate.utils import ColBERTCollator
    from transformers import set_seed

    set_seed(config.seed)
    model = open_model(
        config,
        ColBERT,
        query_length=config.query_length,
        document_length=config.document_length,
        embedding_size=config.embedding_size,
    )
    for key in ("query_length", "document_length"):
        check_length(key, getattr(config, key), SHORTEST_MARKED, model)
    # The token that marks a query or document is put in after the text was cut.
    report_too_long(
        config,
        model,
        rows,
        (
            ("queries", True, "query_length", config.query_length - MARKS),
            ("documents", False, "document_length", config.document_length - MARKS),
        ),
    )
    if is_distillation(rows):
        loss = Distillation(model)
    elif config.device_train_microbatch_size is None:
        loss = Contrastive(model)
    else:
        loss = CachedContrastive(model, mini_batch_size=config.device_train_microbatch_size)
    return fit(config, model, rows, loss, ColBERTCollator(model.tokenize))
