"""The suite `retrieval`: nDCG@10 against one computed by hand, of both kinds of models; and what cannot be had."""

import ast
from dataclasses import replace
from math import log2
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import StaticEmbedding
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    FNetConfig,
    FNetModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
)

from rotary_foundry.evaluation import retrieval_suite as retrieval
from rotary_foundry.evaluation.code_search import code_search_pairs
from rotary_foundry.evaluation.results import Measure, Result
from rotary_foundry.evaluation.suites import find_suites
from rotary_foundry.utils.errors import ConfigurationError, DataError, NeedsNetwork
from tests.retrieval import SPECIAL, save_encoder

PAIRS = 40


@pytest.fixture
def config() -> retrieval.Config:
    (suite,) = find_suites(["retrieval"], [f"max_pairs={PAIRS}"])
    return suite.config


@pytest.fixture(scope="session")
def code_encoder(tmp_path_factory) -> Path:
    """A small ModernBERT, of random weights, with a byte-level tokenizer of the standard library's functions."""
    path = tmp_path_factory.mktemp("code") / "encoder"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    train = code_search_pairs("train")
    tokenizer.train_from_iterator([pair.query + "\n" + pair.document for pair in train[:400]], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    named = {f"{token}_token": f"[{token.upper()}]" for token in ("unk", "cls", "sep", "pad", "mask")}
    named |= {"model_max_length": 256, "model_input_names": ["input_ids", "attention_mask"]}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(path)
    save_encoder(path, vocab_size=len(tokenizer.get_vocab()), hidden_size=64, max_position_embeddings=256)
    return path


def of_rank(rank: int) -> float:
    """nDCG@10 of a query with one right document, found at a rank from 0."""
    return 1 / log2(rank + 2) if rank < 10 else 0.0


def by_hand(scores: torch.Tensor) -> list[float]:
    """nDCG@10 of each query whose right document has its own number. scores [queries, documents]"""
    return [of_rank(int((row > row[number]).sum())) for number, row in enumerate(scores)]


def found(result: Result) -> list[float]:
    (headline,) = result.headlines
    assert headline.measure.value == pytest.approx(np.mean([score for score, _ in headline.units.values()]))
    assert headline.measure.low < headline.measure.value < headline.measure.high
    return [headline.units[pair.name][0] for pair in code_search_pairs("test")[:PAIRS]]


@pytest.mark.long
def test_a_plain_encoder_is_averaged_and_its_ndcg_is_that_of_its_vectors(code_encoder, config, no_network):
    result = retrieval.run(code_encoder, config)
    model = SentenceTransformer(str(code_encoder), device="cpu")
    pairs = code_search_pairs("test")[:PAIRS]
    queries, documents = (model.encode([getattr(pair, of) for pair in pairs]) for of in ("query", "document"))
    assert found(result) == pytest.approx(by_hand(model.similarity(queries, documents)))
    assert result.notes[0] == "one vector per text, the mean of its tokens: a plain encoder, not trained for retrieval"
    long = sum(len(model.tokenizer(pair.document)["input_ids"]) > 256 for pair in pairs)
    assert long
    assert result.notes[-1] == f"code_search: {long} of {PAIRS} documents are longer than 256 tokens, and cut there"
    assert not no_network
    with pytest.raises(DataError, match=f"of {PAIRS} .* are longer than 256 tokens; raise max_seq_len"):
        retrieval.run(code_encoder, replace(config, long_documents="refuse"))


@pytest.mark.long
def test_vectors_of_tokens_are_scored_by_maxsim_over_all_documents(code_encoder, config, tmp_path, no_network):
    from pylate.models import ColBERT

    path = tmp_path / "late"
    made = ColBERT(str(code_encoder), device="cpu", local_files_only=True, query_length=32, document_length=180)
    made.model_card_data.local_files_only = True  # PyLate does not pass it on
    made.save(str(path))
    result = retrieval.run(path, config)
    model = ColBERT(str(path), device="cpu")
    pairs = code_search_pairs("test")[:PAIRS]
    queries = model.encode([pair.query for pair in pairs], is_query=True, convert_to_tensor=True)
    documents = model.encode([pair.document for pair in pairs], is_query=False, convert_to_tensor=True)
    scores = torch.tensor([[(query @ document.T).amax(1).sum() for document in documents] for query in queries])
    assert found(result) == pytest.approx(by_hand(scores))
    assert result.notes[0] == "one vector per token, MaxSim over all documents"
    assert not no_network


def test_a_similarity_below_zero_is_not_the_zero_of_anothers_padding():
    from rotary_foundry.evaluation.retrieval_models import LateInteraction

    query, short, long = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]]), torch.tensor([[-0.6, 0.8]] * 3)
    scores = LateInteraction.similarity(None, [query, query.repeat(2, 1)], [short, long])
    torch.testing.assert_close(scores, torch.tensor([[-1.0, -0.6], [-2.0, -1.2]]))


def test_public_sets_are_refused_at_once_without_a_network(config, monkeypatch, no_network):
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("it waited"))
    with pytest.raises(
        NeedsNetwork,
        match=r"BEIR, MLDR: the data has to be downloaded \(code_search needs no network\); .* cannot be reached",
    ):
        retrieval.check(Path("not looked at"), replace(config, tasks=["code_search", "BEIR", "MLDR"]))
    assert len(no_network) == 1  # and not asked a second time


