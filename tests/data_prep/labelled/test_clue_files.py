"""CLUE's published forms: what every task's file becomes, and bad rows, each named by file and row."""

import copy
import json
from typing import ClassVar

import datasets
import pytest

from rotary_foundry.data_prep.labelled import examples
from rotary_foundry.data_prep.labelled.clue_files import FORMS, read_rows
from rotary_foundry.data_prep.labelled.data_config import FORMS as TYPES
from rotary_foundry.data_prep.labelled.data_config import DataConfig
from rotary_foundry.data_prep.labelled.examples import read_split
from rotary_foundry.data_prep.labelled.labelled_example import Choices, Span
from rotary_foundry.utils.errors import DataError
from tests.data_prep.labelled.clue_samples import C3, CHID, CHID_ANSWERS, CHID_CANDIDATES, CMRC2018, ROWS, write_clue

PASSAGE = CMRC2018["data"][0]["paragraphs"][0]["context"]
EXPECTED = {
    "afqmc": [(("花呗怎么还", "如何还花呗"), "1")],
    "tnews": [("江疏影的甜品店", "102")],
    "iflytek": [("打车软件", "11")],
    "cmnli": [(("他在跑", "他在动"), "entailment")],
    "ocnli": [(("下雨了", "天晴"), "contradiction")],
    "wsc": [("[[李明]]说，因为[[他]]病了", "true")],
    "csl": [(("水稻；抗旱性", "本文研究水稻的抗旱性"), "0")],
    "cluener": [("浙商银行企业信贷部叶老桂说", [Span("name", 9, 12), Span("company", 0, 4)])],
    "cmrc2018": [
        (("长江多长？", PASSAGE), [Span("", 4, 10)]),
        (("什么河流经上海？", PASSAGE), [Span("", 19, 21), Span("", 19, 21)]),  # the first start is wrong
    ],
    "c3": [
        (Choices(("女：你去哪儿？||男：去书店。", "男的去哪儿？"), ("书店", "学校", "医院", "无效答案")), 0),
    ]
    * 2,  # of dialogues and of other texts, in a file each
    "chid": [
        (Choices(("他做事",), tuple(CHID_CANDIDATES), ("，从不_____。",)), 0),
        (Choices(("他做事_____，从不",), tuple(CHID_CANDIDATES), ("。",)), 1),
        (Choices(("现在",), tuple(CHID_CANDIDATES), ("还不晚。",)), 3),
    ],
}


@pytest.fixture(scope="module")
def clue(tmp_path_factory):
    return write_clue(tmp_path_factory.mktemp("clue"))


def data(folder, form) -> DataConfig:
    return DataConfig(path=str(folder), form=form, name="cluewsc2020" if form == "wsc" else None)


@pytest.mark.parametrize("form", FORMS)
def test_every_task_is_read_from_clues_own_folder(clue, form):
    train = "train.50k.json" if form == "ocnli" else "train.json"
    for split in (train, "validation"):
        assert [(one.text, one.label) for one in read_split(data(clue, form), split)] == EXPECTED[form]


@pytest.mark.parametrize("form", FORMS)
def test_a_test_file_gives_the_same_texts_with_ids_and_without_labels(clue, form):
    file = {"c3": "test1.0.json"}.get(form, "test.json")
    found = read_split(data(clue, form), file, labelled=False)
    texts = [text for text, _ in EXPECTED[form]][: 1 if form == "c3" else None]
    assert [(one.text, one.label) for one in found] == [(text, None) for text in texts]
    assert all(one.id is not None for one in found)
    with pytest.raises(DataError, match="the label is missing; unlabelled files belong under"):
        read_split(data(clue, form), file)


def test_every_form_has_a_type():
    assert FORMS.keys() <= TYPES.keys()


def test_the_blanks_of_a_chid_row_are_a_group_and_c3s_questions_are_none(clue):
    assert len({one.group for one in read_split(data(clue, "chid"), "dev.json")}) == 1
    assert len({one.group for one in read_split(data(clue, "c3"), "dev.json")}) == 2


