"""The class for each optimizer name in a recipe; `recipe/optimizer_settings.py` has the arguments."""

from typing import Protocol

from torch import nn

from rotary_foundry.optim.adamw import AdamW
from rotary_foundry.optim.decay_groups import decay_groups
from rotary_foundry.optim.lamb import LAMB
from rotary_foundry.optim.stable_adamw import StableAdamW
from rotary_foundry.optim.step_metrics import StepMetrics
from rotary_foundry.recipe.optimizer_settings import OptimizerConfig

CLASSES = {"stable_adamw": StableAdamW, "adamw": AdamW, "lamb": LAMB}


class RecipeOptimizer(Protocol):
    """The attributes that callbacks and algorithms use, in addition to those of every torch optimizer."""

    record_metrics: bool
    metrics: StepMetrics | None
    param_groups: list[dict]  # each with `decays`, as `decay_groups` makes them

    def initialise_state(self) -> None:
        """Make the state of every parameter that has none."""


def build_optimizer(config: OptimizerConfig, model: nn.Module, max_lr: float) -> RecipeOptimizer:
    """Build a recipe's optimizer for a model's parameters. SegmentSwitch sets the scheduled values before every step.

    Args:
        config: the optimizer's name and arguments.
        model: whole or sharded.
        max_lr: the highest learning rate of the stage.
    """
    arguments = config.arguments()
    groups = decay_groups(model, arguments["weight_decay"], config.decay_all)
    return CLASSES[config.name](groups, lr=max_lr, **arguments)
