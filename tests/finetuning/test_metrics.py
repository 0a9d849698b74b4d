"""Metrics against scikit-learn, SciPy and seqeval on whole data, given in batches as the Trainer gives them."""

import pytest
import scipy.stats
import seqeval.metrics
import sklearn.metrics
import torch

from rotary_foundry.finetuning.example_encoding import NO_LABEL
from rotary_foundry.finetuning.head_models import ChoiceScores, TextEntities, WindowAnswer
from rotary_foundry.finetuning.metrics import make_metric, overlap_f1


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("accuracy", sklearn.metrics.accuracy_score),
        ("mcc", sklearn.metrics.matthews_corrcoef),
        ("f1", sklearn.metrics.f1_score),
        ("macro_f1", lambda true, predicted: sklearn.metrics.f1_score(true, predicted, average="macro")),
    ],
)
def test_a_classification_metric_is_scikit_learns(name, reference):
    torch.manual_seed(0)
    labels = 2 if name == "f1" else 3
    logits, true = torch.randn(100, labels), torch.randint(labels, (100,))
    metric = make_metric(name, [str(label) for label in range(labels)])
    for start in range(0, 100, 30):
        metric.update(logits[start : start + 30], true[start : start + 30])
    assert metric.compute().item() == pytest.approx(reference(true, logits.argmax(1)), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "reference"), [("pearson", scipy.stats.pearsonr), ("spearman", scipy.stats.spearmanr)]
)
def test_a_correlation_is_scipys_and_0_where_all_predictions_are_the_same(name, reference):
    torch.manual_seed(0)
    predicted, true = torch.randn(50), torch.randn(50)
    metric = make_metric(name, [])
    metric.update(predicted, true)
    assert metric.compute().item() == pytest.approx(reference(predicted, true).statistic, abs=1e-5)
    metric.reset()
    metric.update(torch.ones(50), true)
    assert metric.compute().item() == 0


def test_entities_count_whole_and_tokens_without_a_label_do_not():
    labels = ["O", "B-PER", "I-PER", "B-LOC"]
    true = [[1, 2, 0, 3], [0, 1, 0]]
    predicted = [[1, 0, 0, 3], [0, 1, 3]]
    expected = seqeval.metrics.f1_score(
        [[labels[number] for number in words] for words in true],
        [[labels[number] for number in words] for words in predicted],
    )
    assert expected == pytest.approx(2 * 2 / (3 + 4))  # two of three found, of four predicted
    f1, accuracy = (make_metric(name, labels) for name in ("entity_f1", "word_accuracy"))
    for words, guesses in zip(true, predicted, strict=True):  # a batch each, of another length
        targets = torch.tensor([[NO_LABEL, *words, NO_LABEL]])
        logits = torch.nn.functional.one_hot(torch.tensor([[3, *guesses, 1]]), 4).float()
        f1.update(logits, targets)
        accuracy.update(logits, targets)
    assert f1.compute().item() == pytest.approx(expected)
    assert accuracy.compute().item() == pytest.approx(5 / 7)


def computed(name, *batches) -> float:
    metric = make_metric(name, [])
    metric.update([ChoiceScores((0.0, 1.0), 0, 9, "")] if name == "choice_accuracy" else [])
    metric.reset()
    for batch in batches:
        metric.update(batch)
    return metric.compute().item()


def test_within_a_group_every_choice_is_taken_once():
    """Alone, both blanks would take the first choice; together, the second blank loses less by the other."""
    first, second = ChoiceScores((5.0, 1.0, 0.0), 0, 0, ""), ChoiceScores((4.0, 3.0, 0.0), 1, 0, "")
    assert computed("choice_accuracy", [first, second]) == 1.0
    assert computed("choice_accuracy", [first], [second._replace(group=1)]) == 0.5
    assert computed("choice_accuracy", [first], [second]) == 1.0  # a group that two batches share


def test_a_question_has_the_answer_of_its_best_window():
    rights = ("6397千米", "6397 千米。")
    windows = [
        WindowAnswer(0, 2.0, "长江", rights, ""),
        WindowAnswer(0, 3.0, "6397千米", rights, ""),
        WindowAnswer(1, -1.0, "上海", ("武汉",), ""),
    ]
    assert computed("exact_match", windows[:1], windows[1:]) == 0.5
    assert computed("answer_f1", windows) == 0.5


@pytest.mark.parametrize(
    ("predicted", "right", "expected"),
    [
        ("长江", "长江", 1.0),
        ("长江，", "《长江》", 1.0),  # without punctuation
        ("GPT 3", "gpt3", 0.0),  # two words and one
        ("在长江", "长江", 2 * 2 / (3 + 2)),
        ("长 江全长", "长江很长", 2 * 2 / (4 + 4)),  # the longest run; the last character belongs to none
        ("6397千米", "6398千米", 2 * 2 / (3 + 3)),  # a number is one unit
        ("", "长江", 0.0),
    ],
)
def test_the_f1_of_an_answer_is_of_its_longest_common_run(predicted, right, expected):
    assert overlap_f1(predicted, right) == pytest.approx(expected)
    assert overlap_f1(right, predicted) == pytest.approx(expected)


def test_an_entity_counts_if_its_kind_and_its_ends_are_right():
    right = frozenset({(0, 0, 2), (1, 5, 8)})
    texts = [
        TextEntities(frozenset({(0, 0, 2), (0, 5, 8)}), right, "", ""),  # one is of another kind
        TextEntities(frozenset({(1, 5, 7)}), right, "", ""),  # one ends elsewhere
    ]
    assert computed("span_f1", texts[:1], texts[1:]) == pytest.approx(2 * 1 / (3 + 4))
    assert computed("span_f1", [TextEntities(frozenset(), frozenset(), "", "")]) == 0.0