def test_a_public_set_that_is_not_in_the_cache_needs_the_network(code_encoder, config, monkeypatch, no_network):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(NeedsNetwork, match="SciFact: its data cannot be downloaded"):
        retrieval.run(code_encoder, replace(config, tasks=["SciFact"]))
    with pytest.raises(ConfigurationError, match="mteb has no benchmark or task 'SciFakt'"):
        retrieval.check(code_encoder, replace(config, tasks=["SciFakt"]))
    with pytest.raises(ConfigurationError, match="expected retrieval tasks, but STS12 is of type STS"):
        retrieval.check(code_encoder, replace(config, tasks=["STS12"]))


def test_the_names_of_papers_are_found_in_mteb():
    from rotary_foundry.evaluation.retrieval_tasks import find_tasks, leaves

    beir = find_tasks("BEIR")
    assert len(beir) == 15
    assert sum(len(leaves(task)) for task in beir) == 14 + 12  # CQADupstack is twelve forums
    (mldr,) = find_tasks("MLDR")
    assert (mldr.hf_subsets, mldr.eval_splits) == (["en"], ["test"])
    (code,) = find_tasks("CodeSearchNet")
    assert len(code.hf_subsets) == 6


def test_a_benchmarks_mean_is_over_its_tasks_and_not_over_all_queries(config):
    from rotary_foundry.evaluation.retrieval_tasks import Part

    def part(*scores: float) -> Part:
        return Part("", 10, {str(number): score for number, score in enumerate(scores)})

    measure = retrieval._measure([[part(1, 1), part(0, 0, 0, 0)], [part(1, 0)]], config)
    assert measure.value == (0.5 + 0.5) / 2
    assert (measure.low, measure.high) == (0.25, 0.75)  # both queries of the last task wrong, or right
    nothing = retrieval._measure([[part(*[0] * 40)], [part(*[0] * 50)]], config)
    assert nothing == Measure(0.0, 0.0, pytest.approx(binomtest(0, 40).proportion_ci().high))


def test_a_length_that_the_model_does_not_take_is_refused(code_encoder, config):
    with pytest.raises(
        ConfigurationError, match="max_seq_len: this model takes texts of 256 tokens at most, not 10000"
    ):
        retrieval.run(code_encoder, replace(config, max_seq_len=10_000))


def test_a_file_is_no_model_and_is_refused(config, tmp_path):
    (tmp_path / "model.pt").write_text("")
    with pytest.raises(ConfigurationError, match=r"model\.pt: no complete checkpoint"):
        retrieval.run(tmp_path / "model.pt", config)


def test_a_model_of_relative_positions_takes_texts_of_any_length_or_of_the_length_that_is_asked_for(
    code_encoder, config, tmp_path
):
    AutoTokenizer.from_pretrained(code_encoder, model_max_length=int(1e30)).save_pretrained(tmp_path)
    T5EncoderModel(T5Config(vocab_size=2048, d_model=16, num_layers=1, num_heads=2, d_ff=16)).save_pretrained(tmp_path)
    whole, cut = (retrieval.run(tmp_path, replace(config, max_seq_len=length)) for length in (None, 64))
    assert whole.model["document_length"] is None
    assert len(whole.notes) == 1
    assert cut.notes[-1].endswith(f"of {PAIRS} documents are longer than 64 tokens, and cut there")
    assert whole.headlines[0].units != cut.headlines[0].units


def test_texts_are_cut_where_roberta_has_no_more_positions(code_encoder, config, tmp_path):
    """Two of its 66 go to the padding, and this tokenizer knows no limit."""
    AutoTokenizer.from_pretrained(code_encoder, model_max_length=int(1e30)).save_pretrained(tmp_path)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    RobertaModel(RobertaConfig(vocab_size=2048, max_position_embeddings=66, **size)).save_pretrained(tmp_path)
    assert retrieval.run(tmp_path, config).model["document_length"] == 64


def test_a_model_that_has_no_attention_mask_is_refused(code_encoder, config, tmp_path):
    AutoTokenizer.from_pretrained(code_encoder).save_pretrained(tmp_path)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
    FNetModel(FNetConfig(vocab_size=2048, max_position_embeddings=256, **size)).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="FNetModel is none: padding changes what it computes, so it has no attention"):
        retrieval.run(tmp_path, config)


def test_what_is_no_transformer_is_refused_by_its_name(code_encoder, config, tmp_path):
    tokenizer = Tokenizer.from_file(str(code_encoder / "tokenizer.json"))
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu").save(str(tmp_path))
    with pytest.raises(DataError, match="expected a transformer as first module, found a StaticEmbedding"):
        retrieval.run(tmp_path, config)


def test_code_search_holds_out_whole_modules_and_has_every_text_once():
    train, test = code_search_pairs("train"), code_search_pairs("test")
    assert not {pair.module for pair in train} & {pair.module for pair in test}
    assert len(train) > 1500
    assert len(test) > 500
    both = train + test
    for part in ("name", "query", "document"):
        assert len({getattr(pair, part) for pair in both}) == len(both)


def test_code_searchs_documents_are_functions_without_their_docstrings():
    for pair in code_search_pairs("test"):
        (function,) = ast.parse(pair.document).body
        assert function.name == pair.name.rpartition(".")[2]
        assert ast.get_docstring(function) is None
        assert not pair.document.startswith(" ")
