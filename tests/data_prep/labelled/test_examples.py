"""Labelled examples from each kind of file and data set, and what is wrong with one by file and row."""

import csv
from dataclasses import replace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rotary_foundry.data_prep.labelled.data_config import DataConfig
from rotary_foundry.data_prep.labelled.examples import read_split
from rotary_foundry.data_prep.labelled.labelled_example import Choices, Span
from rotary_foundry.utils.errors import DataError, NeedsNetwork
from tests.data_prep.tasks import write_lines

ROWS = [{"text": "None", "label": "good"}, {"text": 'NA, "quoted"\nline', "label": "bad"}]


def found(data: DataConfig, split) -> list[dict]:
    return [{"text": example.text, "label": example.label} for example in read_split(data, str(split))]


def test_csv_jsonl_and_parquet_have_the_same_examples(tmp_path):
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["text", "label"])
        writer.writeheader()
        writer.writerows(ROWS)
    write_lines(tmp_path / "a.jsonl", ROWS)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        assert found(DataConfig(), tmp_path / name) == ROWS, name


@pytest.mark.parametrize("labels", [["é", "b"], [["é", "b"], ["b"]]])
def test_labels_in_a_column_of_bytes_are_decoded_and_refused_by_column_if_they_are_not_utf_8(labels, tmp_path):
    kind = pa.list_(pa.binary()) if isinstance(labels[0], list) else pa.binary()
    encoded = [[one.encode() for one in label] if isinstance(label, list) else label.encode() for label in labels]
    for saved in (tmp_path / "a.parquet", tmp_path / "saved"):
        table = pa.table({"text": ["one", "two"], "label": pa.array(encoded, kind)})
        if saved.suffix:
            pq.write_table(table, saved)
        else:
            datasets.DatasetDict({"train": datasets.Dataset(table)}).save_to_disk(saved)
        data, split = (DataConfig(), saved) if saved.suffix else (DataConfig(path=str(saved)), "train")
        assert [row["label"] for row in found(data, split)] == labels
    pq.write_table(pa.table({"text": ["one"], "label": [b"caf\xe9"]}), tmp_path / "b.parquet")
    said = r"b\.parquet: row 1: column 'label': expected text, got b'caf\\xe9', which is not UTF-8"
    with pytest.raises(DataError, match=said):
        found(DataConfig(), tmp_path / "b.parquet")


