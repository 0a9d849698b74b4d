"""Labels, tokenizers and lengths: what a job is given, and what is refused before one starts."""

import json
import re
import shutil
from pathlib import Path

import datasets
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rotary_foundry.finetuning.example_encoding import NO_LABEL, prepare
from rotary_foundry.finetuning.finetune_config import load_finetune_config
from rotary_foundry.utils.errors import ConfigurationError, DataError
from tests.data_prep.labelled.tokenizers import SPECIAL
from tests.finetuning.conftest import opinions, write_jsonl
from tests.permuted import permuted


@pytest.fixture
def prepared(write_yaml, tmp_path):
    """Prepares the task `mine` over these rows, or files."""

    def run(*overrides: str, train=None, validation=None, **files) -> dict:
        for name, rows in (("train", train), ("validation", validation)):
            if isinstance(rows, Path):
                files[name] = rows
            elif rows is not None:
                files[name] = write_jsonl(tmp_path / f"{name}.jsonl", rows)
        config = load_finetune_config(write_yaml(**files), overrides)
        return prepare(config, "mine", tmp_path / "data")

    return run


def refusal(prepared, *overrides: str, **given) -> str:
    with pytest.raises((DataError, ConfigurationError)) as error:
        prepared(*overrides, **given)
    assert "\n" not in str(error.value)
    return str(error.value)


def row(label, text: str = "a film") -> dict:
    return {"text": text, "label": label}


def test_labels_are_the_training_data_s_in_order(prepared, tmp_path):
    data = prepared(train=[row(10), row(9.0), row(10)], validation=[row(9)])
    assert data["labels"] == ["9", "10"]
    assert datasets.load_from_disk(tmp_path / "data/train")["labels"] == [1, 0, 1]
    assert data["examples"] == {"train": 3, "validation": 1}


def test_labels_that_only_look_like_numbers_are_names(prepared):
    labels = ["10", "9", "²", "1" * 5000]  # Python makes no number of the last two
    assert prepared(train=list(map(row, labels)), validation=[row("9")])["labels"] == ["9", "10", "1" * 5000, "²"]


def test_declared_labels_may_stand_as_their_numbers_as_in_glue(prepared, tmp_path):
    prepared(
        "tasks.mine.labels=[entailment,not_entailment]", train=[row(0), row("not_entailment")], validation=[row(1)]
    )
    assert datasets.load_from_disk(tmp_path / "data/train")["labels"] == [0, 1]


def test_a_label_that_only_the_validation_has_is_refused(prepared):
    said = refusal(prepared, validation=[row("good"), row("neutral")])
    assert "validation.jsonl:2: label 'neutral' is not among those of the training data (bad, good)" in said


@pytest.mark.parametrize(
    ("label", "complaint"),
    [
        (None, "train.jsonl:2: the label is empty"),
        ("", "train.jsonl:2: the label is empty"),
        (float("nan"), "train.jsonl:2: the label is NaN"),
        ("nan", "train.jsonl:2: the label is NaN"),
        (2.5, "train.jsonl:2: expected a class, got the number 2.5; to learn numbers, make the task a regression"),
        (
            [1, 2],
            "train.jsonl:2: the label is a list; expected one label per example (several labels per text are not",
        ),
    ],
)
def test_a_label_that_is_none_is_refused(prepared, label, complaint):
    assert complaint in refusal(prepared, train=[row("good"), row(label)])


@pytest.mark.parametrize("label", ["good", float("nan"), None, "inf", 10**400, [1]])
def test_a_regression_wants_numbers(prepared, label):
    assert "train.jsonl:2: " in refusal(prepared, "tasks.mine.type=regression", train=[row(1.5), row(label)])


def test_a_task_of_one_class_is_refused(prepared):
    said = refusal(prepared, train=[row("good"), row("good")])
    assert re.fullmatch(
        r"tasks.mine: all training examples, from .*train.jsonl:1 on, have the label 'good'; there is nothing to learn",
        said,
    )


@pytest.mark.parametrize(
    ("overrides", "label", "undefined"),
    [
        (["tasks.mine.metrics=[accuracy,mcc,f1]"], "bad", ["mcc", "f1"]),
        (["tasks.mine.metrics=[f1,mcc]"], "good", ["mcc"]),  # of the second label only, there is an F1
        (["tasks.mine.type=regression", "tasks.mine.metrics=[pearson,spearman]"], 3.0, ["pearson", "spearman"]),
        (["tasks.mine.type=regression"], None, []),
    ],
)
def test_a_metric_that_constant_labels_leave_undefined_is_said(prepared, overrides, label, undefined):
    labels = (1.0, 3.0) if "regression" in overrides[0] else ("good", "bad")
    validation = [row(one if label is None else label) for one in labels]
    said = prepared(*overrides, train=[row(one) for one in labels], validation=validation)["undefined"]
    assert [sentence.split()[0] for sentence in said] == undefined
    assert all(f"validation.jsonl:1 on have the label {label!r}; validate on" in sentence for sentence in said)


