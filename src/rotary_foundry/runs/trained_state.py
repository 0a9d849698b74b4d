"""The model that a run begins with (`init_from`), as far as a recipe needs it: without its weights, and without torch.

What a recipe with `init_from` leaves open is the source's: every key of the model's shape, and theta of the global
layers in every stage that gives none. So nobody types a shape, and a model that was trained at a theta of 160,000 does
not go on at 10,000 because a file said so long ago. What a recipe does give is meant: a larger shape is grown, another
theta is a switch, and the plan shows both thetas.

A run that has begun keeps what it began with, which is in its recipe.yaml: the source may go on training, or be gone.
Only on this disk, though: a recipe is read before a store is asked.
"""

from dataclasses import dataclass, fields
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from rotary_foundry.models.modernbert.huggingface_config import CONFIG, from_huggingface, read_config
from rotary_foundry.recipe.loading import load_config
from rotary_foundry.recipe.plan import Segment, plan_in_force
from rotary_foundry.recipe.schema import NOT_SHAPE, ModelConfig, Recipe
from rotary_foundry.runs.run_folder import CompleteCheckpoint, RunFolder, complete_checkpoints, read_checkpoint
from rotary_foundry.utils.errors import ConfigurationError, FoundryError


@dataclass(frozen=True)
class Source:
    """A model to begin with."""

    model: ModelConfig  # its shape; the other keys say nothing
    rope_theta: float  # that its global layers were last trained with
    longest_row: int | None  # that it was trained on, in tokens; None: nothing says so
    tokenizer: Path  # the folder for its tokenizer, which may not be there


def read_source(path: str | Path) -> Source:
    """The model at a path: a run (its newest checkpoint), a checkpoint, or a transformers directory.

    Raises:
        FoundryError: nothing there to begin with.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigurationError(
            f"{path}: no such file or folder; a model of the Hugging Face Hub has to be downloaded to a folder first"
        )
    if (path / CONFIG).is_file():
        config, theta = from_huggingface(path)
        return Source(config, theta, read_config(path).get("max_position_embeddings"), path)
    state = find_trained_state(path)
    return Source(state.recipe.model, state.rope_theta, state.longest_row, state.run.tokenizer)


def fill_from_source(config: DictConfig) -> None:
    """Give a recipe what it leaves open of the model's shape and of thetas.

    Raises:
        FoundryError: something is left open, and there is no `init_from`, or nothing there to begin with.
    """
    if OmegaConf.is_missing(config, "model"):
        config.model = OmegaConf.structured(ModelConfig)
    shape = [field.name for field in fields(ModelConfig) if field.name not in NOT_SHAPE]
    shape = [key for key in shape if OmegaConf.is_missing(config.model, key)]
    stages = [] if OmegaConf.is_missing(config, "stages") else list(config.stages)
    stages = [name for name in stages if OmegaConf.is_missing(config.stages[name], "rope_theta")]
    left_open = [f"model.{key}" for key in shape] + [f"stages.{name}.rope_theta" for name in stages]
    if config.init_from is None and left_open and OmegaConf.missing_keys(config) <= set(left_open):
        raise ConfigurationError(
            f"'{left_open[0]}' is required and not given; nor is 'init_from', a run, a checkpoint or a Hugging Face "
            "directory to take it from"
        )
    if config.init_from is None or not left_open:
        return
    begun = _begun(config)
    if begun is None:
        try:
            source = read_source(config.init_from)
        except FoundryError as error:
            raise ConfigurationError(f"'init_from': {error}") from None
        model, theta, thetas = source.model, source.rope_theta, {}
    else:
        thetas = {name: stage.rope_theta for name, stage in begun.stages.items()}
        model, theta = begun.model, list(thetas.values())[-1]
    for key in shape:
        config.model[key] = getattr(model, key)
    for name in stages:
        config.stages[name].rope_theta = thetas.get(name, theta)


def _begun(config: DictConfig) -> Recipe | None:
    """The recipe of the run that this one goes on with; None if it has no checkpoint yet, or began with another."""
    if OmegaConf.is_missing(config, "run_name"):
        return None
    run = RunFolder.of(config)
    if not run.recipe.is_file() or not complete_checkpoints(run.checkpoints.glob("ba*")):
        return None
    there = load_config(run.recipe, Recipe)
    return there if there.init_from == config.init_from else None


@dataclass(frozen=True)
class TrainedState:
    """What training says of a checkpoint."""

    run: RunFolder
    checkpoint: CompleteCheckpoint
    recipe: Recipe
    trained: tuple[Segment, ...]  # what it was trained by, without what rollbacks abandoned; at least one

    @property
    def rope_theta(self) -> float:
        """Theta that the global layers were last trained with."""
        return self.trained[-1].rope_theta_global

    @property
    def longest_row(self) -> int:
        """In tokens."""
        return max(segment.row_length for segment in self.trained)


def find_trained_state(path: str | Path) -> TrainedState:
    """The checkpoint at a path, or the newest of the run at it, with its recipe.

    Raises:
        ConfigurationError: no complete checkpoint is there.
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
    recipe = load_config(run.recipe, Recipe)  # whole, and checked when the run began
    plan = plan_in_force(recipe, run.rollbacks()[: checkpoint.rollbacks])
    trained = plan.between(0, checkpoint.token) or plan.segments[0].split(0)[:1]
    return TrainedState(run, checkpoint, recipe, trained)
