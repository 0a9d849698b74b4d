"""Tokenizers as transformers 4 and 5 save them, through every door, by what tokenizer.json says.

The forms are those of 4.57 and of 5.24; users met them as "Tokenizer class TokenizersBackend does not exist" and as
"'list' object has no attribute 'keys'" when one version read what the other had saved (streaming#979).
"""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import ModernBertConfig, ModernBertForMaskedLM

from rotary_foundry.data.fast_tokenizer import open_fast
from rotary_foundry.data.special_tokens import special_ids
from rotary_foundry.data_prep.encoding import CorpusTokenizer
from rotary_foundry.data_prep.tokenizer import open_brought, save_copy
from rotary_foundry.evaluation.models import open_model
from rotary_foundry.finetuning.example_encoding import load_tokenizer
from rotary_foundry.interop.importing import import_model
from rotary_foundry.utils.errors import DataError

SPECIAL = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "cls", "sep", "pad", "mask")}
WORDS = ["of", "Of", "the", "token", "<extra>"]
IDS = {role: id_ for id_, role in enumerate(SPECIAL)}


def with_options(token: str) -> dict:
    options = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {"content": token, **options}


SAVED = {  # tokenizer_config.json and, if there is one, special_tokens_map.json
    "by 4": (
        {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<extra>"], **SPECIAL}
        | {"extra_special_tokens": {}, "model_max_length": 1000000000000000019884624838656}
        | {"added_tokens_decoder": {str(IDS[role]): with_options(SPECIAL[role]) | {"special": True} for role in IDS}},
        {role: with_options(token) for role, token in SPECIAL.items()} | {"additional_special_tokens": ["<extra>"]},
    ),
    "by 4, long ago": (
        {"tokenizer_class": "PreTrainedTokenizerFast"},
        {role: with_options(token) for role, token in SPECIAL.items()} | {"additional_special_tokens": ["<extra>"]},
    ),
    "by 5": (
        {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "is_local": False, **SPECIAL}
        | {"extra_special_tokens": ["<extra>"], "model_max_length": 1000000000000000019884624838656},
        None,
    ),
    "of a class that nobody knows": ({"tokenizer_class": "OurBertTokenizerFast", **SPECIAL}, None),
}


def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*SPECIAL.values(), *WORDS])}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens([*SPECIAL.values(), "<extra>"])
    made.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return made


def saved(path: Path, made: Tokenizer, config: dict, special_tokens_map: dict | None = None) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    made.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    if special_tokens_map is not None:
        (path / "special_tokens_map.json").write_text(json.dumps(special_tokens_map))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"pad_token_id": 3, "cls_token_id": 1, "bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2}
    ModernBertForMaskedLM(ModernBertConfig(vocab_size=64, local_attention=16, **tiny, **ids)).save_pretrained(path)
    return path


@pytest.mark.parametrize("form", SAVED)
def test_a_tokenizer_that_transformers_4_or_5_saved_is_taken_by_data_prep(form, tmp_path):
    path = saved(tmp_path / "theirs", tokenizer(), *SAVED[form])
    brought = open_brought(path)
    assert {role: brought.roles[role] for role in SPECIAL} == SPECIAL
    assert brought.changes == []
    save_copy(path, tmp_path / "ours", max_length=64)
    ours = CorpusTokenizer(tmp_path / "ours")
    assert special_ids(tmp_path / "ours", ours.tokenizer) == IDS
    assert ours.encode(["Of the token"])[0].tolist() == [6, 7, 8]


@pytest.mark.parametrize("form", SAVED)
def test_a_tokenizer_that_transformers_4_or_5_saved_is_taken_by_import_evaluate_and_finetune(form, model, tmp_path):
    saved(model, tokenizer(), *SAVED[form])
    try:
        import_model(model, tmp_path / "imported")
        for path in (model, tmp_path / "imported"):
            assert open_model(path).encode("Of the token").ids.tolist() == [6, 7, 8]
            opened = load_tokenizer(str(path), str(path), ModernBertConfig(vocab_size=64, pad_token_id=3))
            assert opened("Of the", "token")["input_ids"] == [1, 6, 7, 2, 8, 2]
            assert [getattr(opened, f"{role}_id") for role in IDS] == [*IDS.values()]
    finally:
        (model / "special_tokens_map.json").unlink(missing_ok=True)


def test_a_role_that_is_nowhere_is_named(model, tmp_path):
    config = {"tokenizer_class": "TokenizersBackend"} | {role: SPECIAL[role] for role in SPECIAL if role != "sep_token"}
    saved(model, tokenizer(), config)
    with pytest.raises(DataError, match=r"the tokenizer has no sep_token"):
        import_model(model, tmp_path / "imported")


