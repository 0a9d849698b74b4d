"""The limit that a config.json tells is the one that the model's table of positions has."""

import pytest
import torch
from transformers import AutoModel, XLNetConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from rotary_foundry.interop.positions import AFTER_PADDING, most_tokens
from rotary_foundry.utils.errors import DataError

VOCABULARY = {"esm": {"vocab_size": 33, "pad_token_id": 1, "position_embedding_type": "absolute"}}  # it has no default
OTHERS = [
    kind if kind in ("bert", "deberta-v2", "distilbert") else pytest.param(kind, marks=pytest.mark.long)
    for kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if kind not in (*AFTER_PADDING, "funnel", "qdqbert")  # AutoModel makes neither from its defaults
]


@pytest.mark.parametrize("kind", [*AFTER_PADDING, *OTHERS])
def test_the_limit_of_a_model_is_what_its_table_has_after_the_paddings(kind):
    config = CONFIG_MAPPING[kind](**VOCABULARY.get(kind, {}))
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    tables = [table for name, table in model.named_modules() if name.endswith("position_embeddings")]
    padding = next((table.padding_idx for table in tables if getattr(table, "padding_idx", None) is not None), -1)
    positions = getattr(config, "max_position_embeddings", None)
    assert most_tokens(config) == (positions and positions - padding - 1)
    assert all(most_tokens(config) <= len(table.weight) for table in tables[:1] if hasattr(table, "weight"))


@pytest.mark.parametrize("change", [{"pad_token_id": None}, {"max_position_embeddings": "512"}])
def test_a_number_that_is_none_is_refused_by_key(change):
    config = CONFIG_MAPPING["roberta"]()
    vars(config).update(change)  # as a class that checks nothing takes it
    with pytest.raises(DataError, match=f"config.json: {next(iter(change))}: expected a number, got"):
        most_tokens(config)


def test_relative_positions_have_no_limit():
    assert most_tokens(XLNetConfig()) is None
