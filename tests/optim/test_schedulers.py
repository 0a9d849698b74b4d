"""In a bare Composer Trainer, the schedulers draw the plan's curves, an update late as all of Composer's."""

import pytest
import torch
from composer import Callback, ComposerModel, Trainer
from composer.core import DataSpec
from torch.utils.data import DataLoader

from rotary_foundry.optim.schedulers import (
    ConstantWithWarmupScheduler,
    CosineAnnealingWithWarmupScheduler,
    WarmupStableDecayScheduler,
)
from rotary_foundry.recipe.plan import LearningRate

PEAK = 8e-4
ROWS, ROW_LENGTH, UPDATES_AN_EPOCH, UPDATES = 4, 16, 5, 20
TOKENS = ROWS * ROW_LENGTH  # an update
DURATION = f"{UPDATES * TOKENS}tok"


class OneWeight(ComposerModel):
    """The least that can be trained."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, batch):
        return self.weight

    def loss(self, outputs, batch):
        return -outputs  # whose gradient is -1, so an update of SGD adds the learning rate to the weight


class Weights(Callback):
    def __init__(self):
        self.seen = [0.0]

    def batch_end(self, state, logger):
        self.seen.append(state.model.weight.item())


def learning_rates(scheduler, max_duration: str = DURATION, **arguments) -> list[float]:
    """What each update of a bare Trainer moves a weight by whose gradient is -1."""
    weights, model = Weights(), OneWeight().double()
    loader = DataLoader(torch.zeros(UPDATES_AN_EPOCH * ROWS, ROW_LENGTH), batch_size=ROWS)
    trainer = Trainer(
        model=model,
        train_dataloader=DataSpec(loader, get_num_tokens_in_batch=lambda batch: batch.numel()),
        max_duration=max_duration,
        optimizers=torch.optim.SGD(model.parameters(), lr=PEAK),
        schedulers=scheduler,
        callbacks=weights,
        device="cpu",
        progress_bar=False,
        **arguments,
    )
    trainer.fit()
    trainer.close()
    return [after - before for before, after in zip(weights.seen, weights.seen[1:], strict=False)]


def plan_an_update_late(warmup: int, decay: int, decay_shape: str = "linear", alpha_f: float = 1.0) -> list[float]:
    """The plan's curve as Composer draws it; warm-up and decay in updates."""
    curve = LearningRate(PEAK, 0, UPDATES * TOKENS, warmup * TOKENS, decay * TOKENS, decay_shape, alpha_f)
    return [curve.at(max(0, update - 1) * TOKENS) for update in range(UPDATES)]


@pytest.mark.parametrize("decay_shape", ["one_minus_sqrt", "linear", "cosine"])
def test_warm_up_stable_decay_has_the_learning_rate_of_the_plan_at_every_update(decay_shape):
    scheduler = WarmupStableDecayScheduler(f"{5 * TOKENS}tok", f"{8 * TOKENS}tok", decay_shape, alpha_f=0.001)
    expected = plan_an_update_late(5, 8, decay_shape, alpha_f=0.001)
    assert expected[:2] == [0, 0] and expected[6:13] == [PEAK] * 7 and expected[-1] < PEAK / 3
    assert learning_rates(scheduler) == pytest.approx(expected)


def test_composers_constant_with_warm_up_is_the_plans():
    scheduler = ConstantWithWarmupScheduler(f"{5 * TOKENS}tok")
    assert learning_rates(scheduler) == pytest.approx(plan_an_update_late(5, 0))


def test_composers_cosine_with_warm_up_is_the_plans_cosine_over_all_that_the_warm_up_leaves():
    scheduler = CosineAnnealingWithWarmupScheduler(f"{5 * TOKENS}tok", alpha_f=0.1)
    expected = plan_an_update_late(5, UPDATES - 5, "cosine", alpha_f=0.1)
    assert expected[6] == PEAK and expected[-1] < 0.15 * PEAK
    assert learning_rates(scheduler) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("warmup", "decay", "max_duration"),
    [("5ba", "10ba", "20ba"), ("20sp", "40sp", "80sp"), ("1ep", "2ep", "4ep"), ("0.25dur", "0.5dur", DURATION)],
    ids=["updates", "rows", "epochs", "shares of the training"],
)
def test_times_may_be_in_any_of_composers_units(warmup, decay, max_duration):
    scheduler = WarmupStableDecayScheduler(warmup, decay)
    expected = plan_an_update_late(5, 10, "one_minus_sqrt", alpha_f=0.0)
    assert learning_rates(scheduler, max_duration) == pytest.approx(expected)


def test_a_schedule_scaled_down_keeps_its_warm_up():
    scheduler = WarmupStableDecayScheduler("2ba", "20ba")
    assert learning_rates(scheduler, "40ba", scale_schedule_ratio=0.5) == pytest.approx(
        plan_an_update_late(2, 10, "one_minus_sqrt", alpha_f=0.0)
    )


@pytest.mark.parametrize(
    ("warmup", "decay", "t_max", "said"),
    [
        ("5ba", "64tok", "1dur", "must use the same units"),
        ("64tok", "5ba", "1dur", "must use the same units"),
        ("640tok", "1000tok", "1dur", "together are longer than t_max"),
        ("64tok", "64tok", "640tok", "must be greater than or equal to max_duration"),
    ],
)
def test_times_that_do_not_go_together_are_refused(warmup, decay, t_max, said):
    with pytest.raises(ValueError, match=said):
        learning_rates(WarmupStableDecayScheduler(warmup, decay, t_max=t_max))


def test_an_unknown_shape_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match="'sqrt' is not one of one_minus_sqrt, linear, cosine"):
        WarmupStableDecayScheduler("0tok", "64tok", "sqrt")
