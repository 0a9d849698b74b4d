"""What inductor's code for an H100 moves, by its own count; nothing is run."""

import sys
from pathlib import Path

import pytest

from rotary_foundry import load_recipe

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.mark.long  # the code of three graphs is made
def test_the_kernels_of_a_layer_and_of_the_loss_move_little_and_keep_what_plan_counts():
    from gpu_code import TOKENS, counts

    found = counts()
    unit = 2 * TOKENS * 768  # hidden states of base in bf16
    assert found["layer, forward"]["bytes"] + found["layer, backward"]["bytes"] <= 80 * unit
    assert found["chunk of the loss"]["bytes"] <= 0.6e9
    counted = load_recipe("yamls/main/base.yaml").model.shape.kept_of_layer(2, compiled=True)
    assert found["layer, forward"]["kept"] == pytest.approx(counted * TOKENS, rel=0.01)
