"""Offline tasks: both labels, real text, and modules that are in one split only."""

from collections import Counter

import pytest

from rotary_foundry.data_prep.labelled import offline_tasks as installation
from rotary_foundry.data_prep.labelled.data_config import DataConfig
from rotary_foundry.data_prep.labelled.examples import read_split
from rotary_foundry.utils.errors import DataError

SPLITS = ("train", "validation")


@pytest.fixture(scope="module", autouse=True, params=[100, pytest.param(installation.EXAMPLES, marks=pytest.mark.long)])
def examples(request):
    """Limit the examples of a task. Making all of them takes half a minute, so that is a long test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(installation, "EXAMPLES", request.param)
        installation._tasks.cache_clear()
        yield
    installation._tasks.cache_clear()


def test_no_module_is_in_both_splits():
    for task in ("package", "belongs"):
        train, validation = ({name for name, _ in installation.rows(task, split)} for split in SPLITS)
        assert train.isdisjoint(validation)
        assert 0.1 < len(validation) / len(train | validation) < 0.3


def test_half_of_the_docstrings_belong_and_the_others_are_of_the_same_module():
    for split in SPLITS:
        answers = Counter(row["label"] for _, row in installation.rows("belongs", split))
        assert 0.4 < answers["yes"] / answers.total() < 0.6


def test_a_function_does_not_give_its_docstring_away():
    rows = [row for split in SPLITS for _, row in installation.rows("belongs", split)]
    assert not any(row["docstring"] in row["function"] for row in rows if row["label"] == "yes")


def test_packages_are_those_of_the_corpus():
    labels = {row["label"] for _, row in installation.rows("package", "train")}
    assert labels == {"python", *installation.SCIENTIFIC_PACKAGES}


def test_they_are_read_as_a_data_set_by_name():
    data = DataConfig(path="python-installation", name="belongs", text=["docstring", "function"])
    assert len(read_split(data, "train")) + len(read_split(data, "validation")) == installation.EXAMPLES
    with pytest.raises(DataError, match="there are package and belongs, train and validation"):
        read_split(data, "test")
