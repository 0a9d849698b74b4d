"""A dense retriever: one vector a text, by sentence-transformers.

The loss is MultipleNegativesRankingLoss: each query against the documents of all rows of its batch, of which its own is
the right one. With `device_train_microbatch_size` it is the cached one (GradCache, arXiv 2101.06983), which computes
the same with a microbatch's memory and a second forward pass; ModernBERT's batch of 512 was trained so. A plain
encoder's tokens are averaged to one vector.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoder_foundry.errors import ConfigurationError
from encoder_foundry.finetuning.pairs import read_pairs
from encoder_foundry.finetuning.retrieval import (
    RetrievalConfig,
    check,
    check_installed,
    fit,
    load_retriever,
    open_model,
    report_too_long,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

MINING = ("model", "num_negatives", "range_min", "range_max", "relative_margin", "sampling_strategy", "batch_size")


@dataclass
class Config(RetrievalConfig):
    """The keys of a `task: dense_retrieval`."""

    max_seq_length: int = 256  # tokens of a query or document
    mine_hard_negatives: dict[str, Any] = field(default_factory=dict)  # sentence-transformers' arguments; none: none


def train(config: Config) -> Path:
    """Train, and return the directory, which `SentenceTransformer(directory)` loads.

    Raises:
        ConfigurationError, DataError: as the parts say it.
    """
    check(config)
    check_installed("sentence_transformers", "datasets")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss

    _check_mining(config)
    rows = read_pairs(config.data, config.max_pairs)
    if config.mine_hard_negatives and len(rows.column_names) > 2:
        raise ConfigurationError(f"mine_hard_negatives: {config.data} has negatives already")
    model = open_model(config, SentenceTransformer)
    if not 3 <= config.max_seq_length <= model.max_seq_length:
        raise ConfigurationError(
            f"max_seq_length: 3 to {model.max_seq_length} for this model, not {config.max_seq_length}"
        )
    model.max_seq_length = config.max_seq_length
    length = config.max_seq_length
    report_too_long(
        config,
        model,
        rows,
        (("queries", True, "max_seq_length", length), ("documents", False, "max_seq_length", length)),
    )
    if config.mine_hard_negatives:
        rows = _mined(config, model, rows)
    loss = (
        MultipleNegativesRankingLoss(model)
        if config.device_train_microbatch_size is None
        else CachedMultipleNegativesRankingLoss(model, mini_batch_size=config.device_train_microbatch_size)
    )
    return fit(config, model, rows, loss)


def _check_mining(config: Config) -> None:
    if unknown := sorted(set(config.mine_hard_negatives) - set(MINING)):
        raise ConfigurationError(f"mine_hard_negatives: unknown key '{unknown[0]}'; there are {', '.join(MINING)}")


def _mined(config: Config, model: "SentenceTransformer", rows: "Dataset") -> "Dataset":
    """The rows with negatives: the nearest documents that are not the query's own, by another model or this one."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    options = dict(config.mine_hard_negatives)
    miner = model
    if path := options.pop("model", None):
        miner = load_retriever(path, SentenceTransformer)
    mined = mine_hard_negatives(rows, miner, output_format="n-tuple", verbose=False, **options)
    if not len(mined):
        raise ConfigurationError(
            "mine_hard_negatives: no row has so many negatives; widen range_max or relative_margin"
        )
    print(f"{len(mined):,} of {len(rows):,} rows have {len(mined.column_names) - 2} mined negatives")
    return mined
