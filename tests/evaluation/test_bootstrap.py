"""Intervals hold what they should, as often as they say."""

import numpy as np
import pytest
from scipy.stats import binomtest

from rotary_foundry.evaluation import bootstrap
from rotary_foundry.evaluation.results import Measure


def _documents(generator: np.random.Generator, count: int) -> dict[str, tuple[float, float]]:
    """A loss of 5 nats per token, on documents that differ in length and in how hard they are."""
    tokens = generator.integers(10, 200, size=count)
    hardness = generator.normal(5, 0.7, size=count)
    return {str(n): (float(tokens[n] * hardness[n]), float(tokens[n])) for n in range(count)}


def test_an_interval_of_95_percent_holds_the_true_value_in_about_95_of_100_samples():
    generator = np.random.default_rng(0)
    held = 0
    for sample in range(400):
        measure = bootstrap.ratio(_documents(generator, 60), 300, sample)
        held += measure.low <= 5 <= measure.high
    assert 0.90 <= held / 400 <= 0.98


def test_the_same_seed_gives_the_same_interval():
    documents = _documents(np.random.default_rng(0), 30)
    assert bootstrap.ratio(documents, 200, 3) == bootstrap.ratio(documents, 200, 3)
    assert bootstrap.ratio(documents, 200, 3) != bootstrap.ratio(documents, 200, 4)


def test_a_small_difference_on_the_same_documents_is_told_from_none():
    generator = np.random.default_rng(1)
    ours = _documents(generator, 40)
    theirs = {name: (loss + generator.normal(0.05, 0.01) * tokens, tokens) for name, (loss, tokens) in ours.items()}
    difference = bootstrap.difference(theirs, ours, 500, 0)
    assert difference.value == pytest.approx(0.05, abs=0.01)
    assert 0.04 < difference.low <= difference.high < 0.06
    apart = bootstrap.ratio(ours, 500, 0)
    assert apart.high - apart.low > 0.1


def test_a_difference_is_over_the_documents_that_both_have():
    ours, theirs = {"a": (2.0, 1.0), "b": (4.0, 1.0)}, {"a": (1.0, 1.0), "c": (100.0, 1.0)}
    assert bootstrap.difference(ours, theirs, 100, 0).value == 1.0
    assert bootstrap.difference(ours, {"c": (1.0, 1.0)}, 100, 0) is None


def test_where_no_document_differs_and_nothing_bounds_what_others_have_no_interval_is_told():
    assert bootstrap.ratio({"a": (0.0, 5.0), "b": (0.0, 7.0)}, 100, 0).low is None


@pytest.mark.parametrize(("found", "value"), [(0.0, 0.0), (7.0, 1.0)])
def test_nothing_found_or_everything_ends_where_clopper_and_pearson_say_of_so_many_documents(found, value):
    documents = {str(number): (found, 7.0) for number in range(40)} | {"empty": (0.0, 0.0)}
    measure = bootstrap.ratio(documents, 100, 0, (0.0, 1.0))
    theirs = binomtest(int(40 * value), 40).proportion_ci()
    assert (measure.value, measure.low, measure.high) == (value, pytest.approx(theirs.low), pytest.approx(theirs.high))


def test_a_proportion_that_some_documents_have_is_the_bootstraps():
    documents = {str(number): (float(number % 2), 2.0) for number in range(40)}
    assert bootstrap.ratio(documents, 100, 0, (0.0, 1.0)) == bootstrap.ratio(documents, 100, 0)
    single = {"a": (1.0, 2.0)}
    assert bootstrap.ratio(single, 100, 0, (0.0, 1.0)) == Measure(0.5)


def test_two_models_that_find_nothing_differ_by_no_more_than_what_others_documents_may_show():
    nothing = {str(number): (0.0, 7.0) for number in range(40)}
    reach = binomtest(0, 40).proportion_ci().high
    difference = bootstrap.difference(nothing, nothing, 100, 0, (0.0, 1.0))
    assert difference == Measure(0.0, pytest.approx(-reach), pytest.approx(reach))


def test_nothing_to_divide_by_is_an_error():
    with pytest.raises(ValueError, match="no document"):
        bootstrap.ratio({"a": (0.0, 0.0)}, 100, 0)