def test_f1_of_three_classes_is_refused(prepared):
    said = refusal(prepared, "tasks.mine.metrics=[f1]", train=[row("a"), row("b"), row("c")])
    assert "f1 needs two labels, got 3; use macro_f1" in said


def test_a_text_that_is_none_is_refused(prepared):
    assert "train.jsonl:1: column 'text': expected text, got None" in refusal(
        prepared, train=[row("good", None), row("bad")]
    )


def test_the_head_that_a_model_comes_with_keeps_its_labels(prepared, make_model):
    named = {"id2label": {0: "good", 1: "bad", 2: "neutral"}, "label2id": {"good": 0, "bad": 1, "neutral": 2}}
    model = make_model("bert", "SequenceClassification", **named)
    assert prepared(model=model)["labels"] == ["good", "bad", "neutral"]
    said = refusal(prepared, model=model, train=[row("good"), row("mixed")])
    assert "train.jsonl:2: label 'mixed' is not among those of the model's head (good, bad, neutral)" in said


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architectures", 3),
        ("architectures", [["BertForSequenceClassification"]]),
        ("architectures", {"BertForSequenceClassification": None}),
        ("id2label", {"0": "good", "1": {"": None}, "2": 3}),
    ],
)
def test_a_config_whose_names_are_no_text_is_refused_by_key(prepared, make_model, key, value):
    model = make_model("bert", "SequenceClassification", num_labels=3)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {key: value}))
    assert f"{model}: config.json: {key}: expected names, got " in refusal(prepared, model=model)


def test_a_head_of_another_size_is_refused(prepared, make_model):
    model = make_model("bert", "SequenceClassification", num_labels=3)
    assert refusal(prepared, model=model).endswith("has 2 labels (bad, good), the model's head 3")
    said = refusal(prepared, "tasks.mine.type=regression", "tasks.mine.data.label=score", model=model)
    assert "a regression needs a head with one number, but the model's has 3 labels" in said


