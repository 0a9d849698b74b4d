"""Times in updates are those in tokens."""

import pytest

from rotary_foundry import load_recipe
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
