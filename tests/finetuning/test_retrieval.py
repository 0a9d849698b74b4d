"""Dense and multi-vector retrieval: training that ends in directories which the libraries load, and code search."""

import ast
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModel, AutoTokenizer, PretrainedConfig, RobertaConfig, T5Config, XLNetConfig

from rotary_foundry.finetuning import dense_retrieval, multi_vector
from rotary_foundry.finetuning.code_search import code_search_pairs
from rotary_foundry.finetuning.dense_retrieval import MiningConfig
from rotary_foundry.finetuning.pairs import read_pairs
from rotary_foundry.finetuning.retrieval import finetune_retrieval, fit, load_retriever
from rotary_foundry.utils.errors import ConfigurationError, DataError
from tests.retrieval import DOCUMENTS, QUERIES, save_encoder, write_pairs

DENSE = "yamls/finetune/dense_retrieval.yaml"


@pytest.fixture
def keys(tiny_encoder, tmp_path) -> dict:
    """What both configurations have to be given: forty updates over twelve pairs."""
    return {
        "model": str(tiny_encoder),
        "out": str(tmp_path / "out"),
        "data": write_pairs(tmp_path / "pairs.jsonl"),
        "max_duration": "40ba",
        "global_train_batch_size": 12,
        "lr": 5e-3,
        "t_warmup": "0.05dur",
    }


def dense(keys: dict, **more) -> Path:
    return dense_retrieval.train(dense_retrieval.Config("dense_retrieval", **keys | {"max_seq_length": 16} | more))


def colbert(keys: dict, **more) -> Path:
    sizes = {"query_length": 8, "document_length": 8, "embedding_size": 16}
    return multi_vector.train(multi_vector.Config("multi_vector", **keys | sizes | more))


def right(scores: torch.Tensor) -> float:
    """The share of queries whose own document has the highest score. scores [queries, documents]"""
    return (scores.argmax(1) == torch.arange(len(scores))).float().mean().item()


def test_a_dense_retriever_learns_its_pairs_and_sentence_transformers_loads_it(keys, no_network):
    from sentence_transformers import SentenceTransformer

    def share(path: str) -> float:
        model = SentenceTransformer(path, device="cpu")
        return right(model.similarity(model.encode_query(QUERIES), model.encode_document(DOCUMENTS)))

    assert share(keys["model"]) < 0.5
    out = dense(keys)
    assert share(str(out)) == 1.0
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] / 4
    assert "lr: 0.005" in (out / "finetune.yaml").read_text()
    assert not no_network


def test_a_multi_vector_retriever_learns_its_pairs_and_pylate_loads_it(keys, no_network):
    out = colbert(keys)
    assert right(maxsim(out)) == 1.0
    assert not no_network


def test_a_multi_vector_retriever_learns_what_a_teacher_prefers(keys, tmp_path):
    """A teacher that wants each query's document to be the fifth after its own."""
    wanted = (torch.arange(12) + 5) % 12
    data = tmp_path / "taught.jsonl"
    rows = [
        {"query": query, "documents": DOCUMENTS, "scores": torch.eye(12)[best].tolist()}
        for query, best in zip(QUERIES, wanted, strict=True)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = colbert(keys, data=str(data), max_duration="80ba")
    assert (maxsim(out).argmax(1) == wanted).all()


def maxsim(path: Path) -> torch.Tensor:
    """[queries, documents]"""
    from pylate.models import ColBERT

    model = ColBERT(str(path), device="cpu")
    queries, documents = model.encode(QUERIES, is_query=True), model.encode(DOCUMENTS, is_query=False)
    scores = [[(torch.tensor(q) @ torch.tensor(d).T).amax(1).sum().item() for d in documents] for q in queries]
    return torch.tensor(scores)


@pytest.mark.parametrize("train", [dense, colbert])
def test_a_microbatch_changes_the_memory_and_not_the_training(train, keys, tmp_path):
    """To a relative 1e-3, which is what is left of float32 after four updates of Adam."""
    keys |= {"max_duration": "4ba"}
    whole, parts = train(keys), train(keys, out=str(tmp_path / "parts"), device_train_microbatch_size=5)
    losses = [
        [json.loads(line)["loss"] for line in (o / "metrics.jsonl").read_text().splitlines()] for o in (whole, parts)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][0] != losses[0][-1]


def test_a_loss_that_is_no_number_saves_nothing_and_the_next_try_can_begin(keys, tmp_path):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match=r"not finite at lr 1e30: nothing is saved; take a lower lr"):
        dense(keys, lr=1e30)
    assert sorted(tmp_path.iterdir()) == before
    assert dense(keys, max_duration="1ba").is_dir()


