"""Tiny encoders of four kinds with one byte-level tokenizer, and tasks that a word decides."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from rotary_foundry.interop.huggingface import export_model
from rotary_foundry.models.family import find_family
from tests.data_prep.labelled.clue_samples import write_clue
from tests.data_prep.labelled.tokenizers import WORDS, write_byte_tokenizer, write_chinese_tokenizer

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
CONFIGS = {
    "modernbert": (transformers.ModernBertConfig, {}),
    "bert": (transformers.BertConfig, {}),
    "roberta": (transformers.RobertaConfig, {"max_position_embeddings": 130}),
    "deberta": (transformers.DebertaV2Config, {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "convbert": (transformers.ConvBertConfig, {"embedding_size": 32}),
    "fnet": (transformers.FNetConfig, {}),
}


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory) -> Path:
    return write_byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def make_model(tmp_path_factory, tokenizer_dir) -> Callable[..., Path]:
    """Makes a directory with a masked language model and the tokenizer; or, given `head`, a model of that class."""

    def make(kind: str = "modernbert", head: str = "MaskedLM", **settings) -> Path:
        path = tmp_path_factory.mktemp(kind)
        of_kind, more = CONFIGS[kind]
        numbers = {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
        config = of_kind(**({"vocab_size": 400, "max_position_embeddings": 128} | SIZES | more | numbers | settings))
        transformers.set_seed(1)
        getattr(transformers, f"AutoModelFor{head}").from_config(config).save_pretrained(path)
        transformers.AutoTokenizer.from_pretrained(tokenizer_dir).save_pretrained(path)
        return path

    return make


@pytest.fixture(scope="session")
def model(make_model) -> Path:
    return make_model()


@pytest.fixture(scope="session")
def chinese_tokenizer_dir(tmp_path_factory) -> Path:
    return write_chinese_tokenizer(tmp_path_factory.mktemp("chinese_tokenizer"))


@pytest.fixture(scope="session")
def roformer(tmp_path_factory, chinese_tokenizer_dir) -> Path:
    """An export of a RoFormerV2 of two layers at its first values."""
    family = find_family("roformer_v2")
    vocabulary = len(json.loads((chinese_tokenizer_dir / "tokenizer.json").read_text())["model"]["vocab"])
    shape = family.Shape(
        vocab_size=vocabulary,
        **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"norm_eps": 1e-12, "init_depth_exponent": 0.5},
    )
    state = {name: family.initial_value(name, shape, 1) for name in shape.parameter_shapes()}
    path = tmp_path_factory.mktemp("roformer") / "export"
    export_model(state, family, shape, {"rope_theta": 1e4, "residual_scale": 1.0}, chinese_tokenizer_dir, 512, path)
    return path


@pytest.fixture(scope="session")
def clue(tmp_path_factory) -> Path:
    """A folder with the samples of every task of CLUE, of whose lines every file has eight copies."""
    return write_clue(tmp_path_factory.mktemp("clue"), copies=8)


def opinions(count: int, seed: int) -> list[dict]:
    """Sentences with a good or a bad word in them, which is their label; `score` is how good, in numbers."""
    rows = []
    for index in range(count):
        words = random.Random(f"{seed} {index}").choices(WORDS, k=6)
        label = ("bad", "good")[index % 2]
        words.insert(index % 5, label)
        rows.append({"text": " ".join(words), "label": label, "score": float(index % 2 * 4 + 1)})
    return rows


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def opinion_files(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("opinions")
    return (
        write_jsonl(folder / "train.jsonl", opinions(96, 1)),
        write_jsonl(folder / "validation.jsonl", opinions(32, 2)),
    )


YAML = """
model: {model}
out: {out}
search: {{lr: [1e-2], weight_decay: [1e-6], max_duration: [3ep], global_train_batch_size: [16]}}
seeds: [1, 2]
tasks:
  mine:
    data: {{train: {train}, validation: [{validation}]}}
"""


@pytest.fixture
def write_yaml(tmp_path, model, opinion_files) -> Callable[..., Path]:
    """Writes the YAML of one task, `mine`, over these files."""

    def write(train: Path = opinion_files[0], validation: Path = opinion_files[1], model: Path = model) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(YAML.format(model=model, out=tmp_path / "out", train=train, validation=validation))
        return path

    return write
