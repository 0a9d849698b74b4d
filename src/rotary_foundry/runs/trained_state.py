"""Read the facts about the model at a path, without its weights and without torch.

A path is a run (then its newest checkpoint), a checkpoint, or a transformers directory. Training, export, evaluation
and `init_from` all use this module.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rotary_foundry.models.config_json import CONFIG, family_of, read_config
from rotary_foundry.models.family import Family, Shape
from rotary_foundry.recipe.compilation import compile_stages
from rotary_foundry.recipe.loading import load_config, load_keys
from rotary_foundry.recipe.plan import Plan, Rollback, Segment
from rotary_foundry.recipe.schema import Recipe, schema_of
from rotary_foundry.runs.run_folder import CompleteCheckpoint, RunFolder, read_checkpoint
from rotary_foundry.utils.errors import ConfigurationError, DataError
from rotary_foundry.utils.wording import one_line


@dataclass(frozen=True)
class Source:
    """A model that a run can begin with."""

    family: Family
    shape: Shape
    knobs: dict[str, float]  # the knobs that belong to its weights, with the values of the last training
    longest_row: int | None  # the longest row that it was trained on, in tokens; None: unknown
    tokenizer: Path  # the folder of its tokenizer, which may be missing
    tokens_per_update: int | None = None  # of its last update; None: unknown


@dataclass(frozen=True)
class TrainedState:
    """The facts about a checkpoint that follow from its run."""

    run: RunFolder
    checkpoint: CompleteCheckpoint
    recipe: Recipe
    rollbacks: tuple[Rollback, ...]  # the run's rollbacks before the checkpoint
    trained: tuple[Segment, ...]  # the segments that it was trained on, without abandoned ones; at least one

    @property
    def family(self) -> Family:
        return self.recipe.family

    @property
    def shape(self) -> Shape:
        return self.recipe.model.shape

    @property
    def knobs(self) -> dict[str, float]:
        """The knobs that belong to the weights, with the values of the last update."""
        last = self.trained[-1]
        values = last.knobs_at(max(last.start_token, last.end_token - last.tokens_per_update))
        return {name: values[name] for name in self.family.knobs_of_weights()}

    @property
    def longest_row(self) -> int:
        """The longest row that the model was trained on, in tokens."""
        return max(segment.row_length for segment in self.trained)


def read_source(path: str | Path) -> Source:
    """Read the facts about the model at a path.

    Raises:
        FoundryError: the path has no model to begin with.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigurationError(
            f"{path}: no such file or folder; a model of the Hugging Face Hub has to be downloaded to a folder first"
        )
    if (path / CONFIG).is_file():
        family = family_of(path)
        shape, knobs = family.huggingface.read_config(path)
        return Source(family, shape, knobs, read_config(path).get("max_position_embeddings"), path)
    state = find_trained_state(path)
    last = state.trained[-1].tokens_per_update
    return Source(state.family, state.shape, state.knobs, state.longest_row, state.run.tokenizer, last)


def find_trained_state(path: str | Path) -> TrainedState:
    """Find the checkpoint at a path, or the newest of the run at it, with its recipe.

    Raises:
        ConfigurationError: the path has no complete checkpoint.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigurationError(f"{path}: no such file or folder")
    in_run = path.parent.name == "checkpoints"
    run = RunFolder(path.parent.parent if in_run else path)
    checkpoint = None
    if not path.is_file():
        checkpoint = read_checkpoint(path) if in_run else run.newest_checkpoint()
    if checkpoint is None:
        raise ConfigurationError(
            f"{path}: no complete checkpoint; give a run folder or RUN/checkpoints/ba<update> (a .pt file "
            "of Composer's and a transformers directory go through `rotary-foundry import`)"
        )
    recipe = recipe_of(run)
    rollbacks = tuple(run.rollbacks()[: checkpoint.rollbacks])
    plan = plan_of(run, recipe, rollbacks)
    trained = plan.between(0, checkpoint.token) or plan.segments[0].split(0)[:1]
    return TrainedState(run, checkpoint, recipe, rollbacks, trained)


def recipe_of(run: RunFolder) -> Recipe:
    """Read a run's recipe, which is complete and was checked when the run began. `data.local` is valid from here.

    Raises:
        ConfigurationError: the recipe is missing or damaged, or another version wrote it.
    """
    family = load_keys(run.recipe, ["model.family"])["model.family"]
    if family is None:
        raise ConfigurationError(f"{run.recipe}: 'model.family' is required and not given")
    recipe = load_config(run.recipe, schema_of(family))
    for key, wrong in (("stages", not recipe.stages), ("seed", not 0 <= recipe.seed < 2**31)):
        if wrong:
            raise ConfigurationError(f"{run.recipe}: '{key}': not what a run was begun with; put back what it wrote")
    return replace(recipe, data=replace(recipe.data, local=run.located(recipe.data.local)))


def plan_of(run: RunFolder, recipe: Recipe, rollbacks: Sequence[Rollback]) -> Plan:
    """Compile the plan of a run's recipe after rollbacks.

    Raises:
        ConfigurationError: the recipe or the ledger has values from which no plan follows, so one of them was changed.
    """
    try:
        return compile_stages(recipe).after(rollbacks)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        where = f"{run.recipe} and {run.ledger.name}" if rollbacks else f"{run.recipe}"
        raise ConfigurationError(
            f"{where}: no plan follows from its values ({one_line(error)}); put back what the run wrote"
        ) from error


def with_data(run: RunFolder, recipe: Recipe, data: str | None) -> Recipe:
    """Return a run's recipe with its data in another folder; None: where `recipe_of` found it.

    Raises:
        DataError: no folder is there, and the data has no remote.
    """
    if data is not None:
        recipe = replace(recipe, data=replace(recipe.data, local=data, remote=None))
    if recipe.data.remote is None and not Path(recipe.data.local).is_dir():
        key = f"{run.recipe}: data.local" if data is None else "data"
        raise DataError(
            f"{key}: {recipe.data.local}: no such folder; put the run's data there again, or give its place: "
            "data=FOLDER to `evaluate`, --data FOLDER to `data trace`"
        )
    return recipe
