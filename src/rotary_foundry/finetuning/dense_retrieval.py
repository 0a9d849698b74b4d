"""A dense retriever: one vector a text, by sentence-transformers.

The loss is MultipleNegativesRankingLoss: each query against the documents of all rows of its batch, of which its own is
the right one. With `device_train_microbatch_size` it is the cached one (GradCache, arXiv 2101.06983), which computes
the same with a microbatch's memory and a second forward pass. A plain encoder's tokens are averaged to one vector.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rotary_foundry.data.rows import SHORTEST
from rotary_foundry.finetuning.pairs import read_pairs
from rotary_foundry.finetuning.retrieval import (
    RetrievalConfig,
    check,
    check_installed,
    check_length,
    fit,
    load_retriever,
    longest_text,
    open_model,
    report_too_long,
)
from rotary_foundry.utils.errors import ConfigurationError

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

STRATEGIES = "top", "random"


@dataclass
class MiningConfig:
    """Arguments of sentence-transformers' `mine_hard_negatives`, with its defaults but for the first."""

    num_negatives: int = 0  # of each query; 0: none are mined
    model: str | None = None  # a directory, by whose vectors the nearest are found; null: the model itself
    range_min: int = 0  # so many of the nearest documents are passed over
    range_max: int | None = None  # and none is taken from beyond these; null: as near as they are to be had
    relative_margin: float | None = None  # 0.05: at most 95 % as similar as the query's own document
    sampling_strategy: str = "top"  # or random, from among those in range
    batch_size: int = 32  # texts that are encoded at a time


@dataclass
class Config(RetrievalConfig):
    """The keys of a `task: dense_retrieval`."""

    max_seq_length: int = 256  # tokens of a query or document
    mine_hard_negatives: MiningConfig = field(default_factory=MiningConfig)


def train(config: Config) -> Path:
    """Train, and return the directory, which `SentenceTransformer(directory)` loads.

    Raises:
        ConfigurationError, DataError: as the parts say it.
    """
    check(config)
    check_installed("sentence_transformers", "datasets")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss

    mining = config.mine_hard_negatives
    _check_mining(mining)
    rows = read_pairs(config.data, config.max_pairs)
    if mining.num_negatives and len(rows.column_names) > 2:
        raise ConfigurationError(f"mine_hard_negatives: {config.data} has negatives already")
    model = open_model(config, SentenceTransformer)
    check_length("max_seq_length", config.max_seq_length, SHORTEST, model)
    model.max_seq_length = config.max_seq_length
    length = config.max_seq_length
    report_too_long(
        config,
        model,
        rows,
        (("queries", True, "max_seq_length", length), ("documents", False, "max_seq_length", length)),
    )
    if mining.num_negatives:
        rows = _mined(mining, model, rows)
    loss = (
        MultipleNegativesRankingLoss(model)
        if config.device_train_microbatch_size is None
        else CachedMultipleNegativesRankingLoss(model, mini_batch_size=config.device_train_microbatch_size)
    )
    return fit(config, model, rows, loss)


def _check_mining(mining: MiningConfig) -> None:
    if not mining.num_negatives and mining != MiningConfig():
        raise ConfigurationError(
            "mine_hard_negatives.num_negatives: 0, so none are mined, and yet other keys are given"
        )
    for key, least in (("num_negatives", 0), ("batch_size", 1), ("range_min", 0)):
        if getattr(mining, key) < least:
            raise ConfigurationError(
                f"mine_hard_negatives.{key}: a number from {least} on is wanted, not {getattr(mining, key)}"
            )
    least = mining.range_min + mining.num_negatives
    if mining.range_max is not None and mining.range_max < least:
        raise ConfigurationError(
            f"mine_hard_negatives.range_max: {least} at least, range_min and num_negatives together, not "
            f"{mining.range_max}"
        )
    if mining.relative_margin is not None and not 0 <= mining.relative_margin < 1:
        raise ConfigurationError(
            f"mine_hard_negatives.relative_margin: from 0 to below 1 is wanted, not {mining.relative_margin}"
        )
    if mining.sampling_strategy not in STRATEGIES:
        raise ConfigurationError(
            f"mine_hard_negatives.sampling_strategy: {' or '.join(STRATEGIES)} is wanted, not "
            f"'{mining.sampling_strategy}'"
        )


def _mined(mining: MiningConfig, model: "SentenceTransformer", rows: "Dataset") -> "Dataset":
    """The rows with negatives: the nearest documents that are not the query's own, by another model or this one."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    options = vars(mining).copy()
    path = options.pop("model")
    miner = model
    if path is not None:
        miner = load_retriever(path, SentenceTransformer)
        miner.max_seq_length = longest_text(miner)
    own = max(Counter(rows["query"]).values())
    others = len(set(rows["positive"])) - own
    if mining.range_min + mining.num_negatives > others:
        raise ConfigurationError(
            f"mine_hard_negatives: num_negatives and range_min ask for {mining.range_min + mining.num_negatives:,} "
            f"documents that are not a query's own; there are {others:,}"
        )
    # It looks for as many documents as these say, whether there are so many or not.
    reach = mining.num_negatives * (1 if mining.relative_margin is None else 10)
    options["range_max"] = min(mining.range_max or mining.range_min + reach + own, others)
    mined = mine_hard_negatives(rows, miner, output_format="n-tuple", verbose=False, **options)
    if not len(mined):
        raise ConfigurationError(
            "mine_hard_negatives: no row has so many negatives; widen range_max or relative_margin"
        )
    print(f"{len(mined):,} of {len(rows):,} rows have {len(mined.column_names) - 2} mined negatives")
    return mined
