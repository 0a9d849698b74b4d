"""What a run's parameters begin with: drawn at random, or grown from another model (`init_from`)."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from encoder_foundry.errors import FoundryError
from encoder_foundry.interop import open_weights
from encoder_foundry.model.initialisation import initial_value
from encoder_foundry.model.masked_lm import MaskedLM
from encoder_foundry.model.tiling import check_growth, tile_parameter
from encoder_foundry.recipe import Recipe


def first_weights(recipe: Recipe) -> Callable[[str], Tensor]:
    """The first value of every parameter by its name, whole and on the CPU, made when it is asked for.

    Raises:
        FoundryError: `init_from` holds no model that this one can be grown from.
    """
    if recipe.init_from is None:
        with torch.device("meta"):
            shapes = {name: value.shape for name, value in MaskedLM(recipe.model, 1.0).state_dict().items()}
        return lambda name: initial_value(name, shapes[name], recipe.model.num_hidden_layers, recipe.seed)
    try:
        source, weights = open_weights(recipe.init_from)
        check_growth(source, recipe.model)
    except FoundryError as error:
        raise type(error)(f"init_from: {error}") from error
    return partial(tile_parameter, source_state=weights, source=source, target=recipe.model)
