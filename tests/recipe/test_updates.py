"""Times in updates are those in tokens."""

import pytest

from rotary_foundry import compile_plan, load_recipe
from rotary_foundry.utils.errors import ConfigurationError

NANO = "yamls/main/nano.yaml"
UPDATE = 2 * 8192  # tokens, of the stage `decay`


def test_a_recipe_in_updates_is_the_recipe_in_tokens():
    in_updates, in_tokens = (
        load_recipe(
            NANO,
            [
                f"stages.decay.duration={times[0]}",
                f"stages.decay.lr_schedule=[[{times[1]}, 0], [{times[2]}, 1], [1dur, 0.1]]",
                *("stages.decay.t_decay=0tok", "stages.decay.alpha_f=1.0"),
                f"stages.decay.rope_theta={{start: 1e5, end: 2e5, duration: {times[2]}}}",
                f"stages.extend.t_warmup={times[2]}",
            ],
        )
        for times in (("1_0ba", "0ba", "3ba"), (f"{10 * UPDATE}tok", "0tok", f"{3 * UPDATE}tok"))
    )
    assert in_updates == in_tokens


def test_updates_beside_a_ramp_are_refused_by_key():
    with pytest.raises(ConfigurationError, match=r"nano\.yaml: 'stages\.pretrain\.t_warmup': is in updates, which"):
        load_recipe(NANO, ["stages.pretrain.t_warmup=10ba"])


@pytest.mark.parametrize("time", ["1_ba", "1__0ba", "1" * 5000 + "ba", "ba", "-1ba"])
def test_what_is_no_number_of_updates_is_refused_by_key(time):
    for key in ("stages.decay.duration", "stages.extend.t_warmup"):
        with pytest.raises(ConfigurationError, match=rf"nano\.yaml: '{key}': '.* is not a number of tokens"):
            load_recipe(NANO, [f"{key}={time}"])


def test_a_rollback_in_updates_is_the_one_in_tokens():
    """Nano's updates differ in size: the ramp has three sizes."""
    plan = compile_plan(load_recipe(NANO))
    at, to = (
        next(token for token in range(0, plan.total_tokens, 1024) if plan.at(token).update == n) for n in (200, 100)
    )
    in_updates, in_tokens = (
        load_recipe(NANO, [f"rollback.at={{token: {token}, to: {back}, lr: 1e-4}}"])
        for token, back in (("200ba", "1_00ba"), (f"{at}tok", f"{to}tok"))
    )
    assert in_updates == in_tokens and plan.token_after(plan.total_updates) == plan.total_tokens
    with pytest.raises(ConfigurationError, match=r"'rollback\.at': expected to go back from a token of the plan"):
        load_recipe(NANO, ["rollback.at={token: 417ba, to: 100ba, lr: 1e-4}"])  # of 408


def test_a_window_in_updates_needs_updates_of_one_size():
    window = ["rollback.plateau={window: 10ba, min_delta: 0.01, lr: 1e-4}"]
    equal = ["stages.pretrain.batch_size_ramp=null", "stages.pretrain.global_train_batch_size=16"]
    recipe = load_recipe(NANO, [*window, *equal])
    assert recipe.rollback.plateau.window == f"{10 * UPDATE}tok"
    with pytest.raises(
        ConfigurationError, match=r"nano\.yaml: 'rollback\.plateau\.window': is in updates, which differ"
    ):
        load_recipe(NANO, window)
    with pytest.raises(ConfigurationError, match=r"'rollback\.plateau\.window': 0ba is not positive"):
        load_recipe(NANO, ["rollback.plateau={window: 0ba, min_delta: 0.01, lr: 1e-4}"])