def test_a_tsv_has_an_example_a_line_whatever_quotes_are_in_it(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tlabel\n"Stop\tbad\nGo"\tgood\n"so"\tgood\n')
    rows = [('"Stop', "bad"), ('Go"', "good"), ('"so"', "good")]
    assert found(DataConfig(), tmp_path / "a.tsv") == [{"text": text, "label": label} for text, label in rows]


def test_a_pair_is_two_columns(tmp_path):
    write_lines(tmp_path / "a.jsonl", [{"one": "x", "two": "y", "label": 1}])
    assert found(DataConfig(text=["one", "two"]), tmp_path / "a.jsonl") == [{"text": ("x", "y"), "label": 1}]


def test_a_data_set_saved_to_disk_gives_classes_by_their_names(tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    split = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    datasets.DatasetDict({"train": split}).save_to_disk(tmp_path / "set")
    data = DataConfig(path=str(tmp_path / "set"))
    assert found(data, "train") == [{"text": "a", "label": "good"}, {"text": "b", "label": "bad"}]
    with pytest.raises(DataError, match="no split 'test'; the splits there are train"):
        read_split(data, "test")


def test_a_single_data_set_saved_to_disk_is_told_from_one_with_splits(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path)
    with pytest.raises(DataError, match="a single Dataset is saved there, without splits; save a DatasetDict that has"):
        read_split(DataConfig(path=str(tmp_path)), "train")


def test_a_broken_data_set_is_named(tmp_path):
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path)
    next(tmp_path.glob("train/*.arrow")).write_bytes(b"x")
    with pytest.raises(DataError, match=f"{tmp_path}: datasets cannot load it: "):
        read_split(DataConfig(path=str(tmp_path)), "train")


def test_a_folder_of_a_file_a_split_is_read_as_a_clone_of_the_hubs_glue(tmp_path):
    (tmp_path / "rte").mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rte/train-00000-of-00001.parquet")
    data = DataConfig(path=str(tmp_path), name="rte")
    assert found(data, "train") == ROWS
    with pytest.raises(DataError, match=r"rte: no file of the split 'validation', such as validation.csv"):
        read_split(data, "validation")


@pytest.mark.parametrize("hashes", [("", ""), ("-f00d16360ae1b2c3", "-0bad16360ae1b2c3")], ids=["now", "older"])
def test_the_parts_of_a_split_are_read_in_order(tmp_path, hashes):
    for number, (row, suffix) in enumerate(zip(ROWS, hashes, strict=True)):
        write_lines(tmp_path / f"train-{number:05}-of-00002{suffix}.jsonl", [row])
    write_lines(tmp_path / "train-backup.jsonl", ROWS)
    write_lines(tmp_path / "train.old.jsonl", ROWS)
    assert found(DataConfig(path=str(tmp_path)), "train") == ROWS


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["train.csv", "train.jsonl"], "expected one file for the split 'train', found train.csv, train.jsonl"),
        (
            ["train.csv", "train-00000-of-00001.csv"],
            "expected one file for the split 'train', found train.csv, train-00000-of-00001.csv",
        ),
        (["train-00001-of-00002.csv"], "train-00000-of-00002.csv is missing"),
        (["train-00000-of-00002.csv", "train-00001-of-00002.jsonl"], "train-00001-of-00002.csv is missing"),
        (
            ["train-00000-of-00001.csv", "train-00000-of-00001.jsonl"],
            "train-00000-of-00001.jsonl does not belong to the parts of train-00000-of-00001.csv",
        ),
        (
            ["train-00000-of-00001.csv", "train-00001-of-00001.csv"],
            "train-00001-of-00001.csv does not belong to the parts of train-00000-of-00001.csv",
        ),
        (["train-backup.csv", "train.csv.bak"], "no file of the split 'train', such as train.csv"),
    ],
)
def test_files_of_which_it_is_not_clear_what_the_split_is_are_named(tmp_path, names, complaint):
    for name in names:
        (tmp_path / name).write_text("text,label\nx,1\n")
    with pytest.raises(DataError) as error:
        read_split(DataConfig(path=str(tmp_path)), "train")
    assert str(error.value).startswith(f"{tmp_path}: {complaint}")


def test_conll_sentences_are_words_and_their_last_columns(tmp_path):
    file = tmp_path / "a.conll"
    file.write_text("-DOCSTART- -X- O O\n\nAnna NNP B-NP B-PER\nslept VBD B-VP O\n\n\nBerlin NNP B-NP B-LOC\n")
    assert found(DataConfig(), file) == [
        {"text": ["Anna", "slept"], "label": ["B-PER", "O"]},
        {"text": ["Berlin"], "label": ["B-LOC"]},
    ]


CONLL = """Anna B-PER
Lee I-PER
slept O
in O
Berlin S-LOC
. O

新 B-ORG
华社 E-ORG
记者 O
叶 I-PER
桂 I-PER
"""


