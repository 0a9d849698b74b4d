"""Scores of answers are those of the packages that define them, and of values worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from torchmetrics.functional.text import squad

from rotary_foundry.evaluation.answer_metrics import SCORES, geometric, normalised, score
from rotary_foundry.evaluation.recall_tasks import rouge_l

WORD = st.sampled_from(["the", "a", "an", "The", "Cat,", "cat", "sat", "mat.", "dog-house", "dog", "3"])
WORDS = st.lists(WORD, max_size=8).map(" ".join)


@pytest.mark.parametrize(
    ("answer", "right", "scores"),  # of SCORES, in their order
    [
        ("The  cat!", ["a CAT"], (1, 1, 0.5, 0, 0.5)),  # ROUGE keeps articles
        ("the cat sat", ["cat sat down"], (0, 0.8, 2 / 3, 0.5, 2 / 3)),
        ("cat", ["dog", "cat"], (1, 1, 1, 0, 1)),
        ("one two", ["two one"], (0, 1, 1, 0, 0.5)),
        ("", ["cat"], (0, 0, 0, 0, 0)),
        ("dog", ["cat"], (0, 0, 0, 0, 0)),
    ],
)
def test_scores_worked_out_by_hand(answer, right, scores):
    assert score(answer, right) == pytest.approx(dict(zip(SCORES, scores, strict=True)))


@given(WORDS, st.lists(WORDS.filter(normalised), min_size=1, max_size=3))
def test_scores_are_those_of_torchmetrics_squad_and_of_rouge_score(answer, right):
    found = score(answer, right)
    if normalised(answer):  # torchmetrics takes an empty answer as SQuAD 2 does
        target = {"answers": {"answer_start": [0] * len(right), "text": right}, "id": "1"}
        theirs = squad([{"prediction_text": answer, "id": "1"}], [target])
        assert found["exact_match"] == pytest.approx(float(theirs["exact_match"]) / 100)
        assert found["f1"] == pytest.approx(float(theirs["f1"]) / 100)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    for ours, name in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        assert found[ours] == pytest.approx(max(scorer.score(one, answer)[name].fmeasure for one in right))
    assert found["rouge_l"] == pytest.approx(max(rouge_l(answer, one) for one in right))  # of the suite recall


def test_the_geometric_mean_is_of_the_three():
    assert geometric(np.array([[0.2, 0.1, 0.4], [0.5, 0.0, 0.5]])) == pytest.approx([0.2, 0.0])
