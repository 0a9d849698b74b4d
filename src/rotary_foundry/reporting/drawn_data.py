"""For each stage of a plan: the epochs of each source, the rows drawn of each task, and the context of its targets."""

from dataclasses import asdict, dataclass
from pathlib import Path

from rotary_foundry.data.corpus import open_objective
from rotary_foundry.data.rows import MANIFEST, Manifest
from rotary_foundry.data.target_context import context_shares, rows_drawn
from rotary_foundry.recipe import Plan, Recipe
from rotary_foundry.recipe.plan import Segment

SHOWN = (128, 512)  # counted lengths in a table: these, and all above the second


@dataclass(frozen=True)
class DrawnTask:
    """The rows that a multi-task stage draws of a task."""

    kind: str
    rows: int  # in the data
    share: float  # of the blocks
    blocks: float  # per update, on average over the stage
    epochs: float


@dataclass(frozen=True)
class DrawnData:
    """The epochs, the tasks and the context of one stage."""

    stage: str
    row_length: int
    tasks: dict[str, DrawnTask]  # of a multi-task stage
    epochs: dict[str, float]  # by source: rows drawn / rows in the data
    context: dict[int, float] | None  # by a number of tokens: share of targets that see at least so many; None: unknown
    conversations: float | None = None  # drawn; None: the sources have no conversations
    responses: dict[str, float] | None = None  # by source: share of the response tokens drawn
    response_share: float | None = None  # of the tokens drawn

    def to_json(self) -> dict:
        """Return the figures as plain JSON types."""
        context = self.context and {str(at_least): share for at_least, share in self.context.items()}
        drawn = {"row_length": self.row_length, "epochs": self.epochs, "context": context}
        if self.tasks:
            drawn["tasks"] = {name: asdict(task) for name, task in self.tasks.items()}
        if self.responses is not None:
            counts = ("conversations", "responses", "response_share")
            drawn |= {key: getattr(self, key) for key in counts}
        return drawn

    @property
    def shown(self) -> dict[int, float]:
        """Return the shares for a table: at 128, 512, 1,024 and so on."""
        return {length: share for length, share in (self.context or {}).items() if length in SHOWN or length > SHOWN[1]}


def drawn_data(recipe: Recipe, plan: Plan) -> list[DrawnData]:
    """Compute what each stage draws, without stretches that a rollback abandons. Reads only manifests.

    Returns:
        An entry for each stage; none if the corpus is not at `data.local`.

    Raises:
        DataError: a manifest of an existing corpus is missing or broken.
    """
    if not (Path(recipe.data.local) / "tokenizer").is_dir():
        return []
    stages: dict[str, list[Segment]] = {}
    for segment in plan.segments:
        stages.setdefault(segment.stage, []).append(segment)
    return [_of_stage(recipe, segments) for segments in stages.values()]


def _of_stage(recipe: Recipe, segments: list[Segment]) -> DrawnData:
    stage, row_length = segments[0].stage, segments[0].row_length
    objective = open_objective(recipe, stage)
    mixture = segments[0].mixture or objective.weights
    folders = {
        source: Path(recipe.data.local, source, str(row_length), "train") for source in mixture or recipe.data.sources
    }
    manifests = {source: Manifest.read(folder) for source, folder in folders.items()}
    rows = rows_drawn(sum(segment.updates * segment.rows for segment in segments), mixture, manifests.items())
    counted = all(manifest.longer is not None for manifest in manifests.values())
    epochs = {source: count / manifests[source].rows for source, count in rows.items()}
    updates, total = sum(segment.updates for segment in segments), sum(rows.values())
    tasks = {
        name: DrawnTask(
            task.kind,
            manifests[name].rows,
            rows[name] / total,
            rows[name] / objective.block_size / updates,
            epochs[name],
        )
        for name, task in objective.tasks.items()
    }
    conversations, responses, response_share = None, None, None
    if objective.weighted and all(manifest.responses for manifest in manifests.values()):
        each = {name: count * manifests[name].responses["0"] / manifests[name].rows for name, count in rows.items()}
        tokens, conversations = (
            sum(count * getattr(manifests[name], key) / manifests[name].rows for name, count in rows.items())
            for key in ("tokens", "documents")
        )
        responses = {name: number / sum(each.values()) for name, number in each.items()}
        response_share = sum(each.values()) / tokens
    sees = objective.causal, objective.document_mask, responses is not None
    return DrawnData(
        stage,
        row_length,
        tasks,
        epochs,
        context_shares(rows, manifests, *sees) if counted else None,
        conversations,
        responses,
        response_share,
    )


def not_counted(recipe: Recipe, stages: list[DrawnData]) -> str | None:
    """Return why epochs or contexts of targets are not known; None if they are known."""
    if not stages:
        return f"{recipe.data.local}: no corpus there yet, so epochs and the context of targets are not known"
    if any(stage.context is None for stage in stages):
        return (
            f"{recipe.data.local}: an earlier version prepared it, and its {MANIFEST} files do not count documents by "
            "length; prepare it again to see how much context targets have"
        )
    return None
