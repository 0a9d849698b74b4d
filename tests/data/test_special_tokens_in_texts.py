"""Special tokens that a text spells stay text, whatever kind of tokenizer has them.

XLM-R's tokenizer has them as pieces of score 0, which a Unigram model prefers to any others, so a text about "<s>" had
documents begin in it. `encode_special_tokens` of the tokenizers library only leaves them out of its search.
"""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import ModernBertConfig, ModernBertForMaskedLM, PreTrainedTokenizerFast

from rotary_foundry.data.fast_tokenizer import special_tokens_as_text
from rotary_foundry.data.special_tokens import UNWRITTEN, as_text
from rotary_foundry.data_prep.conversations.plain_contents import MARK, PlainContents
from rotary_foundry.data_prep.encoding import CorpusTokenizer
from rotary_foundry.data_prep.labelled.span_encoding import PartsTokenizer
from rotary_foundry.data_prep.tokenizer import save_copy
from rotary_foundry.evaluation.models import open_model
from rotary_foundry.evaluation.retrieval_models import open_retriever
from rotary_foundry.interop import predict

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
WORDS = ["▁strike", "▁the", "▁old", "▁price", "▁is", "▁text"]
LETTERS = "abcdefghijklmnopqrstuvwxyz<>/"
TEXTS = ["the old price is <s>strike</s>", "the text <mask> is the <pad>", "<unk>", "</s>text", "the price", "é<s>ü"]
ROLES = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}


def unigram() -> Tokenizer:
    pieces = [(token, 0.0) for token in SPECIAL] + [(word, -3.0) for word in WORDS] + [("▁", -5.0)]
    made = Tokenizer(models.Unigram([*pieces, *((letter, -6.0) for letter in LETTERS), ("<mask>", 0.0)], unk_id=3))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return made


def with_merge() -> Tokenizer:
    """A BPE whose corpus spelled <s> so often that a merge makes it."""
    words = [*SPECIAL, *LETTERS, "é", "ü", " ", "<s", "s>", "th", "the", "<mask>"]
    merges = [("<", "s"), ("<s", ">"), ("t", "h"), ("th", "e")]
    return Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges, unk_token="<unk>"))


def words_of(kind: type, **options) -> Tokenizer:
    words = [*SPECIAL, *(word[1:] for word in WORDS), *LETTERS, "<mask>"]
    made = Tokenizer(kind({word: i for i, word in enumerate(words)}, unk_token="<unk>", **options))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


KINDS = {
    "Unigram": unigram,
    "BPE": with_merge,
    "WordLevel": lambda: words_of(models.WordLevel),
    "WordPiece": lambda: words_of(models.WordPiece, continuing_subword_prefix=""),
}


def finished(made: Tokenizer, marked: bool = True) -> Tokenizer:
    """Add the special tokens; if they are not `marked`, only their roles say that they are special."""
    mask = AddedToken("<mask>", lstrip=True, special=marked, normalized=False)
    added = [*(AddedToken(token, special=marked, normalized=False) for token in SPECIAL), mask]
    made.add_tokens([*added, AddedToken("[extra]", normalized=False)])
    made.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return made


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_gives_no_special_token_but_the_unknown_one(kind, marked):
    made = finished(KINDS[kind](), marked)
    text, roles = as_text(made, ROLES.values()), set(ROLES.values()) - {"<unk>"}
    special = {made.token_to_id(token) for token in roles}
    assert special & set(made.encode(TEXTS[0], add_special_tokens=False).ids)
    for written in TEXTS:
        ids = text.encode(written, add_special_tokens=False).ids
        assert special.isdisjoint(ids), (written, ids)
        assert len(text.encode(written).ids) == len(ids) + 2  # its frame is still there
    assert text.encode("the price").ids == made.encode("the price").ids
    assert text.encode("[extra]").ids[1] == made.token_to_id("[extra]")
    assert made.encode("<s>", add_special_tokens=False).ids == [0]  # the tokenizer itself is as it was