def test_a_model_without_a_tokenizer_is_refused(prepared, make_model, tokenizer_dir, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(make_model(), bare, ignore=shutil.ignore_patterns("*token*"))
    assert f"{bare}: transformers cannot open this tokenizer" in refusal(prepared, model=bare)
    assert prepared(f"tokenizer={tokenizer_dir}", model=bare)["labels"] == ["bad", "good"]


def test_a_tokenizer_of_another_model_is_refused(prepared, make_model, model, tmp_path):
    assert "a vocabulary of 300; give the model's own tokenizer" in refusal(prepared, model=make_model(vocab_size=300))
    said = refusal(prepared, model=make_model(pad_token_id=7))
    assert "the tokenizer pads with 0" in said and "this model's tokenizer" in said
    said = refusal(prepared, f"tokenizer={permuted(model, tmp_path / 'other')}")
    assert "other: not the model's tokenizer: id 70 is 'd', and 'b' to the model; leave out tokenizer=…" in said


def test_long_documents_are_cut_and_counted_or_refused(prepared, tmp_path):
    rows = [row("good"), row("bad", "a film " * 40), row("bad", "a film " * 40)]
    data = prepared("max_seq_len=16", train=rows)
    assert data["truncated"] == {"train": 2, "validation": 0}
    assert [len(ids) for ids in datasets.load_from_disk(tmp_path / "data/train")["input_ids"]] == [4, 16, 16]
    said = refusal(prepared, "max_seq_len=16", "long_documents=refuse", train=rows)
    assert "train.jsonl:2: over the 16 tokens that a document may have here, as are 1 more of train" in said


def test_a_length_over_the_model_s_is_refused(prepared, make_model):
    assert refusal(prepared, "max_seq_len=129").startswith("max_seq_len: expected at most 128, ")
    data = prepared(model=make_model("roberta", max_position_embeddings=65))
    assert data["max_seq_len"] == 64  # its positions begin after that of the padding


def test_the_first_token_of_a_word_has_its_label(prepared, tmp_path, model):
    sentence = "Anna B-PER\nliked O\nNew B-LOC\nYorkville I-LOC\n. O\n"
    train, validation = tmp_path / "train.conll", tmp_path / "validation.conll"
    train.write_text(sentence)
    validation.write_text(sentence)
    prepared("tasks.mine.type=token", train=train, validation=validation)
    example = datasets.load_from_disk(tmp_path / "data/train")[0]
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert tokenizer.decode(example["input_ids"]) == "[CLS]Anna liked New Yorkville .[SEP]"
    tokens = tokenizer.convert_ids_to_tokens(example["input_ids"])
    starts = [token for token, label in zip(tokens, example["labels"], strict=True) if label != -100]
    assert len(tokens) > 7 and len(starts) == 5
    words = ["Anna", "liked", "New", "Yorkville", "."]
    assert all(word.startswith(start.lstrip("Ġ")) for word, start in zip(words, starts, strict=True))
    labels = ["B-LOC", "B-PER", "I-LOC", "O"]
    assert [labels[number] for number in example["labels"] if number != -100] == ["B-PER", "O", "B-LOC", "I-LOC", "O"]


def test_words_and_labels_are_of_one_number(prepared):
    said = refusal(prepared, "tasks.mine.type=token", train=[{"text": ["a", "b"], "label": ["O", "B-X", "O"]}])
    assert "train.jsonl:1: type: token needs a list of words and a list of equally many labels" in said


def test_a_change_of_a_label_changes_the_digest(prepared):
    rows = opinions(8, 1)
    before = prepared(train=rows)["digest"]
    assert prepared(train=rows)["digest"] == before
    rows[3]["label"] = rows[2]["label"]
    assert prepared(train=rows)["digest"] != before


def test_a_model_directory_with_a_broken_config_is_named(prepared, make_model):
    model = make_model()
    (model / "config.json").write_text(json.dumps({"model_type": "no such"}))
    assert f"{model}: transformers cannot load a model" in refusal(prepared, model=model)


def gemma_like() -> Tokenizer:
    """As Gemma's: blanks become ▁ in the normalizer, and nothing cuts a text into words."""
    pieces = ["▁", *"abdeginoklmrstuvwyAB", "an", "na", "▁w", "as", "▁was", "▁in", "er", "in", "er", "lin"]
    vocabulary = {piece: id_ for id_, piece in enumerate(dict.fromkeys([*SPECIAL.values(), *pieces]))}
    merges = [("a", "n"), ("n", "a"), ("▁", "w"), ("a", "s"), ("▁w", "as"), ("i", "n"), ("▁", "in"), ("e", "r")]
    tokenizer = Tokenizer(models.BPE(vocabulary, [*merges, ("l", "in")], unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return tokenizer


def unigram() -> Tokenizer:
    pieces = ["▁Ann", "a", "▁was", "▁in", "▁B", "er", "lin", "▁", *"abdeginklmnorstuvwyAB"]
    scored = [(piece, -1.0 - id_ / 10) for id_, piece in enumerate(dict.fromkeys([*SPECIAL.values(), *pieces]))]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def wordpiece() -> Tokenizer:
    pieces = ["Ann", "##a", "was", "in", "Ber", "##lin", *"abdeginklmnorstuvwyAB", *(f"##{one}" for one in "aeilnr")]
    vocabulary = {piece: id_ for id_, piece in enumerate(dict.fromkeys([*SPECIAL.values(), *pieces]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: id_ for id_, piece in enumerate([*SPECIAL.values(), *alphabet, "Ġw", "as", "Ġwas"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ġ", "w"), ("a", "s"), ("Ġw", "as")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


@pytest.mark.parametrize("make", [gemma_like, unigram, wordpiece, byte_level])
def test_words_of_a_sentence_have_the_tokens_of_the_running_text_whatever_the_tokenizer(
    prepared, make_model, tmp_path, make
):
    """AnswerDotAI/ModernBERT#149, huggingface/transformers#30416: a missing blank before words cost a point of F1."""
    words, labels = ["Anna", "was", "in", "Berlin"], ["B-PER", "O", "O", "B-LOC"]
    model = tmp_path / "model"
    shutil.copytree(make_model("bert", pad_token_id=0), model)
    PreTrainedTokenizerFast(tokenizer_object=make(), model_max_length=128, **SPECIAL).save_pretrained(model)
    file = tmp_path / "words.conll"
    file.write_text("".join(f"{word} {label}\n" for word, label in zip(words, labels, strict=True)) + "\n")
    prepared("tasks.mine.type=token", train=file, validation=file, model=model)
    (row,) = datasets.load_from_disk(str(tmp_path / "data/train"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert row["input_ids"] == tokenizer(" ".join(words))["input_ids"]
    assert tokenizer.unk_token_id not in row["input_ids"]
    names = sorted(set(labels))
    assert [names[number] for number in row["labels"] if number != NO_LABEL] == labels
    first = [token for token, number in zip(row["input_ids"], row["labels"], strict=True) if number != NO_LABEL]
    assert [tokenizer.convert_ids_to_tokens(token).lstrip("▁Ġ")[:1] for token in first] == ["A", "w", "i", "B"]
