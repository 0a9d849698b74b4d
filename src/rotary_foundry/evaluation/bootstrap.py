"""Confidence intervals by the bootstrap over documents.

The bootstrap draws documents with replacement, not tokens. The tokens of a document are correlated, so intervals over
tokens would be far too narrow. Every measure here is a ratio of two sums over documents. Intervals are 95 % percentile
intervals; with few documents (under about ten) they are too narrow, as any method's are.

If nothing was found in any document, or everything in all, all resamples are equal and the bootstrap interval would
have width zero. Then the interval ends at Clopper and Pearson's bound for 0 of n. n is the number of documents, for the
reason above. For example, after 40 documents without a find, up to 8.8 % of all documents may have one, and at most
that share of the questions may be found (if documents have equal weights). A document has many names or tokens. With
their number as n, the bound would be far smaller, and correct only if those of one document were independent.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from rotary_foundry.evaluation.results import Measure

INTERVAL = 2.5, 97.5  # percentiles
Range = tuple[float, float]  # bounds of a document's ratio: 0 and 1 if the numerator is a part of the denominator


def draws(units: int, resamples: int, seed: int | tuple[int, ...]) -> NDArray[np.int64]:
    """Return how often each unit occurs in each resample, int64 [resamples, units]."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(units, np.full(units, 1 / units), size=resamples)


def ratio(units: Mapping[str, tuple[float, float]], resamples: int, seed: int, within: Range | None = None) -> Measure:
    """Compute the sum of numerators over the sum of denominators, with its interval.

    Args:
        units: numerator and denominator by document.
        within: bounds of a document's ratio; None if it has none, as for a loss.

    Raises:
        ValueError: the sum of denominators is zero.
    """
    sums = np.array(list(units.values()), dtype=np.float64).reshape(-1, 2)  # [units, 2]
    total = sums.sum(axis=0)
    if not total[1]:
        raise ValueError("no document has anything to measure")
    measured = sums[sums[:, 1] > 0]
    value = float(total[0] / total[1])
    if within is not None and value in (*within, 0) and (measured[:, 0] == value * measured[:, 1]).all():
        return unanimous(value, len(measured), within)
    return interval(value, _ratios(sums, draws(len(sums), resamples, seed)))


def difference(
    ours: Mapping[str, tuple[float, float]],
    theirs: Mapping[str, tuple[float, float]],
    resamples: int,
    seed: int,
    within: Range | None = None,
) -> Measure | None:
    """Compute our ratio minus theirs over the documents that both have; None if they have none in common.

    Args:
        within: as in `ratio`, for each of the two ratios.
    """
    common = [unit for unit in ours if unit in theirs]
    of_ours, of_theirs = (np.array([sums[unit] for unit in common], dtype=np.float64) for sums in (ours, theirs))
    if not common or not of_ours[:, 1].sum() or not of_theirs[:, 1].sum():
        return None
    if within is not None and np.array_equal(of_ours, of_theirs):
        apart = within[1] - within[0]
        return unanimous(0.0, int((of_ours[:, 1] > 0).sum()), (-apart, apart))
    counts = draws(len(common), resamples, seed)
    value = _ratios(of_ours, np.ones((1, len(common)))) - _ratios(of_theirs, np.ones((1, len(common))))
    return interval(float(value[0]), _ratios(of_ours, counts) - _ratios(of_theirs, counts))


def unanimous(value: float, count: int, within: Range) -> Measure:
    """Return the interval of a value that all `count` documents have: how far unseen documents could move it."""
    others = float(betaincinv(1, count, INTERVAL[1] / 100))  # Clopper and Pearson's upper end for 0 of `count`
    return Measure(value, value - others * (value - within[0]), value + others * (within[1] - value))


def interval(value: float, resampled: NDArray[np.float64]) -> Measure:
    """Return a value with the interval of its resampled values, leaving out resamples in which it is undefined.

    There is no interval if all resampled values are equal, for example with a single document.
    """
    resampled = resampled[np.isfinite(resampled)]
    if not len(resampled) or np.ptp(resampled) <= 1e-12 * max(1.0, abs(value)):
        return Measure(value)
    low, high = np.percentile(resampled, INTERVAL)
    return Measure(value, float(low), float(high))


def _ratios(sums: NDArray[np.float64], counts: NDArray) -> NDArray[np.float64]:
    """Return ratios [resamples] of sums [units, 2] with counts [resamples, units]; NaN if the denominator is 0."""
    numerators, denominators = (counts @ sums).T
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominators > 0, numerators / denominators, np.nan)
