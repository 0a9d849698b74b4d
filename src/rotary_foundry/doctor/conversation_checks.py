"""Count the conversations of instruction-tuning stages, and warn if none has the length that `target_prompts` needs."""

from collections.abc import Iterator
from math import isfinite
from pathlib import Path

from rotary_foundry.data.corpus import open_objective
from rotary_foundry.data.rows import Manifest
from rotary_foundry.doctor.finding import Finding, doubtful, good
from rotary_foundry.objectives.instruction import Instruction
from rotary_foundry.recipe import Recipe

SUBJECT = "conversations"


def check_conversations(recipe: Recipe) -> Iterator[Finding]:
    """Check the conversations of all stages that train on some; `recipe.data.local` must have valid manifests."""
    for stage, config in recipe.stages.items():
        objective = open_objective(recipe, stage)
        if not isinstance(objective, Instruction):
            continue
        sources = [source for source in recipe.data.sources if config.mixture is None or config.mixture.get(source)]
        folders = (Path(recipe.data.local, source, str(config.row_length), "train") for source in sources)
        manifests = [manifest for manifest in map(Manifest.read, folders) if manifest.responses is not None]
        rows, examples, tokens = (
            sum(getattr(each, key) for each in manifests) for key in ("rows", "documents", "tokens")
        )
        if not examples:
            continue
        share = sum(each.responses["0"] for each in manifests) / tokens
        yield good(SUBJECT, f"{stage}: {examples:,} in {rows:,} rows; {share:.1%} of their tokens are responses")
        least = objective.shortest_prompt
        if isfinite(least) and not any(_may_reach(each, least) for each in manifests):
            yield doubtful(
                SUBJECT,
                f"{stage}: no conversation has {least:,} tokens, so no prompt is predicted",
                "set a smaller length in target_prompts, or add longer conversations",
            )


def _may_reach(manifest: Manifest, tokens: float) -> bool:
    """Return False if a manifest counts no conversation of at least `tokens` tokens."""
    longer = [documents for length, (documents, _) in (manifest.longer or {}).items() if int(length) < tokens]
    return tokens <= manifest.row_length and min(longer, default=manifest.documents) > 0