def test_a_pair_without_a_majority_is_left_out():
    rows = [("a", ROWS["ocnli"]), ("b", ROWS["ocnli"] | {"label": "-"})]
    assert [one.where for one in read_rows("ocnli", rows)] == ["a"]


def test_the_hubs_rows_give_the_same_examples(monkeypatch):
    """The hub's classes are numbers with names, and its answers are one column for each key."""
    feature = datasets.ClassLabel(names=["true", "false"])
    rows = [ROWS["wsc"] | {"label": 0}, ROWS["wsc"] | {"label": -1}]
    hub = datasets.Dataset.from_list(rows).cast_column("label", feature)
    asked = []
    monkeypatch.setattr(examples, "_from_hub", lambda data, split: asked.append((data.name, split)) or hub)
    found = read_split(DataConfig(path="clue/clue", name="cluewsc2020", form="wsc"), "validation", labelled=False)
    read_split(DataConfig(path="clue/clue", form="wsc"), "train.50k.json", labelled=False)
    assert [(one.text, one.label) for one in found] == [*EXPECTED["wsc"], (EXPECTED["wsc"][0][0], None)]
    assert asked == [("cluewsc2020", "validation"), ("wsc", "train")]


# Rows of CHID and CMRC2018 as the hub has them: the text of CHID's answers is the idiom
HUB_CHID = CHID | {"answers": {"text": ["一丝不苟", "画蛇添足", "亡羊补牢"], "candidate_id": [0, 1, 3]}}
HUB_CMRC2018 = {"id": "D1_Q0", "context": PASSAGE, "question": "长江多长？"}
HUB_CMRC2018 |= {"answers": {"text": ["6397千米"], "answer_start": [4]}}


@pytest.mark.parametrize(("form", "row"), [("chid", HUB_CHID), ("cmrc2018", HUB_CMRC2018)])
def test_answers_of_the_hub_are_those_of_the_files(form, row):
    found = [(one.text, one.label) for one in read_rows(form, [("a", row)])]
    assert found == EXPECTED[form][: len(found)] != []
    empty = row | {"answers": {key: [] for key in row["answers"]}}  # of the test split
    assert [one.label for one in read_rows(form, [("a", empty)])] == [None] * len(found)


@pytest.mark.parametrize(
    ("form", "row", "complaint"),
    [
        ("chid", {"candidate_id": [0, 1]}, "answers: expected 3 'candidate_id', one per blank, found 2"),
        ("chid", {"candidate_id": None}, "answers: expected the key 'candidate_id' with a list, found None"),
        ("chid", {"candidate_id": [0, "1", 3]}, "#idiom000001#: expected an answer from 0 to 9, found '1'"),
        ("cmrc2018", {"text": ["6397千米"] * 2}, "answers: expected 2 integers as 'answer_start', one per 'text'"),
        ("cmrc2018", {"answer_start": ["4"]}, "answers: expected 1 integers as 'answer_start', one per 'text'"),
        ("cmrc2018", {"text": "6397千米"}, "answers: expected the key 'text' with a list, found '6397千米'"),
    ],
)
def test_bad_answers_of_the_hub_are_named_by_row(monkeypatch, form, row, complaint):
    good = {"chid": HUB_CHID, "cmrc2018": HUB_CMRC2018}[form]
    rows = Rows([good, good | {"answers": good["answers"] | row}])
    monkeypatch.setattr(examples, "_from_hub", lambda data, split: rows)
    with pytest.raises(DataError) as error:
        read_split(DataConfig(path="clue/clue", form=form), "train")
    assert str(error.value).startswith(f"clue/clue: train: row 1: {complaint}")


class Rows(list):
    """Rows whose types differ, which a `datasets.Dataset` cannot have."""

    features: ClassVar = {}


def changed(row, **values):
    return copy.deepcopy(row) | values


def target(**values):
    return {"target": ROWS["wsc"]["target"] | values}