class Root(torch.nn.Module):
    """A loss of 0, whose gradient is no number."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, features, labels):
        return (self.model(features[0])["sentence_embedding"] * 0).sum().sqrt()


def test_weights_that_the_last_update_made_no_numbers_are_not_saved(keys):
    from sentence_transformers import SentenceTransformer

    model = load_retriever(keys["model"], SentenceTransformer)
    config = dense_retrieval.Config("dense_retrieval", **keys | {"max_duration": "1ba"})
    with pytest.raises(DataError, match=r"weights are not finite at lr 5e-3: nothing is saved"):
        fit(config, model, read_pairs(config.data, None), Root(model))
    assert not Path(keys["out"]).exists()


def test_a_training_that_ends_while_it_saves_leaves_nothing_behind(keys, tmp_path, monkeypatch):
    from sentence_transformers import SentenceTransformer

    def interrupted(_, path):
        Path(path, "half").write_text("")
        raise KeyboardInterrupt

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(SentenceTransformer, "save_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dense(keys, max_duration="1ba")
    assert sorted(tmp_path.iterdir()) == before


def test_hard_negatives_are_mined_or_given_and_not_both(keys, tmp_path, capsys):
    dense(keys, max_duration="2ba", mine_hard_negatives=MiningConfig(num_negatives=2))
    assert "12 of 12 rows have 2 mined negatives" in capsys.readouterr().out
    given = write_pairs(tmp_path / "given.jsonl", negative_1=DOCUMENTS[::-1], negative_2=DOCUMENTS[3:] + DOCUMENTS[:3])
    other = {"data": given, "out": str(tmp_path / "other"), "max_duration": "2ba"}
    out = dense(keys, **other)
    mined, with_given = ((Path(o) / "metrics.jsonl").read_text() for o in (keys["out"], out))
    assert json.loads(mined.splitlines()[0])["loss"] != json.loads(with_given.splitlines()[0])["loss"]
    with pytest.raises(ConfigurationError, match=r"given\.jsonl has negatives already"):
        dense(keys, **other | {"out": str(tmp_path / "third")}, mine_hard_negatives=MiningConfig(num_negatives=2))


def test_negatives_are_mined_as_the_yaml_says_as_far_as_there_are_documents(keys, tmp_path, capsys):
    shared = [f"{key}={value}" for key, value in (keys | {"max_duration": "1ba", "max_seq_length": 16}).items()]
    mining = "num_negatives: 3, range_min: 1, range_max: 100, sampling_strategy: random"
    out = finetune_retrieval(DENSE, [*shared, f"mine_hard_negatives={{{mining}, model: {keys['model']}}}"])
    assert "12 of 12 rows have 3 mined negatives" in capsys.readouterr().out
    assert "range_max: 100" in (out / "finetune.yaml").read_text()
    with pytest.raises(ConfigurationError, match=r"ask for 12 documents that are not a query's own; there are 11"):
        finetune_retrieval(DENSE, [*shared, f"out={tmp_path / 'other'}", "mine_hard_negatives.num_negatives=12"])


@pytest.mark.parametrize(
    ("mining", "message"),
    [
        ("num_negatives=x", "': Value 'x' of type 'str' could not be converted to Integer"),
        ("num_negative=2", "'; did you mean 'num_negatives'?"),
        ("num_negatives=-1", ": a number from 0 on is wanted, not -1"),
        ("num_negatives=0", ": 0, so none are mined, and yet other keys are given"),
        ("batch_size=0", ": a number from 1 on is wanted, not 0"),
        ("range_min=-1", ": a number from 0 on is wanted, not -1"),
        ("range_max=2", ": 3 at least, range_min and num_negatives together, not 2"),
        ("relative_margin=5", ": from 0 to below 1 is wanted, not 5.0"),
        ("sampling_strategy=best", ": top or random is wanted, not 'best'"),
    ],
)
def test_a_wrong_key_of_mining_is_refused(mining, message, keys):
    sound = [f"{key}={value}" for key, value in keys.items()]
    sound += ["mine_hard_negatives={num_negatives: 3, sampling_strategy: random}"]
    with pytest.raises(ConfigurationError) as error:
        finetune_retrieval(DENSE, [*sound, f"mine_hard_negatives.{mining}"])
    assert f"mine_hard_negatives.{mining.partition('=')[0]}{message}" in str(error.value)


def test_the_yaml_shows_every_key_of_mining_with_its_default():
    assert yaml.safe_load(Path(DENSE).read_text())["mine_hard_negatives"] == vars(MiningConfig())


def test_what_is_too_long_is_counted_or_refused(keys, capsys):
    with pytest.raises(DataError, match="12 of 12 queries are longer than max_seq_length allows; raise it, or take"):
        dense(keys, max_seq_length=4, long_documents="refuse")
    dense(keys, max_seq_length=4, max_duration="1ba")
    assert "12 of 12 documents are longer than max_seq_length allows: cut there" in capsys.readouterr().out


def other_encoder(keys: dict, path: Path, config: PretrainedConfig) -> dict:
    """The keys for an encoder of another type, whose tokenizer knows no limit."""
    AutoTokenizer.from_pretrained(keys["model"], model_max_length=int(1e30)).save_pretrained(path)
    AutoModel.from_config(config).save_pretrained(path)
    return keys | {"model": str(path)}


@pytest.mark.parametrize(
    "config",
    [
        T5Config(vocab_size=64, d_model=16, num_layers=1, num_heads=2, d_ff=16),
        XLNetConfig(vocab_size=64, d_model=16, n_layer=1, n_head=2, d_inner=16),
    ],
)
def test_an_encoder_of_relative_positions_takes_texts_of_any_length(config, keys, tmp_path):
    assert dense(other_encoder(keys, tmp_path / "model", config), max_seq_length=10_000, max_duration="1ba").is_dir()
    with pytest.raises(ConfigurationError, match="max_seq_length: 3 or more for this model, not 2"):
        dense(keys | {"model": str(tmp_path / "model"), "out": str(tmp_path / "other")}, max_seq_length=2)


def test_positions_that_roberta_counts_from_its_padding_on_are_no_tokens(keys, tmp_path):
    """Of 66 positions none is used up to the padding's, which is 1."""
    config = RobertaConfig(
        **{"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"intermediate_size": 16, "max_position_embeddings": 66, "pad_token_id": 1},
    )
    keys = other_encoder(keys, tmp_path / "model", config)
    with pytest.raises(ConfigurationError, match="max_seq_length: 3 to 64 for this model, not 65"):
        dense(keys, max_seq_length=65)
    with pytest.raises(ConfigurationError, match="document_length: 4 to 64 for this model, not 65"):
        colbert(keys, document_length=65)


def test_a_colbert_is_trained_on_at_the_length_that_it_was_trained_at(keys, tmp_path):
    """PyLate saves as its encoder's limit the length of the texts it saw last, less the token that marks them."""
    first = colbert(keys, max_duration="1ba")
    assert colbert(keys, model=str(first), out=str(tmp_path / "second"), max_duration="1ba").is_dir()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"question": "a", "answer": "b"}\n',
            r"no column 'query'; there are question, answer\. Wanted are query, positive",
        ),
        ('{"query": "a", "positive": "b"}\n{"query": "c", "positive": null}\n', "row 2: column 'positive' has no text"),
        ('{"query": " ", "positive": "b"}\n', "row 1: column 'query' is empty"),
        ('{"query": 7, "positive": "b"}\n', "row 1: column 'query' is not text: 7"),
        ('{"query": "a", "documents": ["b", "c"], "scores": [1.0]}\n', "row 1 has 2 documents and 1 scores"),
        ('{"query": "a"\n', "cannot be read"),
        ("", "the file is empty"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_named(content, message, keys, tmp_path):
    data = tmp_path / "bad.jsonl"
    data.write_text(content)
    with pytest.raises(DataError, match=message) as raised:
        colbert(keys, data=str(data))
    assert str(raised.value).startswith(str(data))
    assert "\n" not in str(raised.value)


def test_texts_of_a_csv_are_taken_to_the_letter(keys, tmp_path):
    """pandas, by which `datasets` reads CSV, takes NA for missing and 007 for a number."""
    data = tmp_path / "pairs.csv"
    data.write_text("query,positive\nNA,007\n")
    assert read_pairs(str(data), None)[:] == {"query": ["NA"], "positive": ["007"]}
    data.write_text("query,positive\n")
    with pytest.raises(DataError, match="there is not one row in it"):
        read_pairs(str(data), None)


def test_a_model_with_too_few_embeddings_for_its_tokenizer_is_refused(tiny_encoder, keys, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_encoder, model)
    save_encoder(model, vocab_size=20, hidden_size=32, max_position_embeddings=64)
    with pytest.raises(
        DataError, match=r"has ids up to \d+, but the model has a vocabulary of 20; give the model's own tokenizer"
    ):
        dense(keys, model=str(model))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model": "tests"}, "tests: expected a model directory with a config.json"),
        ({"data": "nowhere.jsonl"}, r"nowhere\.jsonl: no such file"),
        ({"data": "README.md"}, r"README\.md: a file ending in \.jsonl"),
        ({"out": "tests"}, "out: tests is there already"),
        ({"max_duration": "3"}, "max_duration: epochs or updates are wanted, such as 1ep or 500ba, not '3'"),
        ({"seed": -1}, "seed: a number from 0 to 4294967295 is wanted, not -1"),
        ({"t_warmup": "5%"}, r"t_warmup: a part of the whole is wanted, such as 0\.05dur, not '5%'"),
        ({"global_train_batch_size": 1}, "the other rows are the negatives"),
        ({"max_seq_length": 65}, "max_seq_length: 3 to 64 for this model, not 65"),
    ],
)
def test_a_wrong_key_is_refused(more, message, keys):
    with pytest.raises((ConfigurationError, DataError), match=message):
        dense(keys, **more)


def test_the_files_in_yamls_are_trained_from(keys, tmp_path):
    for task in ("dense_retrieval", "multi_vector"):
        out = tmp_path / task
        short = [f"model={keys['model']}", f"out={out}", f"data={keys['data']}", "max_duration=1ba"]
        lengths = ["max_seq_length=16"] if task == "dense_retrieval" else ["query_length=8", "document_length=8"]
        assert finetune_retrieval(f"yamls/finetune/{task}.yaml", [*short, *lengths]) == out
        assert (out / "modules.json").is_file()


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