def test_what_a_class_of_transformers_5_builds_anew_does_not_replace_tokenizer_json(tmp_path):
    """BertTokenizer is lower-cased by default, and the unknown token of XLMRobertaTokenizer is always the third."""
    cased = tokenizer()
    cased.model = models.WordPiece(cased.get_vocab(), unk_token="[UNK]")
    cased.normalizer = normalizers.NFC()
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁of", -1.0), ("▁", -2.0), ("Of", -3.0)]
    unigram = Tokenizer(models.Unigram(pieces, unk_id=0))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.add_special_tokens(["<unk>", "<s>", "</s>", AddedToken("<pad>"), AddedToken("<mask>", lstrip=True)])
    unigram.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    for made, name in ((cased, "BertTokenizer"), (unigram, "XLMRobertaTokenizerFast")):
        opened = open_fast(saved(tmp_path / name, made, {"tokenizer_class": name}))
        for text in ("Of the", "of Of xyz"):
            assert opened(text)["input_ids"] == made.encode(text).ids, (name, text)
        assert opened.mask_token is not None  # the class has given the roles


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model_max_length": "512"}, "model_max_length: expected a number of tokens, got '512'"),
        ({"model_max_length": [512]}, r"model_max_length: expected a number of tokens, got \[512\]"),
        ({"model_max_length": float("nan")}, "model_max_length: expected a number of tokens, got nan"),
        ({"chat_template": 3}, "chat_template: expected Jinja, got 3"),
        ({"chat_template": {"default": None}}, "chat_template: expected Jinja, got {'default': None}"),
    ],
)
@pytest.mark.parametrize("open_", [open_brought, open_fast])
def test_a_setting_that_transformers_takes_as_it_is_must_be_of_the_right_type(open_, settings, says, tmp_path):
    saved(tmp_path, tokenizer(), {"tokenizer_class": "PreTrainedTokenizerFast", **SPECIAL, **settings})
    with pytest.raises(DataError, match=rf"tokenizer_config\.json: {says}"):
        open_(tmp_path)


def panicking_model(content: dict) -> None:
    vocabulary = content["model"]["vocab"] | {"o": 20, "f": 21}
    content["model"] = {"type": "BPE", "continuing_subword_prefix": "long", "merges": [["o", "f"]], "vocab": vocabulary}


def panicking_processor(content: dict) -> None:
    content["post_processor"]["special_tokens"].pop("[SEP]")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (panicking_model, "cannot be read as a tokenizer"),
        (panicking_processor, "post_processor: expected one that puts"),
    ],
)
@pytest.mark.parametrize("open_", [open_brought, open_fast, CorpusTokenizer])
def test_a_tokenizer_at_which_the_library_panics_is_refused(open_, change, says, tmp_path):
    made = tokenizer()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    saved(tmp_path, made, {"tokenizer_class": "PreTrainedTokenizerFast"})
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"tokenizer\.json: {says}"):
        open_(tmp_path)


@pytest.mark.parametrize("open_", [open_brought, open_fast, CorpusTokenizer])
def test_a_tokenizer_that_could_not_be_saved_again_is_refused(open_, tmp_path):
    saved(tmp_path, tokenizer(), {"tokenizer_class": "PreTrainedTokenizerFast"})
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"]["of"] = content["model"]["vocab"]["the"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"tokenizer\.json: model\.vocab: two tokens have the same id"):
        open_(tmp_path)


@pytest.mark.parametrize("open_", [open_brought, open_fast, CorpusTokenizer])
def test_a_tokenizer_that_draws_at_random_is_refused(open_, tmp_path):
    made = Tokenizer(models.BPE({word: i for i, word in enumerate("ab")} | {"ab": 2}, [("a", "b")], dropout=0.5))
    saved(tmp_path, made, {"tokenizer_class": "PreTrainedTokenizerFast"})
    with pytest.raises(DataError, match=r"tokenizer\.json: model\.dropout is 0\.5, .* each time; set it to null"):
        open_(tmp_path)


def test_the_sampling_of_a_unigram_model_is_not_saved_so_what_is_opened_does_not_draw(tmp_path):
    pieces = [("<unk>", 0.0), ("a", -1.0), ("b", -1.0), ("ab", -1.5)]
    made = Tokenizer(models.Unigram(pieces, unk_id=0, alpha=0.1, nbest_size=4))
    text = "ab" * 40
    assert len({tuple(made.encode(text).ids) for _ in range(20)}) > 1
    opened = open_fast(saved(tmp_path, made, {"tokenizer_class": "PreTrainedTokenizerFast"}))
    assert len({tuple(opened(text)["input_ids"]) for _ in range(20)}) == 1