def test_conll_files_are_also_texts_with_entities(tmp_path):
    (tmp_path / "train.conll").write_text(CONLL)
    lists = [{"words": ["Anna", "Lee"], "tags": ["B-PER", "B-PER"]}]  # two, one after the other
    write_lines(tmp_path / "a.jsonl", lists)
    english, chinese = read_split(DataConfig(path=str(tmp_path), form="conll"), "train")
    assert english.text == "Anna Lee slept in Berlin ."
    assert [(span.kind, english.text[span.start : span.end]) for span in english.label] == [
        *(("PER", "Anna Lee"), ("LOC", "Berlin"))
    ]
    assert (chinese.text, chinese.label) == ("新华社记者叶桂", [Span("ORG", 0, 3), Span("PER", 5, 7)])
    (of_lists,) = read_split(DataConfig(form="conll", text=["words"], label="tags"), str(tmp_path / "a.jsonl"))
    assert of_lists.label == [Span("PER", 0, 4), Span("PER", 5, 8)]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": ["a", "b"], "label": ["O"]}, "2 words have 1 labels"),
        ({"text": ["a"], "label": ["PER"]}, "the word 'a' has label 'PER'; expected O, or B-"),
        ({"text": "a b", "label": ["O"]}, "expected a list of texts as words, found 'a b'"),
        ({"text": ["a"], "label": [3]}, r"expected a list of texts as labels, found \[3\]"),
    ],
)
def test_words_without_bio_labels_are_refused_by_file_and_row(tmp_path, row, says):
    file = write_lines(tmp_path / "a.jsonl", [{"text": ["a"], "label": ["O"]}, row])
    with pytest.raises(DataError, match=rf"a.jsonl:2: {says}"):
        read_split(DataConfig(form="conll"), str(file))


ASKED = {"asked": "Where?", "page": "At home. At sea.", "said": "At sea"}
SQUAD = {**ASKED, "said": {"text": ["At", "sea"], "answer_start": [9, 12]}}  # the second At
READING = DataConfig(form="answers", text=["asked", "page"], label="said")


def test_questions_about_a_passage_come_from_columns_of_any_name_in_every_kind_of_file(tmp_path):
    (tmp_path / "a.csv").write_text("asked,page,said\nWhere?,At home. At sea.,At sea\n")
    write_lines(tmp_path / "a.jsonl", [ASKED])
    pq.write_table(pa.Table.from_pylist([{**ASKED, "said": ["At sea", "home"]}]), tmp_path / "a.parquet")
    datasets.DatasetDict({"train": datasets.Dataset.from_list([SQUAD])}).save_to_disk(tmp_path / "set")
    expected = {"a.csv": [(9, 15)], "a.jsonl": [(9, 15)], "a.parquet": [(9, 15), (3, 7)]}
    for name, spans in expected.items():
        (example,) = read_split(READING, str(tmp_path / name))
        assert example.text == ("Where?", "At home. At sea."), name
        assert example.label == [Span("", *span) for span in spans], name
    (example,) = read_split(replace(READING, path=str(tmp_path / "set")), "train")
    assert example.label == [Span("", 9, 11), Span("", 12, 15)]


def test_questions_with_choices_come_from_columns_of_any_name(tmp_path):
    row = {"page": "p", "asked": "q", "options": ["a", "b", "c"], "right": 2}
    file = write_lines(tmp_path / "a.jsonl", [row, {**row, "right": "b"}])
    data = DataConfig(form="choices", text=["page", "asked", "options"], label="right")
    first, second = read_split(data, str(file))
    assert (first.text, first.label) == (Choices(("p", "q"), ("a", "b", "c")), 2)
    assert second.label == 1 and first.group != second.group  # each has choices of its own
    (only,) = read_split(replace(data, text=["asked", "options"]), str(write_lines(tmp_path / "b.jsonl", [row])))
    assert only.text == Choices(("q",), ("a", "b", "c"))


