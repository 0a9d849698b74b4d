"""Rows as stored, and the manifest beside them."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streaming import MDSWriter, StreamingDataset

from rotary_foundry.data.rows import (
    Manifest,
    Row,
    check_row,
    columns,
    decode_row,
    encode_row,
    fingerprint,
    token_dtype,
)
from rotary_foundry.utils.errors import DataError

MANIFEST = Manifest("code", "train", 1024, rows=10, documents=30, tokens=10_200, fill=10_200 / 10_240, tokenizer="ab")


def row(*documents, dtype=np.int64):
    lengths = np.array([len(document) for document in documents], dtype=np.uint32)
    return Row(np.concatenate(documents).astype(dtype), lengths, np.arange(len(documents), dtype=np.uint32))


@given(
    documents=st.lists(st.lists(st.integers(0, 65_535), min_size=1, max_size=20), min_size=1, max_size=10),
    vocab_size=st.sampled_from([65_536, 65_537]),
)
def test_documents_come_back_as_they_were(documents, vocab_size):
    sample = encode_row(row(*documents), token_dtype(vocab_size))
    assert [document.tolist() for document in decode_row(sample)] == documents


@pytest.mark.usefixtures("numbers_of_our_own")
def test_a_stored_row_says_which_document_each_part_of_it_is_of(tmp_path):
    stored = row([1, 8, 2], [1, 9, 9, 2])._replace(documents=np.array([70_000, 3], dtype=np.uint32))
    with MDSWriter(out=str(tmp_path), columns=columns(token_dtype(512))) as out:
        out.write(encode_row(stored, token_dtype(512)))
    sample = StreamingDataset(local=str(tmp_path), batch_size=1)[0]
    named = dict(zip(sample["documents"].tolist(), decode_row(sample), strict=True))
    assert {number: document.tolist() for number, document in named.items()} == {70_000: [1, 8, 2], 3: [1, 9, 9, 2]}


def test_a_vocabulary_beyond_65536_is_stored_in_uint32():
    assert columns(token_dtype(65_536))["tokens"] == "ndarray:uint16"
    assert columns(token_dtype(65_537))["tokens"] == "ndarray:uint32"


@pytest.mark.parametrize(("wrong", "dtype"), [(-1, "int64"), (65_536, "int64"), (65_536, "uint32"), (70_000, "uint32")])
def test_an_id_that_does_not_fit_is_refused_and_not_wrapped(wrong, dtype):
    with pytest.raises(DataError, match=f"token id {wrong} does not fit uint16"):
        encode_row(row([5, wrong], dtype=dtype), token_dtype(50_368))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"lengths": np.array([2, 0])}, "at least one token, got an empty one"),
        ({"lengths": np.array([2, 2])}, "a row of 3 tokens has 2 .* sum is 4"),
        ({"documents": np.array([5])}, "a row of 3 tokens has 1 document numbers and 2 lengths"),
    ],
)
def test_a_row_whose_parts_do_not_belong_together_is_not_stored(changed, says):
    with pytest.raises(DataError, match=says):
        encode_row(row([5, 6], [7])._replace(**changed), token_dtype(512))


WORD_STARTS = [
    ([1, 0], "2 word_starts for its 3 tokens"),
    ([1, 1, 0], "a document whose first token does not begin a word"),
    ([1, 2, 1], "a word_starts of 2, which has to be 0 or 1"),
]


@pytest.mark.parametrize(("word_starts", "says"), WORD_STARTS)
def test_word_starts_that_are_not_those_of_the_row_are_neither_stored_nor_trained_on(word_starts, says):
    word_starts = np.array(word_starts, np.uint8)
    with pytest.raises(DataError, match=f"a row has {says}"):
        encode_row(row([5, 6], [7])._replace(word_starts=word_starts), token_dtype(512))
    sample = encode_row(row([5, 6], [7]), token_dtype(512)) | {"word_starts": word_starts, "row": 31}
    with pytest.raises(DataError, match=f"row 31 of the shards for rows of 8 has {says}"):
        check_row(sample, 8, 512)


def test_word_starts_are_stored_if_they_are_known():
    known = row([5, 6], [7])._replace(word_starts=np.array([1, 0, 1], np.uint8))
    assert encode_row(known, token_dtype(512))["word_starts"].tolist() == [1, 0, 1]
    assert columns(token_dtype(512), word_starts=True).keys() - columns(token_dtype(512)).keys() == {"word_starts"}
    check_row(encode_row(known, token_dtype(512)) | {"row": 0}, 8, 512)


@pytest.mark.parametrize(
    ("tokens", "lengths", "says"),
    [
        ([5, 6, 7], [2, 2], "3 tokens, but documents of 4"),
        ([5, 6, 7], [4, -1], "3 tokens, but documents of 3, the shortest of -1"),
        ([5] * 9, [9], "9 tokens, 9 of them in one document, but the recipe's rows hold 8"),
        ([5] * 9, [3, 6], "9 tokens, 6 of them in one document, but the recipe's rows hold 8"),
        ([5, 512, 600], [3], r"token id 512, but the tokenizer's ids are in \[0, 512\)"),
        ([5, -1], [2], "token id -1"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_by_its_number(tokens, lengths, says):
    with pytest.raises(DataError, match=f"row 31 of the shards for rows of 8 has {says}.*prepare the data again"):
        check_row({"row": 31, "tokens": np.array(tokens), "lengths": np.array(lengths)}, 8, 512)


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    MANIFEST.write(tmp_path)
    assert Manifest.read(tmp_path) == MANIFEST


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "no such file"),
        ("{", "broken"),
        ("[]", "broken"),
        (json.dumps({"source": "code"}), "key 'split' is missing"),
    ],
)
def test_an_unusable_manifest_is_named_with_the_remedy(tmp_path, content, complaint):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=complaint) as error:
        Manifest.read(tmp_path)
    assert str(tmp_path / "manifest.json") in str(error.value)
    assert "python data_prep" in str(error.value)


def test_a_fingerprint_sees_the_vocabulary_but_not_the_layout_or_a_callers_padding(tmp_path):
    def of(name, indent=None, **content):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(content, indent=indent))
        return fingerprint(tmp_path / name)

    plain = of("plain", model={"vocab": {"a": 0, "b": 1}}, padding=None)
    assert of("padded", indent=2, padding={"length": 8}, model={"vocab": {"b": 1, "a": 0}}) == plain
    assert of("other", model={"vocab": {"a": 1, "b": 0}}, padding=None) != plain


def test_a_fingerprint_of_no_tokenizer_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(DataError, match=r"tokenizer\.json: no such file"):
        fingerprint(tmp_path)


def test_manifests_can_be_read_without_torch():
    code = "import sys, rotary_foundry.data.rows; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