BAD = {  # a row of a JSONL file, and what is said of it
    "no column": ("afqmc", {"sentence1": "x"}, "the key 'sentence2' with a text, found only sentence1"),
    "no text": ("tnews", changed(ROWS["tnews"], sentence=3), "the key 'sentence' with a text, found 3"),
    "no list": ("csl", changed(ROWS["csl"], keyword="水稻"), "the key 'keyword' with a list, found '水稻'"),
    "outside": ("wsc", changed(ROWS["wsc"], **target(span2_index=90)), "the span2 '他' at 90 to 91 lies outside the t"),
    "negative": ("wsc", changed(ROWS["wsc"], **target(span2_index=-4)), "the span2 '他' at -4 to -3 lies outside"),
    "other words": ("wsc", changed(ROWS["wsc"], **target(span1_index=1)), "the span1 '李明' at 1 to 3 is '明说' in"),
    "open end": ("cluener", changed(ROWS["cluener"], label={"name": {"叶老桂": [[9, 12]]}}), "'叶老桂' at 9 to 13 is"),
    "past the end": ("cluener", changed(ROWS["cluener"], label={"name": {"说": [[13, 13]]}}), "lies outside the text"),
    "no places": ("cluener", changed(ROWS["cluener"], label={"name": {"说": [12]}}), "a list of [first, last] char"),
    "no blank's answer": ("chid", CHID | {"content": ["#idiom000009#"]}, "#idiom000009#: expected an answer from 0"),
    "blanks": ("chid", CHID | {"candidates": ["一"]}, "3 blanks, but only 1 candidates"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, name):
    form, row, complaint = BAD[name]
    good = CHID if form == "chid" else ROWS[form]
    (tmp_path / "train.json").write_text(json.dumps(good) + "\n" + json.dumps(row))
    (tmp_path / "train_answer.json").write_text(json.dumps(CHID_ANSWERS))
    with pytest.raises(DataError) as error:
        read_split(DataConfig(form=form), f"{tmp_path}/train.json")
    assert f"{tmp_path}/train.json:2: " in str(error.value)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_an_answer_that_is_not_in_the_passage_or_among_the_choices_is_refused(tmp_path):
    wrong = copy.deepcopy(CMRC2018)
    wrong["data"][0]["paragraphs"][0]["qas"][1]["answers"] = [{"text": "黄河", "answer_start": 0}]
    (tmp_path / "train.json").write_text(json.dumps(wrong))
    with pytest.raises(DataError, match=r"train\.json: question D1_Q1: the answer '黄河' is not in the passage"):
        read_split(DataConfig(form="cmrc2018"), f"{tmp_path}/train.json")
    wrong = copy.deepcopy(C3)
    wrong[0][1][0]["answer"] = "商店"
    (tmp_path / "train.json").write_text(json.dumps(wrong))
    with pytest.raises(
        DataError, match=r"entry 0: question 0: the answer '商店' is not among the choices \(书店, 学校, 医院\)"
    ):
        read_split(DataConfig(form="c3"), f"{tmp_path}/train.json")


@pytest.mark.parametrize(
    ("form", "content", "place"),
    [
        ("cmrc2018", {"data": ["x"]}, "data"),
        ("cmrc2018", {"data": [{"paragraphs": ["x"]}]}, "paragraphs"),
        ("cmrc2018", {"data": [{"paragraphs": [{"qas": ["x"]}]}]}, "qas"),
        ("cmrc2018", {"data": [{"paragraphs": [{"qas": [{"id": 1, "answers": ["x"]}]}]}]}, "question 1: answers"),
        ("c3", [[["a passage"], ["x"], "1"]], "entry 0: question 0"),
    ],
    ids=str,
)
def test_what_is_no_object_within_a_nested_file_is_named(tmp_path, form, content, place):
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"train\.json: {place}: expected an object, found 'x'"):
        read_split(DataConfig(form=form), f"{tmp_path}/train.json")


@pytest.mark.parametrize(("content", "complaint"), [("{", "not valid JSON"), ("[]", "expected one JSON object in the")])
def test_a_file_that_is_no_clue_file_is_named(tmp_path, content, complaint):
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(DataError, match=f"train.json: {complaint}"):
        read_split(DataConfig(form="cmrc2018"), f"{tmp_path}/train.json")
    with pytest.raises(DataError, match=r"none\.json: cannot be read: No such file"):
        read_split(DataConfig(form="afqmc"), f"{tmp_path}/none.json")
