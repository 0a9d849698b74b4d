"""How sure a number is: the bootstrap over documents.

Documents are drawn with replacement, and not tokens: what a model makes of one token of a document says much of the
next, and intervals over tokens would be far too narrow. All that is measured here is a ratio of two sums over
documents. Intervals are percentiles of 95 %: with few documents (under ten or so) they are too narrow, as any are.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from encoder_foundry.evaluation.results import Measure

INTERVAL = 2.5, 97.5  # percentiles


def draws(units: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """How often each unit stands in each resample. int64 [resamples, units]"""
    generator = np.random.default_rng(seed)
    return generator.multinomial(units, np.full(units, 1 / units), size=resamples)


def ratio(units: Mapping[str, tuple[float, float]], resamples: int, seed: int) -> Measure:
    """Sum of numerators over sum of denominators, with its interval.

    Args:
        units: by document: numerator and denominator.

    Raises:
        ValueError: nothing to divide by.
    """
    sums = np.array(list(units.values()), dtype=np.float64).reshape(-1, 2)  # [units, 2]
    total = sums.sum(axis=0)
    if not total[1]:
        raise ValueError("no document has anything to be measured")
    return interval(float(total[0] / total[1]), _ratios(sums, draws(len(sums), resamples, seed)))


def difference(
    ours: Mapping[str, tuple[float, float]], theirs: Mapping[str, tuple[float, float]], resamples: int, seed: int
) -> Measure | None:
    """How much larger our ratio is than theirs, over the documents that both have; None if there are none."""
    common = [unit for unit in ours if unit in theirs]
    of_ours, of_theirs = (np.array([sums[unit] for unit in common], dtype=np.float64) for sums in (ours, theirs))
    if not common or not of_ours[:, 1].sum() or not of_theirs[:, 1].sum():
        return None
    counts = draws(len(common), resamples, seed)
    value = _ratios(of_ours, np.ones((1, len(common)))) - _ratios(of_theirs, np.ones((1, len(common))))
    return interval(float(value[0]), _ratios(of_ours, counts) - _ratios(of_theirs, counts))


def interval(value: float, resampled: NDArray[np.float64]) -> Measure:
    """A value with the interval that its resampled values give; resamples in which it was not defined are left out.

    Where all of them are the same there is no interval: nothing found in any document does not make it certain that
    nothing ever will be.
    """
    resampled = resampled[np.isfinite(resampled)]
    if not len(resampled) or np.ptp(resampled) <= 1e-12 * max(1.0, abs(value)):
        return Measure(value)
    low, high = np.percentile(resampled, INTERVAL)
    return Measure(value, float(low), float(high))


def _ratios(sums: NDArray[np.float64], counts: NDArray) -> NDArray[np.float64]:
    """sums [units, 2] and counts [resamples, units] → [resamples], not a number where there is nothing to divide by."""
    numerators, denominators = (counts @ sums).T
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominators > 0, numerators / denominators, np.nan)
