"""When the loss is in trouble, and when it is only noisy."""

import json
import math
import random

import pytest

from rotary_foundry.callbacks.loss_watch import LossWatch
from rotary_foundry.recipe.schema import NonFiniteTrigger, PlateauTrigger, RollbackConfig, SpikeTrigger

TOKENS = 100  # an update
SPIKE = RollbackConfig(spike=SpikeTrigger(z_score=6.0, patience=3, lr=1e-4))
PLATEAU = RollbackConfig(plateau=PlateauTrigger(window="5_000tok", min_delta=0.05))


def watch(config: RollbackConfig, losses, stage="pretrain", start=0):
    """The first trouble, with the update (from 1) that it was found at."""
    watching = config if isinstance(config, LossWatch) else LossWatch(config)
    for update, loss in enumerate(losses, start + 1):
        trouble = watching.observe(stage, update * TOKENS, TOKENS, loss)
        if trouble is not None:
            return update, trouble
    return None


def noisy(count: int, level: float = 5.0, seed: int = 0) -> list[float]:
    generator = random.Random(seed)
    return [level + generator.gauss(0, 0.05) for _ in range(count)]


def test_noise_is_no_spike():
    assert watch(SPIKE, noisy(2000)) is None


def test_a_spike_is_found_after_its_patience_and_the_update_before_it_may_be_its_cause():
    update, trouble = watch(SPIKE, [*noisy(50), *noisy(3, level=7.0)])
    assert (update, trouble.trigger, trouble.since_token) == (53, "spike", 49 * TOKENS)
    assert "robust deviations" in trouble.why


def test_shorter_outliers_are_passed_over_and_do_not_widen_the_scale():
    losses = noisy(400)
    losses[100:400:5] = [9.0] * 60  # never two on end
    assert watch(SPIKE, losses) is None
    assert watch(SPIKE, [*losses, 7.0, 7.0, 7.0]) is not None


def test_a_new_stage_may_begin_at_another_loss():
    watching = LossWatch(SPIKE)
    assert watch(watching, noisy(100)) is None
    assert watch(watching, noisy(100, level=8.0), stage="extend", start=100) is None


def test_a_falling_loss_is_no_plateau():
    assert watch(PLATEAU, [8 - 0.002 * update for update in range(1000)]) is None


def test_a_flat_loss_is_a_plateau_that_began_where_it_last_fell():
    falling = [8 - 0.02 * update for update in range(100)]
    update, trouble = watch(PLATEAU, [*falling, *noisy(200, level=6.0, seed=1)])
    assert trouble.trigger == "plateau"
    assert update * TOKENS - trouble.since_token == 5_000
    assert 100 * TOKENS <= trouble.since_token <= 130 * TOKENS


@pytest.mark.parametrize("loss", [math.nan, math.inf])
@pytest.mark.parametrize("config", [RollbackConfig(), RollbackConfig(non_finite=NonFiniteTrigger(data="advance"))])
def test_a_loss_that_is_no_number_is_trouble_at_once_whatever_the_recipe_says(config, loss):
    update, trouble = watch(config, [5.0, 5.0, loss])
    assert (update, trouble.trigger, trouble.since_token) == (3, "non_finite", 2 * TOKENS)


@pytest.mark.parametrize(
    "config",
    [SPIKE, PLATEAU, RollbackConfig(spike=SPIKE.spike, plateau=PLATEAU.plateau)],
    ids=["spike", "plateau", "both"],
)
@pytest.mark.parametrize("saved_after", [3, 40, 111])
def test_a_watch_that_was_saved_and_loaded_fires_where_it_would_have(config, saved_after):
    losses = [8 - 0.02 * update for update in range(110)]
    losses += [*noisy(2, level=20.0), *noisy(30, level=5.8), *noisy(3, level=20.0), *noisy(100, level=5.8)]
    undisturbed = watch(config, losses)
    assert undisturbed is not None
    first, second = LossWatch(config), LossWatch(config)
    assert watch(first, losses[:saved_after]) is None
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert watch(second, losses[saved_after:], start=saved_after) == undisturbed
