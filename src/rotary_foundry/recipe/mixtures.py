"""`long_share` of a stage: the share of long documents, as a short form of a mixture over bands of length.

`length_bands` in a data YAML divides a source into bands by document length. The last band, `<source>_from_<tokens>`,
holds the long documents. `long_share: 0.1` draws a tenth of the rows from such sources and the rest from the others.
Within each group, the shares are those of `mixture`, or equal without one. Shares count rows. A row of packed short
documents has as many slots as a row of one long document, so the shares of tokens are nearly the same.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from rotary_foundry.recipe.schema import Recipe, StageConfig
from rotary_foundry.utils.knob import Problem

LONG = re.compile(r".+_from_[1-9][0-9]*")
MOST_SOURCES, OTHERS = 24, "(others)"  # sources named in a record, chart or line; the rest are OTHERS


def grouped(shares: Mapping[str, float], by: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return the MOST_SOURCES largest shares by source, and the sum of the others as OTHERS.

    A mixture may have thousands of sources, and a chart, a table or a record of every update cannot name them all.

    Args:
        shares: by source.
        by: the shares that decide which are the largest; None: `shares`.
    """
    by = shares if by is None else by
    if len(by) <= MOST_SOURCES:
        return dict(shares)
    largest = set(sorted(by, key=lambda source: (-by[source], source))[:MOST_SOURCES])
    named = {source: share for source, share in shares.items() if source in largest}
    return named | {OTHERS: sum(share for source, share in shares.items() if source not in largest)}


def long_share(mixture: Mapping[str, float] | None) -> float | None:
    """Return the share of a mixture's long sources; None if it has none, or if there is no mixture."""
    if not any(map(LONG.fullmatch, mixture or ())):
        return None
    return sum(share for source, share in mixture.items() if LONG.fullmatch(source)) / sum(mixture.values())


def with_mixtures(recipe: Recipe) -> Recipe:
    """Return the recipe with each stage's `long_share` replaced by a mixture."""
    sources = recipe.data.sources
    return replace(recipe, stages={name: _with_mixture(stage, sources) for name, stage in recipe.stages.items()})


def _with_mixture(stage: StageConfig, sources: Collection[str]) -> StageConfig:
    if stage.long_share is None:
        return stage
    weights = stage.mixture or dict.fromkeys(sources, 1.0)
    groups: dict[bool, float] = {True: 0.0, False: 0.0}  # the weights of long sources and of others
    for source, weight in weights.items():
        groups[_is_long(source)] += weight
    shares = {True: stage.long_share, False: 1 - stage.long_share}
    mixture = {
        source: shares[_is_long(source)] * weight / groups[_is_long(source)] for source, weight in weights.items()
    }
    return replace(stage, mixture=mixture, long_share=None)


def long_share_problems(stage: StageConfig, sources: Collection[str]) -> Iterator[Problem]:
    """Yield (key, complaint) for each reason why a stage's `long_share` cannot be used."""
    if stage.long_share is None:
        return
    if not 0 < stage.long_share < 1:
        yield (
            "long_share",
            f"{stage.long_share} is not between 0 and 1; to draw only one kind of rows, set `mixture` instead",
        )
    drawn = stage.mixture or sources
    if len({_is_long(source) for source in drawn}) != 2:
        yield (
            "long_share",
            f"expected sources named *_from_<tokens>, as `length_bands` in the data YAML makes them, and others; found "
            f"{', '.join(drawn)}. Name them under data.sources, or give a mixture instead",
        )


def _is_long(source: str) -> bool:
    return LONG.fullmatch(source) is not None
