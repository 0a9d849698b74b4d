"""The initial parameters of a run: random, or grown from another model (`init_from`)."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from rotary_foundry.data.same_tokenizer import check_same_tokenizer
from rotary_foundry.interop import open_weights
from rotary_foundry.models.family import Family, Shape
from rotary_foundry.models.growing import tile_parameter
from rotary_foundry.models.task_heads import HEADS, head_value
from rotary_foundry.recipe import Recipe
from rotary_foundry.runs.checkpoint_store import open_store
from rotary_foundry.runs.run_folder import RunFolder
from rotary_foundry.runs.trained_state import read_source
from rotary_foundry.utils.errors import ConfigurationError, DataError, FoundryError


def first_weights(recipe: Recipe, network: nn.Module | None = None) -> Callable[[str], Tensor]:
    """Return a function from a parameter's name to its initial value: the full tensor, on the CPU, made on demand.

    Args:
        recipe: the run's recipe.
        network: the network, whole or sharded, if it has heads for tasks. Heads are always new.

    Raises:
        FoundryError: `init_from` has no model that this one can be grown from.
    """
    if recipe.init_from is None:
        of_family = partial(recipe.family.initial_value, shape=recipe.model.shape, seed=recipe.seed)
    else:
        family, source, weights = _open_source(recipe, recipe.init_from)
        shape = recipe.model.shape
        of_family = partial(tile_parameter, source_state=weights, family=family, source=source, target=shape)
    sizes = {} if network is None else {name: tuple(value.shape) for name, value in network.named_parameters()}
    return lambda name: head_value(name, sizes[name], recipe.seed) if name.startswith(HEADS) else of_family(name)


def check_init_from(recipe: Recipe) -> None:
    """Check, before anything is written, that the model can be grown from `init_from` and has the shards' tokenizer.

    A run with checkpoints resumes from them. Its source is not opened again and may be deleted. (On an empty disk, with
    the checkpoints in a store, a recipe that omits its shape or thetas still needs the source.)

    Raises:
        FoundryError: `init_from` has no model that this one can be grown from, or its tokenizer is not the shards'.
    """
    if recipe.init_from is None:
        return
    folder = RunFolder.of(recipe)
    store = open_store(recipe, folder)
    if folder.newest_checkpoint(elsewhere=[] if store is None else store.checkpoints()) is None:
        _open_source(recipe, recipe.init_from)
        tokenizer = read_source(recipe.init_from).tokenizer
        remedy = f"prepare the data again with tokenizer.path={tokenizer}"
        try:
            check_same_tokenizer(Path(recipe.data.local) / "tokenizer", tokenizer, remedy)
        except DataError as error:
            raise DataError(f"'init_from': {recipe.init_from}: {error}") from error


def _open_source(recipe: Recipe, path: str) -> tuple[Family, Shape, Mapping[str, Tensor]]:
    try:
        family, source, weights = open_weights(path)
    except FoundryError as error:  # it names the path
        raise type(error)(f"'init_from': {error}") from error
    try:
        recipe.model.shape.check_growth(source)
    except ConfigurationError as error:
        raise ConfigurationError(f"'init_from': {path}: {error}") from error
    return family, source, weights
