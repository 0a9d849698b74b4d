"""Choices, passages and entities as tokens: cut, divided into windows, and with their spans where they belong."""

import pytest
from transformers import AutoTokenizer

from rotary_foundry.data_prep.labelled.labelled_example import Choices, Example, Span
from rotary_foundry.data_prep.labelled.span_encoding import (
    STRIDE,
    PartsTokenizer,
    encode_answers,
    encode_choices,
    encode_entities,
)
from rotary_foundry.utils.errors import DataError
from tests.data_prep.labelled.tokenizers import write_byte_tokenizer, write_chinese_tokenizer

CLS, SEP = 2, 3
PASSAGE = "长江全长6397千米，是亚洲第一长河。长江流经上海。" * 20


@pytest.fixture(scope="module")
def chinese_tokenizer_dir(tmp_path_factory):
    return write_chinese_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module", params=["wordpiece", "bytes"])
def tokenizer(request, tmp_path_factory):
    """One with a token a character, and one with three."""
    write = write_chinese_tokenizer if request.param == "wordpiece" else write_byte_tokenizer
    return AutoTokenizer.from_pretrained(write(tmp_path_factory.mktemp("tokenizer")))


def text_of(tokenizer, ids) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False).replace(" ##", "").replace(" ", "")


def answer_at(start: int, length: int, passage: str = PASSAGE) -> Example:
    return Example("here", ("长江多长？", passage), [Span("", start, start + length)], "Q0")


def test_windows_cover_the_passage_and_those_with_the_whole_answer_point_at_it(tokenizer):
    place = PASSAGE.rindex("6397")
    limit = 400
    columns, long = encode_answers([answer_at(place, 6)], PartsTokenizer(tokenizer, limit), training=True)
    assert long == []
    ids = columns["input_ids"]
    assert all(len(window) <= limit and window[0] == CLS and window.count(SEP) == 2 for window in ids)
    first = ids[0].index(SEP) + 1  # the passage's first token
    passage = PartsTokenizer(tokenizer, limit)(PASSAGE)[0]
    for number, window in enumerate(ids):
        assert window[first:-1] == passage[number * STRIDE : number * STRIDE + len(window) - first - 1]
    assert ids[-1][-2] == passage[-1]
    found = [columns["input_ids"][row][a : b + 1] for row, (a, b) in enumerate(columns["labels"]) if (a, b) != (0, 0)]
    assert 1 <= len(found) < len(ids)
    assert all(text_of(tokenizer, tokens) == "6397千米" for tokens in found)
    assert columns["allowed"][0] == [1, *[0] * (first - 1), *[1] * (len(ids[0]) - first - 1), 0]


def test_for_evaluation_tokens_know_their_characters(tokenizer):
    columns, _ = encode_answers([answer_at(4, 6)], PartsTokenizer(tokenizer, 500), training=False)
    assert "labels" not in columns
    assert columns["answers"][0] == ["6397千米"]
    window, offsets = columns["input_ids"][0], columns["offsets"][0]
    first = window.index(SEP) + 1
    assert set(offsets[:first]) == {(-1, -1)} == {offsets[-1]}
    assert offsets[first][0] == 0
    assert columns["text"][0] == PASSAGE


def test_an_answer_inside_of_a_token_gets_the_tokens_that_hold_it(chinese_tokenizer_dir):
    tokenizer = AutoTokenizer.from_pretrained(chinese_tokenizer_dir)
    columns, _ = encode_answers([answer_at(1, 2, "水稻жжж水稻")], PartsTokenizer(tokenizer, 40), training=True)
    first, last = columns["labels"][0]
    assert last - first + 1 == 2  # 稻, and the unknown word as one token


def test_a_question_is_cut_to_half_and_a_limit_without_room_is_refused(tokenizer):
    example = Example("here", ("长" * 300, "长江"), [Span("", 0, 2)], 1)
    columns, long = encode_answers([example], PartsTokenizer(tokenizer, 64), training=True)
    assert long == ["here"]
    assert len(columns["input_ids"][0]) <= 64
    with pytest.raises(DataError, match="here: 5 tokens have no room for a passage"):
        encode_answers([example], PartsTokenizer(tokenizer, 5), training=True)


def test_a_blank_keeps_the_text_around_it_and_a_question_the_beginning_of_its_passage(chinese_tokenizer_dir):
    parts = PartsTokenizer(AutoTokenizer.from_pretrained(chinese_tokenizer_dir), 16)
    blank = Example("a", Choices(("他做事现在还",), ("守株待兔", "长江"), ("不晚从不千米河流",)), 1, group="g")
    asked = Example("b", Choices(("他做事现在还不晚从", "书店"), ("守株待兔", "长江")), 0, group="h")
    columns, long = encode_choices([blank, asked], parts)
    assert long == ["a", "b"]
    assert [[parts.tokenizer.decode(ids).replace(" ", "") for ids in row] for row in columns["input_ids"]] == [
        ["[CLS]事现在还[SEP]守株待兔[SEP]不晚从不[SEP]", "[CLS]事现在还[SEP]长江[SEP]不晚从不[SEP]"],
        ["[CLS]他做事现在还[SEP]书店[SEP]守株待兔[SEP]", "[CLS]他做事现在还[SEP]书店[SEP]长江[SEP]"],
    ]
    assert (columns["labels"], columns["group"]) == ([1, 0], [0, 1])
    other = Example("c", Choices(("他",), ("书店",)), 0)
    with pytest.raises(DataError, match="c: 1 choices, the examples before it have 2"):
        encode_choices([asked, other], parts)


def test_entities_are_tokens_and_what_no_token_bounds_or_is_cut_off_is_missed(tokenizer):
    text = "长江全长6397千米"
    spans = [Span("river", 0, 2), Span("number", 4, 10), Span("part", 5, 7), Span("late", 8, 10)]
    example = Example("here", text, spans, 7)
    kinds = ["late", "number", "part", "river"]
    row = {
        key: values[0] for key, values in encode_entities([example], kinds, PartsTokenizer(tokenizer, 500))[0].items()
    }
    found = {
        kinds[kind]: text_of(tokenizer, row["input_ids"][first : last + 1]).replace("##", "")
        for kind, first, last in row["labels"]
    }
    assert found == {"river": "长江", "number": "6397千米", "late": "千米"} | (
        {"part": "39"} if "part" in found else {}
    )
    assert row["entities"] == [(0, 8, 10), (1, 4, 10), (2, 5, 7), (3, 0, 2)]
    short = {"wordpiece": 6, "bytes": 10}["wordpiece" if len(row["input_ids"]) < 20 else "bytes"]
    columns, long = encode_entities([example], kinds, PartsTokenizer(tokenizer, short))
    assert long == ["here"]
    assert [kind for kind, *_ in columns["labels"][0]] == [3]
    assert len(columns["entities"][0]) == 4
    with pytest.raises(DataError, match=r"here: the kind 'river' is not among those of the task \(number\)"):
        encode_entities([example], ["number"], PartsTokenizer(tokenizer, 500))
