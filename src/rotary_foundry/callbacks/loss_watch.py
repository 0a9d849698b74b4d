"""Detectors of trouble in the loss: plain arithmetic on one number per update, the same on every rank.

The state of a detector is a few numbers that are saved with every checkpoint, so that a resumed run fires at the same
update as an uninterrupted one. All detectors except `non_finite` are reset at each stage, because its loss is not
comparable.
"""

import math
import statistics
from collections import deque
from collections.abc import Collection, Mapping

from rotary_foundry.recipe.schedules import parse_tokens
from rotary_foundry.recipe.schema import PlateauTrigger, RollbackConfig, SpikeTrigger
from rotary_foundry.runs.trouble import Trouble

SMOOTHING = 0.1  # the plateau's running mean looks back over this share of its window
MEMORY = 128  # updates over which a spike's median and deviation are taken
ENOUGH = 16  # updates needed to distinguish a spike from noise
TO_SIGMA = 1.4826  # a normal distribution's standard deviation over its median absolute deviation


def robust_spread(losses: Collection[float]) -> tuple[float, float]:
    """Return the median and a robust standard deviation: the median absolute deviation, scaled for normal noise."""
    median = statistics.median(losses)
    deviation = TO_SIGMA * statistics.median(abs(value - median) for value in losses)
    return median, max(deviation, 1e-6 * abs(median))


class Plateau:
    """Fires when an exponential running mean of the loss has not fallen by `min_delta` over `window` tokens."""

    def __init__(self, config: PlateauTrigger):
        self.window = parse_tokens(config.window)
        self.min_delta = config.min_delta
        self.smoothed = self.best = math.inf
        self.best_token = 0

    def observe(self, token: int, tokens: int, loss: float) -> Trouble | None:
        weight = 1 - math.exp(-tokens / (SMOOTHING * self.window))
        self.smoothed = loss if self.smoothed == math.inf else self.smoothed + weight * (loss - self.smoothed)
        if self.smoothed <= self.best - self.min_delta or self.best == math.inf:
            self.best, self.best_token = self.smoothed, token
        if token - self.best_token < self.window:
            return None
        why = (
            f"the smoothed loss is {self.smoothed:.4f}, and has not fallen by {self.min_delta} below {self.best:.4f} "
            f"since token {self.best_token:_}, for {token - self.best_token:_} tokens"
        )
        return Trouble("plateau", why, self.best_token)

    def needs_token(self) -> int:
        """Return the token before which a rollback would need a checkpoint, if trouble began with the next update."""
        return self.best_token

    def state_dict(self) -> dict:
        return {"smoothed": self.smoothed, "best": self.best, "best_token": self.best_token}

    def load_state_dict(self, state: dict) -> None:
        self.smoothed, self.best, self.best_token = state["smoothed"], state["best"], state["best_token"]


class Spike:
    """Fires if the loss is an outlier above a running median for `patience` updates in a row.

    The scale is the median absolute deviation. Outliers are not stored, so they cannot widen it. A loss is computed
    with the weights before its update. So the update before the first outlier may have caused it, and a rollback does
    not use a checkpoint between the two.
    """

    def __init__(self, config: SpikeTrigger):
        self.z_score = config.z_score
        self.patience = config.patience
        self.losses: deque[float] = deque(maxlen=MEMORY)
        self.last_began = 0  # token at which the last update began
        self.since_token: int | None = None  # start of the update before a series of outliers
        self.outliers = 0

    def observe(self, token: int, tokens: int, loss: float) -> Trouble | None:
        before, self.last_began = self.last_began, token - tokens
        if len(self.losses) < ENOUGH:
            self.losses.append(loss)
            return None
        median, deviation = robust_spread(self.losses)
        z_score = (loss - median) / deviation
        if z_score <= self.z_score:
            self.losses.append(loss)
            self.since_token, self.outliers = None, 0
            return None
        self.outliers += 1
        self.since_token = before if self.since_token is None else self.since_token
        if self.outliers < self.patience:
            return None
        why = (
            f"the loss is {loss:.4f}, {z_score:.1f} robust deviations of {deviation:.4f} above the median {median:.4f} "
            f"of {len(self.losses)} updates; it was over the limit of {self.z_score} for {self.outliers} updates"
        )
        return Trouble("spike", why, self.since_token)

    def needs_token(self) -> int:
        """Return the token before which a rollback would need a checkpoint, if trouble began with the next update."""
        return self.last_began if self.since_token is None else self.since_token

    def state_dict(self) -> dict:
        remembered = {"last_began": self.last_began, "since_token": self.since_token, "outliers": self.outliers}
        return {"losses": list(self.losses)} | remembered

    def load_state_dict(self, state: dict) -> None:
        self.losses = deque(state["losses"], maxlen=MEMORY)
        self.last_began, self.since_token, self.outliers = (
            state[name] for name in ("last_began", "since_token", "outliers")
        )


class LossWatch:
    """The triggers of a recipe that depend on the loss."""

    def __init__(self, config: RollbackConfig):
        self.config = config
        self.stage: str | None = None
        self._begin()

    def observe(
        self, stage: str, token: int, tokens: int, loss: float, norms: Mapping[str, float] | None = None
    ) -> Trouble | None:
        """Observe the update of `tokens` tokens that ended at `token`.

        Args:
            loss: the loss with the weights before the update.
            norms: norms of the gradient and of the update, by name. A gradient may overflow while the loss is finite.
                Then this update's checkpoint has weights that are NaN, but the loss becomes NaN only at the next
                update.
        """
        for name, value in {"loss": loss, **(norms or {})}.items():
            if not math.isfinite(value):
                return Trouble("non_finite", f"the {name} is {value}", token - tokens)
        if stage != self.stage:
            self.stage = stage
            self._begin()
        troubles = [detector.observe(token, tokens, loss) for detector in self.detectors.values()]
        return next((trouble for trouble in troubles if trouble is not None), None)

    def needs_tokens(self) -> list[int]:
        """Return the tokens before which a rollback would need the last checkpoint."""
        return [detector.needs_token() for detector in self.detectors.values()]

    def state_dict(self) -> dict:
        """Return the state of the detectors as JSON types."""
        return {"stage": self.stage} | {name: detector.state_dict() for name, detector in self.detectors.items()}

    def load_state_dict(self, state: dict) -> None:
        """Load a state; a detector that is not in it starts with an empty state."""
        self.stage = state.get("stage")
        for name in state.keys() & self.detectors.keys():
            self.detectors[name].load_state_dict(state[name])

    def _begin(self) -> None:
        self.detectors: dict[str, Plateau | Spike] = {}
        if self.config.plateau is not None:
            self.detectors["plateau"] = Plateau(self.config.plateau)
        if self.config.spike is not None:
            self.detectors["spike"] = Spike(self.config.spike)
