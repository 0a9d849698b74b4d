"""Score generated answers, each score from 0 to 1: exact match, F1 of tokens, and ROUGE.

- Exact match and F1 are those of SQuAD 1.1 (arXiv 1606.05250): in lower case, without punctuation, articles and
  repeated blanks. The scorers of Qasper, LongBench and SCROLLS (NarrativeQA, QuALITY) use them too.
- ROUGE is the F1 of the package rouge_score without its stemmer, as the package `evaluate` and SCROLLS call it. Its
  words consist of the letters a to z and digits, so a text in another script has none.
- If there are several right answers, each score counts the best of them.
- ROUGE's geometric mean is taken over the means of all examples, as in SCROLLS (arXiv 2201.03533). For single examples
  it would be 0 for every answer without a common pair of words.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer

ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}  # our names → the package's
SCORES = ("exact_match", "f1", *ROUGE)
ROUGE_GEO = "rouge_geo"
METRICS = (*SCORES, ROUGE_GEO)

_scorer = RougeScorer(list(ROUGE.values()), use_stemmer=False)


def score(answer: str, right: Sequence[str]) -> dict[str, float]:
    """Score an answer by each of SCORES.

    Args:
        right: the right answers, at least one.
    """
    rouge = _scorer.score_multi(right, answer)
    return {
        "exact_match": max(float(normalised(answer) == normalised(one)) for one in right),
        "f1": max(f1(answer, one) for one in right),
        **{name: rouge[theirs].fmeasure for name, theirs in ROUGE.items()},
    }


def normalised(answer: str) -> str:
    """Return an answer as SQuAD compares it."""
    kept = "".join(character for character in answer.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def f1(answer: str, right: str) -> float:
    """Return the F1 of an answer's words, each counted as often as it occurs; 0 if no word is right."""
    ours, theirs = (normalised(text).split() for text in (answer, right))
    common = (Counter(ours) & Counter(theirs)).total()
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def geometric(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the geometric mean of ROUGE-1, ROUGE-2 and ROUGE-L; means: [..., 3] → [...]"""
    return np.prod(means, axis=-1) ** (1 / len(ROUGE))
