"""The optimizers that a recipe can name, with the arguments that each one takes. Imports no torch.

A recipe's `optimizer:` has a `name` and the arguments of that optimizer. A stage's `optimizer:` may change those that
`per_stage` lists, for that stage alone. `optim/optimizers.py` has the class for each name.

To add an optimizer, write a dataclass here, its line in OPTIMIZERS, and its line in `optim/optimizers.py`.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import inf
from typing import Any, ClassVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rotary_foundry.recipe.loading import not_plain
from rotary_foundry.utils.wording import nearest


@dataclass
class OptimizerConfig:
    """The settings of all optimizers. The learning rate belongs to the stage."""

    name: str
    betas: tuple[float, float]
    eps: float
    weight_decay: float

    per_stage: ClassVar[tuple[str, ...]] = ("betas", "weight_decay")
    decay_all: ClassVar[bool] = False
    """Apply weight decay to every tensor if true, to matrices only if false."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (argument, complaint) for every invalid value."""
        if not all(0 <= beta < 1 for beta in self.betas):
            yield "betas", f"{list(self.betas)}: both have to be in [0, 1)"
        if not 0 < self.eps < inf:
            yield "eps", f"{self.eps} is not positive and finite"
        if not 0 <= self.weight_decay < 1:
            yield "weight_decay", f"{self.weight_decay} is not in [0, 1)"

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the optimizer's class, by name."""
        return {key: value for key, value in asdict(self).items() if key != "name"}

    def scheduled(self) -> dict[str, Any]:
        """Return the arguments that the plan sets at every update, by name."""
        return {key: getattr(self, key) for key in self.per_stage}

    def changed(self, changes: dict[str, Any]) -> "OptimizerConfig":
        """Return the settings with a stage's changes, which must have no `change_problems`."""
        if not changes:
            return self
        return OmegaConf.to_object(OmegaConf.unsafe_merge(OmegaConf.structured(self), changes))

    def change_problems(self, changes: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield (argument, complaint) for every change that a stage cannot make."""
        for key, value in changes.items():
            if key in ("name", "eps"):
                yield key, f"is the same in every stage; a stage may change {', '.join(self.per_stage)}"
                return
            if key not in self.per_stage:
                yield key, f"is no argument of {self.name} that a stage may change; {nearest(key, self.per_stage)}"
                return
            try:
                wrong = next(not_plain(self.changed({key: value})), None)
            except (OmegaConfBaseException, TypeError) as error:
                wrong = key, str(error).splitlines()[0]
            if wrong:
                yield wrong
                return
        found = self.changed(changes).problems()
        yield from ((key, complaint) for key, complaint in found if key in changes)


@dataclass
class StableAdamWConfig(OptimizerConfig):
    """StableAdamW. Its weight decay is fully decoupled: a step multiplies by 1 - (lr / max_lr) * weight_decay."""


@dataclass
class AdamWConfig(OptimizerConfig):
    """torch's AdamW, fused. A step multiplies by 1 - lr * weight_decay."""

    max_grad_norm: float | None = None  # gradients are clipped to this norm over all parameters; null: no clipping

    per_stage: ClassVar[tuple[str, ...]] = ("betas", "weight_decay", "max_grad_norm")

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.max_grad_norm is not None and not 0 < self.max_grad_norm < inf:
            yield "max_grad_norm", f"{self.max_grad_norm} is not positive and finite; use null for no clipping"


@dataclass
class LAMBConfig(OptimizerConfig):
    """LAMB as in bert4keras. Weight decay is part of the update and applies to every tensor; no clipping."""

    decay_all: ClassVar[bool] = True


OPTIMIZERS: dict[str, type[OptimizerConfig]] = {
    "stable_adamw": StableAdamWConfig,
    "adamw": AdamWConfig,
    "lamb": LAMBConfig,
}