def test_letters_of_a_spelled_token_are_kept_where_the_vocabulary_has_them():
    text = as_text(finished(unigram()))
    assert text.encode("<s>strike</s>", add_special_tokens=False).tokens == [*"▁<s>strike</s>"]


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_of_another_library_gives_the_same_and_is_saved_as_it_was(kind, marked, tmp_path):
    fast = PreTrainedTokenizerFast(tokenizer_object=finished(KINDS[kind](), marked), **ROLES)
    before, text = fast.backend_tokenizer.to_str(), as_text(fast.backend_tokenizer, fast.all_special_tokens)
    undo = special_tokens_as_text(fast)
    for written in TEXTS:
        assert fast(written)["input_ids"] == text.encode(written).ids
        assert fast(written, TEXTS[0])["input_ids"] == text.encode(written, TEXTS[0]).ids
    assert fast.convert_tokens_to_ids(list(ROLES.values())) == [0, 2, 1, 3, fast.mask_token_id]
    undo()
    if not marked:
        before = before.replace('"special":false', '"special":true', len(ROLES))
    assert (fast.backend_tokenizer.to_str(), fast.split_special_tokens) == (before, False)
    assert fast("<s>")["input_ids"] == [0, 0, 2]


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_special_tokens_of_a_chat_template_are_special(kind, marked):
    fast = PreTrainedTokenizerFast(tokenizer_object=finished(KINDS[kind](), marked), **ROLES)
    template = "{% for message in messages %}<s>{{ message['content'] | trim }}</s>{% endfor %}"
    contents = PlainContents(fast.backend_tokenizer, fast.all_special_tokens)

    def encoded(*texts: str) -> list[int]:
        messages = contents.hide([{"role": "user", "content": text} for text in texts])
        rendered = fast.apply_chat_template(messages, chat_template=template, tokenize=False)
        return contents.encode(contents.named(rendered)).ids

    turns = [{"role": "user", "content": text} for text in ("the price", "old [extra]", "text")]
    assert encoded(*(turn["content"] for turn in turns)) == (
        fast.apply_chat_template(turns, chat_template=template, return_dict=False)
    )
    forged = [f"{MARK}abc{MARK}", f"{MARK}{b'</s>'.hex()}{MARK}", f"{UNWRITTEN}</s>"]
    for texts in (TEXTS, forged):
        ids = encoded(*texts)
        assert [ids.count(special) for special in (0, 1, 2, fast.mask_token_id)] == [len(texts), 0, len(texts), 0]
    ids = encoded(*TEXTS)
    text = as_text(fast.backend_tokenizer, fast.all_special_tokens)
    first = text.encode(TEXTS[0], add_special_tokens=False).ids
    assert ids[1 : len(first) + 1] == first


@pytest.fixture
def directory(tmp_path) -> Path:
    fast = PreTrainedTokenizerFast(tokenizer_object=finished(unigram()), model_max_length=64, **ROLES)
    fast.save_pretrained(tmp_path / "model")
    tiny = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"pad_token_id": 1, "cls_token_id": 0, "bos_token_id": 0, "sep_token_id": 2, "eos_token_id": 2}
    config = ModernBertConfig(vocab_size=64, local_attention=16, **tiny, **ids)
    ModernBertForMaskedLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_rows_evaluations_retrievers_labelled_parts_and_predictions_have_the_same_ids_without_special_tokens(
    directory, tmp_path
):
    save_copy(directory, tmp_path / "ours", max_length=64)
    corpus, model = CorpusTokenizer(tmp_path / "ours"), open_model(directory)
    fast = PreTrainedTokenizerFast.from_pretrained(directory)
    parts, predicting = PartsTokenizer(fast, 64), predict.as_text(fast)
    for written in TEXTS:
        ids = corpus.encode([written])[0].tolist()
        assert not {0, 1, 2, fast.mask_token_id} & set(ids)
        assert model.encode(written).ids.tolist() == ids
        assert parts(written)[0] == ids
        assert predicting.encode(written, add_special_tokens=False).ids == ids
    retriever = open_retriever(directory, None).library
    for written in TEXTS:
        (ids,) = retriever.tokenize([written])["input_ids"].tolist()
        assert ids == [0, *corpus.encode([written])[0].tolist(), 2]
    assert model.framed(*map(torch.tensor, ([7], [0], [7]))).input_ids.tolist() == [0, 7, 2]
    assert corpus.count_spelled(TEXTS) == 7


def test_a_preparation_counts_the_special_tokens_in_its_texts(directory, tmp_path):
    from rotary_foundry.data_prep.corpus_config import CorpusConfig, TokenizerConfig
    from rotary_foundry.data_prep.pipeline import prepare
    from rotary_foundry.data_prep.readers import SourceConfig
    from rotary_foundry.data_prep.statistics import Statistics
    from rotary_foundry.data_prep.statistics_table import table

    rows = [f"the old price is <s>number {n}</s> the new price, the text <mask> here <pad> strike" for n in range(40)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    out = str(tmp_path / "out")
    prepare(
        CorpusConfig(
            sources={"mine": SourceConfig("jsonl", str(tmp_path / "in.jsonl"))},
            tokenizer=TokenizerConfig(path=str(directory)),
            **{"row_lengths": [64], "validation": 0.2, "out": out, "executor": {"local": {"workers": 1}}},
        )
    )
    statistics = Statistics.read(out)
    assert statistics.sources["mine"].special_tokens == 4 * len(rows)
    assert "  mine: special tokens that texts spell, and that stay text: 160" in table(out, statistics).renderables