@pytest.mark.parametrize(
    ("form", "row", "says"),
    [
        ("answers", {"text": "q", "more": "page", "label": "pages"}, "the answer 'pages' is not in the passage"),
        ("answers", {"text": "q", "more": 5, "label": "p"}, "expected texts as question and passage, found"),
        ("answers", {"text": "q", "more": "page", "label": ""}, "expected an answer of at least one character"),
        ("answers", {"text": "q", "more": "page", "label": None}, r"expected texts as answers, found \[None\]|None"),
        (
            "answers",
            {"text": "q", "more": "page", "label": {"text": ["page"], "answer_start": ["0"]}},
            "expected 1 integers as 'answer_start', one per answer, got",
        ),
        ("choices", {"text": "q", "more": ["a", "b"], "label": 2}, "as a number from 0 to 1 or as its text, found 2"),
        (
            "choices",
            {"text": "q", "more": ["a", "b"], "label": "c"},
            "as a number from 0 to 1 or as its text, found 'c",
        ),
        ("choices", {"text": "q", "more": ["a", "a"], "label": 0}, "expected at least two different choices, found"),
        ("choices", {"text": "q", "more": "a b", "label": 0}, "expected texts as choices, found 'a b'"),
    ],
)
def test_a_question_that_cannot_be_learned_is_refused_by_file_and_row(tmp_path, form, row, says):
    file = write_lines(tmp_path / "a.jsonl", [row])
    with pytest.raises(DataError, match=rf"a\.jsonl:1: .*{says}"):
        read_split(DataConfig(form=form, text=["text", "more"]), str(file))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.csv", "sentence,label\nx,1\n", "a.csv:2: no column 'text'; the columns there are sentence, label"),
        ("a.csv", "text,label\nx,1\na, b,1\n", "a.csv:3: expected the 2 columns of the first line"),
        ("a.csv", 'text,label\n"x"y,1\n', "a.csv: after line 1: not valid CSV"),
        ("a.csv", "text,label\n", "a.csv: the split is empty"),
        ("a.csv", "", "a.csv: the split is empty"),
        ("a.csv", "text,label,text\nx,1,y\n", "a.csv:1: the column 'text' occurs twice"),
        ("a.tsv", "text\tlabel\tlabel\nx\t1\t2\n", "a.tsv:1: the column 'label' occurs twice"),
        (
            "a.tsv",
            "text\tlabel\nx\ty\t1\n",
            "a.tsv:2: expected the 2 columns of the first line; remove tabs from texts",
        ),
        (
            "a.jsonl",
            '{"text": "x", "label": 1}\n{"text": \n',
            "a.jsonl:2: expected one JSON object per line; invalid JSON",
        ),
        ("a.jsonl", '{"text": "x"}\n', "a.jsonl:1: no column 'label'; the columns there are text"),
        ("a.jsonl", "[1]\n", "a.jsonl:1: expected a JSON object with one key per column, got list"),
        ("a.parquet", "text", "a.parquet: cannot be read as Parquet"),
        ("a.conll", "Anna B-PER\nslept\n", "a.conll:2: 1 columns, the lines above have 2"),
        ("a.conll", "\n\n", "a.conll: the split is empty"),
        ("a.xml", "", "a.xml: expected a file ending in .csv"),
    ],
)
def test_bad_input_is_named_by_file_and_row(tmp_path, name, content, complaint):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as error:
        read_split(DataConfig(), str(tmp_path / name))
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_or_not_utf8_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv: cannot be read: No such file"):
        read_split(DataConfig(), str(tmp_path / "none.csv"))
    (tmp_path / "a.csv").write_bytes(b"text,label\n\xe9,1\n")
    (tmp_path / "b.csv").write_text("text,label\na,1\n", encoding="utf-16")
    with pytest.raises(DataError, match=r"b\.csv: not UTF-8: it is UTF-16; convert the file"):
        read_split(DataConfig(), str(tmp_path / "b.csv"))
    with pytest.raises(DataError, match=r"a\.csv: not UTF-8"):
        read_split(DataConfig(), str(tmp_path / "a.csv"))


def test_a_data_set_that_is_not_in_the_hubs_cache_needs_the_network(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.invalid")
    with pytest.raises(NeedsNetwork, match=r"hub\.invalid cannot be reached"):
        read_split(DataConfig(path="nyu-mll/glue", name="rte"), "train")
