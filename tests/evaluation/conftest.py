from pathlib import Path

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    FNetConfig,
    FNetForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from tests.evaluation.corpus import write_corpus
from tests.retrieval import no_network

__all__ = ["no_network"]  # a fixture, here too

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """To be read only."""
    return write_corpus(tmp_path_factory.mktemp("evaluated") / "corpus")


def made(family: str, vocab_size: int, **settings: int) -> PreTrainedModel:
    """A model of a family, of random weights, large enough to tell positions and contexts apart."""
    torch.manual_seed(0)
    tiny = TINY | {"vocab_size": vocab_size, "initializer_range": 0.3} | settings
    if family == "bert":
        return BertForMaskedLM(BertConfig(**tiny, max_position_embeddings=128))
    if family == "roberta":
        return RobertaForMaskedLM(RobertaConfig(**tiny, max_position_embeddings=130, pad_token_id=1))
    if family == "xlm-roberta":  # positions begin after the padding's id, which is not 0
        return XLMRobertaForMaskedLM(XLMRobertaConfig(**tiny, max_position_embeddings=132, pad_token_id=3))
    if family == "deberta":
        relative = {"relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"]}
        return DebertaV2ForMaskedLM(DebertaV2Config(**tiny, max_position_embeddings=128, **relative))
    if family == "fnet":
        return FNetForMaskedLM(FNetConfig(**tiny, max_position_embeddings=128))
    if family == "headless":
        return BertModel(BertConfig(**tiny, max_position_embeddings=128))
    special = {"pad_token_id": 3, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
    return ModernBertForMaskedLM(ModernBertConfig(**tiny, max_position_embeddings=1024, local_attention=16, **special))


@pytest.fixture(scope="session")
def model_of(corpus, tmp_path_factory):
    """A directory of a model of a family, with the corpus' tokenizer."""
    folders: dict[tuple, Path] = {}

    def make(family: str, vocab_size: int = 384, **parameters: float) -> Path:
        key = family, vocab_size, *parameters.items()
        if key not in folders:
            model = made(family, vocab_size)
            for name, value in parameters.items():
                torch.nn.init.constant_(model.get_parameter(name.replace("__", ".")), value)
            folders[key] = tmp_path_factory.mktemp("models") / family
            model.save_pretrained(folders[key])
            AutoTokenizer.from_pretrained(corpus / "tokenizer").save_pretrained(folders[key])
        return folders[key]

    return make
